//! What a request's body tells, whatever its form, and why one is refused.
//!
//! Invariants: a name that leaves here is short, printable UTF-8; a hash is 0 only where there was nothing to
//! hash, and is the same in every build and process, for it decides which backend a conversation returns to.

use std::fmt;
use std::ops::Range;

use crate::edge::json::Syntax;

/// The longest model name; the longest on Hugging Face is under 200 bytes.
const NAME_LIMIT: usize = 256;

/// Bytes of a token, in English.
const TOKEN_BYTES: usize = 4;
/// Tokens of an image of 768 by 768 dots, where one stands for 28 by 28 of them (Qwen2.5-VL).
const IMAGE_TOKENS: u32 = 752;
/// Tokens of an answer that may be longer.
const ANSWER_TOKENS: u32 = 256;

/// How much of a prompt goes into the hash of its start: a system prompt, not a conversation.
const PREFIX_LIMIT: usize = 1024;

/// What the proxy needs to know of a body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The public name asked for.
    pub model: String,
    /// Where its value stands in the body, to be replaced: in JSON with the quotes, so by JSON; in a form the
    /// bare text.
    pub model_range: Range<usize>,
    /// Whether the answer is to come as a stream; `None` where the request does not say.
    pub stream: Option<bool>,
    /// Whether the answer is to be stored and fetched later.
    pub background: bool,
    /// How many images it brings.
    pub images: u32,
    /// Hash of the session key; 0 for none.
    pub affinity: u64,
    /// Hash of the prompt's first 1,024 bytes; 0 for none.
    pub prefix: u64,
    /// How many bytes its strings have, as they are written, but for images and other files.
    pub text_bytes: usize,
    /// The most tokens that the answer may have, where that is said.
    pub answer_limit: Option<u32>,
}

impl Facts {
    /// A guess of the tokens of the prompt and the answer together.
    pub fn tokens(&self) -> u32 {
        let text = u32::try_from(self.text_bytes / TOKEN_BYTES).unwrap_or(u32::MAX);
        let answer = self.answer_limit.unwrap_or(u32::MAX).min(ANSWER_TOKENS);
        text.saturating_add(self.images.saturating_mul(IMAGE_TOKENS)).saturating_add(answer).max(1)
    }
}

/// Why a body cannot be routed, in the order in which it would be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// It is not JSON, from this byte on.
    InvalidJson(Syntax),
    /// It is a form that cannot be read without guessing.
    InvalidMultipart(MultipartFault),
    /// Valid JSON that is no object.
    NotAnObject,
    /// No `model` at the top level.
    MissingModel,
    /// `model` is something else, or a file.
    ModelNotAString,
    /// `model` twice, so that two readers may see two models.
    DuplicateModel,
    /// `stream` twice.
    DuplicateStream,
    /// An address of an image that the configuration does not let through.
    ImageUrlNotAllowed,
    /// Empty, longer than 256 bytes, not UTF-8, or with control characters.
    BadModelName,
}

/// What is wrong with a multipart body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MultipartFault {
    /// The content type has no boundary, two, or one that RFC 2046 does not allow.
    Boundary,
    /// A line begins with the delimiter and goes on otherwise than a delimiter does.
    Delimiter,
    /// A part's headers do not say plainly what it is called.
    Header,
    /// A part's headers are longer than 8 KiB.
    HeaderTooLong,
    /// The last delimiter is missing.
    Truncated,
}

impl BodyError {
    /// The `code` of the answer.
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidJson(_) | Self::NotAnObject => "invalid_json",
            Self::InvalidMultipart(_) => "invalid_multipart",
            Self::MissingModel => "missing_model",
            Self::ModelNotAString | Self::BadModelName => "invalid_model",
            Self::DuplicateModel => "duplicate_model",
            Self::DuplicateStream => "duplicate_stream",
            Self::ImageUrlNotAllowed => "image_url_not_allowed",
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidJson(syntax) => write!(out, "The body is not valid JSON: {syntax}."),
            Self::InvalidMultipart(fault) => write!(out, "The body is not valid multipart/form-data: {fault}."),
            Self::NotAnObject => out.write_str("The body must be a JSON object."),
            Self::MissingModel => out.write_str("The body names no `model`."),
            Self::ModelNotAString => out.write_str("`model` must be a string."),
            Self::DuplicateModel => out.write_str("`model` is given twice."),
            Self::DuplicateStream => out.write_str("`stream` is given twice."),
            Self::ImageUrlNotAllowed => out.write_str(
                "An address of an image is not allowed here. Send images inline (`data:`), or from a domain that this \
                 proxy allows, by an address in its normalised form.",
            ),
            Self::BadModelName => {
                write!(out, "`model` must be 1 to {NAME_LIMIT} bytes of UTF-8 without control characters.")
            }
        }
    }
}

impl fmt::Display for MultipartFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Boundary => "the content type must name one boundary of 1 to 70 allowed characters",
            Self::Delimiter => "a line that begins with the boundary does not end behind it",
            Self::Header => "the headers of a part do not name it plainly",
            Self::HeaderTooLong => "the headers of a part are too long",
            Self::Truncated => "the closing boundary is missing",
        })
    }
}

impl std::error::Error for BodyError {}

/// The name that `text` asks for.
pub(super) fn model_name(text: &[u8]) -> Result<String, BodyError> {
    match std::str::from_utf8(text) {
        Ok(name) if !name.is_empty() && name.len() <= NAME_LIMIT && !name.contains(char::is_control) => Ok(name.into()),
        _ => Err(BodyError::BadModelName),
    }
}

/// Which of the members that may name a session comes first where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SessionKey {
    PromptCacheKey,
    SessionId,
    User,
}

impl SessionKey {
    pub(super) fn named(key: &[u8]) -> Option<Self> {
        match key {
            b"prompt_cache_key" => Some(Self::PromptCacheKey),
            b"session_id" => Some(Self::SessionId),
            b"user" => Some(Self::User),
            _ => None,
        }
    }
}

/// The best session key so far.
#[derive(Debug, Default)]
pub(super) struct Affinity(Option<(SessionKey, u64)>);

impl Affinity {
    /// Takes the text under `key`, unless it is empty or a better key has come.
    pub(super) fn offer(&mut self, key: SessionKey, text: &[u8]) {
        if !text.is_empty() && self.0.is_none_or(|(held, _)| key < held) {
            self.0 = Some((key, hash(0, text)));
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.0.map_or(0, |(_, hash)| hash.max(1))
    }
}

/// The hash of a prompt's start, put together from its texts.
#[derive(Debug, Default)]
pub(super) struct Prefix {
    hash: u64,
    taken: usize,
}

impl Prefix {
    pub(super) fn full(&self) -> bool {
        self.taken >= PREFIX_LIMIT
    }

    pub(super) fn add(&mut self, text: &[u8]) {
        let text = text.get(..PREFIX_LIMIT.saturating_sub(self.taken)).unwrap_or(text);
        if !text.is_empty() {
            self.taken += text.len();
            self.hash = hash(self.hash, text);
        }
    }

    pub(super) fn hash(&self) -> u64 {
        if self.taken == 0 { 0 } else { self.hash.max(1) }
    }
}

/// A 64-bit hash that spreads well and takes 8 bytes at a step (FNV's one byte a step would be the slowest thing
/// that happens to a request). Nobody is protected by it: a client that wants all its sessions on one backend has
/// only to send one key.
fn hash(seed: u64, text: &[u8]) -> u64 {
    // The odd constants of SplitMix64 and its finisher: any with well mixed bits would do, but not others tomorrow.
    let mix = |hash: u64, word: u64| {
        let mixed = (hash ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ mixed >> 32
    };
    let (words, tail) = text.as_chunks::<8>();
    let body = words.iter().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let tail = tail.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    // The length goes in, so that zero bytes at the end count.
    mix(mix(body, tail), text.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "é".repeat(128);
        for name in ["m", "Qwen/Qwen2.5-VL-7B-Instruct", "a b", " ", "模型", "\"", &long] {
            assert_eq!(model_name(name.as_bytes()).as_deref(), Ok(name));
        }
        for name in [&b""[..], b"a\nb", b"\0", b"\x7f", "\u{85}".as_bytes(), b"\xff", b"\xc3", &[b'x'; 257]] {
            assert_eq!(model_name(name), Err(BodyError::BadModelName));
        }
    }

    #[test]
    fn hashes_are_the_same_for_ever() {
        // A new value here would send every conversation to another backend's cache at an upgrade.
        assert_eq!(hash(0, b"user-1"), 0xc29a_827a_09b7_b50c);
        assert_eq!(hash(0, b"a longer key than one word"), 0x6732_b231_14cc_3671);
    }

    #[test]
    fn hashes_differ() {
        let mut texts: Vec<Vec<u8>> = (0..40).map(|len| vec![0; len]).collect();
        texts.extend((0..10_000).map(|n| format!("user-{n}").into_bytes()));
        let mut hashes: Vec<u64> = texts.iter().map(|text| hash(0, text)).collect();
        let low: std::collections::HashSet<u64> = hashes.iter().map(|hash| hash % 8).collect();
        assert_eq!(low.len(), 8);
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), texts.len());
    }

    #[test]
    fn the_better_session_key_wins() {
        let user = |texts: &[(SessionKey, &str)]| {
            let mut affinity = Affinity::default();
            texts.iter().for_each(|(key, text)| affinity.offer(*key, text.as_bytes()));
            affinity.hash()
        };
        use SessionKey::{PromptCacheKey, SessionId, User};
        assert_eq!(user(&[]), 0);
        assert_eq!(user(&[(User, "")]), 0);
        assert_eq!(user(&[(User, "a"), (User, "b")]), user(&[(User, "a")]));
        assert_eq!(user(&[(User, "a"), (SessionId, "b"), (User, "c")]), user(&[(SessionId, "b")]));
        assert_eq!(user(&[(PromptCacheKey, "a"), (SessionId, "b")]), user(&[(User, "a")]));
    }

    #[test]
    fn a_prefix_is_of_its_first_bytes() {
        let prefix = |texts: &[&str]| {
            let mut prefix = Prefix::default();
            texts.iter().for_each(|text| prefix.add(text.as_bytes()));
            prefix.hash()
        };
        let long = "x".repeat(1000);
        assert_eq!(prefix(&["", ""]), 0);
        assert_ne!(prefix(&["a"]), prefix(&["b"]));
        assert_ne!(prefix(&["a", "b"]), prefix(&["b", "a"]));
        assert_eq!(prefix(&[&long, "123456789012345678901234", "y"]), prefix(&[&long, "123456789012345678901234567"]));
        assert_ne!(prefix(&[&long, "12345678901234567890123"]), prefix(&[&long, "123456789012345678901234"]));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let syntax = Syntax { reason: crate::edge::json::Reason::Unexpected, offset: 17 };
        assert_eq!(
            BodyError::InvalidJson(syntax).to_string(),
            "The body is not valid JSON: unexpected character at byte 17."
        );
        assert_eq!(
            BodyError::InvalidMultipart(MultipartFault::Truncated).to_string(),
            "The body is not valid multipart/form-data: the closing boundary is missing."
        );
        assert_eq!(BodyError::DuplicateModel.code(), "duplicate_model");
    }
}
