//! What a simulated model says: the same words for the same request, in exactly as many tokens as were asked for.
//!
//! Pure. A message longer than its tokens is said in bigger pieces, a shorter one is followed by the running number of
//! each further token, so that a lost or doubled chunk is visible in the text.

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    /// Everything was said.
    Stop,
    /// The request's token limit came first.
    Length,
}

impl Finish {
    /// The way OpenAI's and Ollama's APIs spell it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// One answer, cut into tokens.
#[derive(Debug, Clone)]
pub(super) struct Speech {
    words: Vec<String>,
    /// Tokens in which the words alone are said.
    spoken_in: u64,
    tokens: u64,
    finish: Finish,
}

/// No answer is longer, whatever a request asks for: a whole one must fit in memory.
const TOKEN_LIMIT: u64 = 131_072;

impl Speech {
    /// `natural` tokens when nothing cuts it short; `limit` is the request's own; `endless` goes on to that limit.
    pub(super) fn new(message: &str, natural: u64, limit: Option<u64>, endless: bool) -> Self {
        let words: Vec<String> = message.split_inclusive(' ').map(str::to_owned).collect();
        let natural = natural.clamp(1, TOKEN_LIMIT);
        let limit = limit.unwrap_or(TOKEN_LIMIT).clamp(1, TOKEN_LIMIT);
        let tokens = if endless { limit } else { natural.min(limit) };
        let finish = if endless || limit < natural { Finish::Length } else { Finish::Stop };
        Self { spoken_in: natural.min(words.len() as u64), words, tokens, finish }
    }

    pub(super) const fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(super) const fn finish(&self) -> Finish {
        self.finish
    }

    /// The text of one token, counted from 0.
    pub(super) fn token(&self, index: u64) -> String {
        if index >= self.spoken_in {
            return format!(" {}", index + 1);
        }
        let words = self.words.len() as u64;
        let from = index * words / self.spoken_in;
        let to = (index + 1) * words / self.spoken_in;
        let pieces = self.words.iter().skip(as_index(from)).take(as_index(to - from));
        pieces.map(String::as_str).collect()
    }
}

fn as_index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(speech: &Speech) -> String {
        (0..speech.tokens()).map(|index| speech.token(index)).collect()
    }

    #[test]
    fn the_message_is_said_whole_in_as_many_tokens_as_asked() {
        let message = "gpu-a received 2 message(s), 1 image(s), 77 body bytes";
        for natural in [1, 2, 5, 8, 9, 16, 40] {
            let speech = Speech::new(message, natural, None, false);
            assert_eq!(speech.tokens(), natural);
            assert_eq!(speech.finish(), Finish::Stop);
            assert!(said(&speech).starts_with(message), "{natural}: {}", said(&speech));
        }
        assert!(said(&Speech::new(message, 12, None, false)).ends_with("body bytes 10 11 12"));
    }

    #[test]
    fn a_limit_cuts_and_says_so() {
        let speech = Speech::new("one two three", 3, Some(2), false);
        assert_eq!((said(&speech).as_str(), speech.finish()), ("one two ", Finish::Length));
        assert_eq!(Speech::new("one two three", 3, Some(3), false).finish(), Finish::Stop);
    }

    #[test]
    fn endless_goes_to_the_limit_and_no_further_than_memory() {
        assert_eq!(Speech::new("one", 3, Some(20), true).tokens(), 20);
        assert_eq!(Speech::new("one", 3, Some(u64::MAX), true).tokens(), TOKEN_LIMIT);
    }
}
