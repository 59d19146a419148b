//! Finds what a JSON request body tells while its chunks arrive.
//!
//! Invariants: the body is read once and never copied; the whole of it is checked to be one JSON object, so that
//! what is refused here and what a backend would refuse differ as little as possible; `model` and `stream` occur
//! once at the top level or not at all, however they are spelled, so that nobody behind us can see another one.

use crate::edge::json::{Piece, Scanner, Token};

use super::facts::{Affinity, BodyError, Facts, Prefix, SessionKey, model_name};
use super::images::{ADDRESS_LIMIT_BYTES, Watch};
use crate::config::Images;

/// What the value that comes next means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Nothing,
    Model,
    Stream,
    Background,
    Session(SessionKey),
    /// `type` of any object: is it an image?
    Kind,
    /// Text of the prompt, or an array of it.
    Text,
    /// An array whose elements are images.
    Images,
    /// The most tokens of the answer.
    AnswerLimit,
}

/// A longer string that is no text of the prompt is an image, a sound or a file.
const ATTACHED_BYTES: usize = 1024;

/// The scan of one body. After an error there is nothing more to feed.
#[derive(Debug)]
pub struct BodyScan<'a> {
    scanner: Scanner,
    /// For addresses of images.
    watch: Watch<'a>,
    /// Bytes fed.
    read: usize,
    wanted: Wanted,
    /// Whether the top-level member being read holds the prompt.
    in_prompt: bool,
    /// The depth inside the array under `images` being read; 0 outside of one.
    images_depth: u8,
    /// Whether the document is an object.
    opened: bool,
    model_seen: bool,
    stream_seen: bool,
    affinity: Affinity,
    prefix: Prefix,
    /// Bytes of strings, but for attached files.
    text_bytes: usize,
    facts: Facts,
}

impl<'a> BodyScan<'a> {
    /// A scan before the first byte. `images` says which addresses may stand in the body.
    pub fn new(images: &'a Images) -> Self {
        let watch = Watch::new(images);
        Self {
            // One byte more than allowed, to tell an address at the limit from one over it.
            scanner: if watch.is_on() { Scanner::keeping(ADDRESS_LIMIT_BYTES + 1) } else { Scanner::new() },
            watch,
            read: 0,
            wanted: Wanted::Nothing,
            in_prompt: false,
            images_depth: 0,
            opened: false,
            model_seen: false,
            stream_seen: false,
            affinity: Affinity::default(),
            prefix: Prefix::default(),
            text_bytes: 0,
            facts: Facts::default(),
        }
    }

    /// Reads the next chunk of the body.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), BodyError> {
        let mut piece = Piece::new(chunk, self.read);
        self.read += chunk.len();
        while let Some(token) = self.scanner.next(&mut piece) {
            match token {
                Token::Key => self.key(&piece)?,
                Token::ObjectEnd => {}
                Token::ArrayEnd => self.array_end(),
                token => self.value(token, &piece)?,
            }
            if self.watch.is_on() {
                self.watch(token, &piece)?;
            }
        }
        self.scanner.failure().map_or(Ok(()), |syntax| Err(BodyError::InvalidJson(syntax)))
    }

    /// What the body told, if it is complete.
    pub fn finish(mut self) -> Result<Facts, BodyError> {
        self.scanner.finish().map_err(BodyError::InvalidJson)?;
        if !self.opened {
            return Err(BodyError::NotAnObject);
        }
        if !self.model_seen {
            return Err(BodyError::MissingModel);
        }
        self.facts.affinity = self.affinity.hash();
        self.facts.prefix = self.prefix.hash();
        self.facts.text_bytes = self.text_bytes;
        Ok(self.facts)
    }

    fn key(&mut self, piece: &Piece<'_>) -> Result<(), BodyError> {
        let key = self.scanner.text(piece);
        let top = self.scanner.depth() == 1;
        if top {
            self.in_prompt = matches!(key, b"messages" | b"prompt" | b"input");
        }
        self.wanted = match key {
            b"model" if top && self.model_seen => return Err(BodyError::DuplicateModel),
            b"stream" if top && self.stream_seen => return Err(BodyError::DuplicateStream),
            b"model" if top => Wanted::Model,
            b"stream" if top => Wanted::Stream,
            b"background" if top => Wanted::Background,
            b"prompt" | b"input" if top => Wanted::Text,
            b"content" | b"text" if self.in_prompt => Wanted::Text,
            b"type" => Wanted::Kind,
            b"images" => Wanted::Images,
            b"max_tokens" | b"max_completion_tokens" | b"max_output_tokens" if top => Wanted::AnswerLimit,
            _ if top => SessionKey::named(key).map_or(Wanted::Nothing, Wanted::Session),
            _ => Wanted::Nothing,
        };
        self.model_seen |= self.wanted == Wanted::Model;
        self.stream_seen |= self.wanted == Wanted::Stream;
        self.keep_wanted();
        Ok(())
    }

    fn value(&mut self, token: Token, piece: &Piece<'_>) -> Result<(), BodyError> {
        let opens = matches!(token, Token::Object | Token::Array);
        let around = self.scanner.depth() - u8::from(opens);
        if around == 0 {
            self.opened = token == Token::Object;
            return if self.opened { Ok(()) } else { Err(BodyError::NotAnObject) };
        }
        if around == self.images_depth {
            self.facts.images = self.facts.images.saturating_add(1);
        }
        if token == Token::String {
            let bytes = self.scanner.range().len() - 2;
            if self.wanted == Wanted::Text || bytes <= ATTACHED_BYTES {
                self.text_bytes += bytes;
            }
        }
        if self.wanted != Wanted::Nothing {
            self.wanted_value(token, piece)?;
            // Text may come as an array, so it is wanted until the next key; everything else is one value.
            if self.wanted != Wanted::Text {
                self.wanted = Wanted::Nothing;
            }
            self.keep_wanted();
        }
        Ok(())
    }

    fn wanted_value(&mut self, token: Token, piece: &Piece<'_>) -> Result<(), BodyError> {
        match (self.wanted, token) {
            (Wanted::Model, Token::String) => {
                self.facts.model = model_name(self.scanner.text(piece))?;
                self.facts.model_range = self.scanner.range();
            }
            (Wanted::Model, _) => return Err(BodyError::ModelNotAString),
            (Wanted::Stream, Token::True | Token::False) => self.facts.stream = Some(token == Token::True),
            // Stored if any of several says so: then it is not run twice.
            (Wanted::Background, Token::True) => self.facts.background = true,
            (Wanted::Session(key), Token::String) => self.affinity.offer(key, self.scanner.text(piece)),
            (Wanted::AnswerLimit, Token::Number) => {
                let digits = std::str::from_utf8(self.scanner.text(piece)).unwrap_or_default();
                self.facts.answer_limit = digits.parse().ok().or(self.facts.answer_limit);
            }
            (Wanted::Text, Token::String) => self.prefix.add(self.scanner.text(piece)),
            (Wanted::Kind, Token::String) => {
                // What is typed inside an `images` array was counted as its element.
                let image = matches!(self.scanner.text(piece), b"image_url" | b"input_image" | b"image");
                if image && self.images_depth == 0 {
                    self.facts.images = self.facts.images.saturating_add(1);
                }
            }
            (Wanted::Images, Token::Array) if self.images_depth == 0 => self.images_depth = self.scanner.depth(),
            _ => {}
        }
        Ok(())
    }

    fn watch(&mut self, token: Token, piece: &Piece<'_>) -> Result<(), BodyError> {
        if !self.watch.may_pass(token, self.scanner.text(piece)) {
            return Err(BodyError::ImageUrlNotAllowed);
        }
        if self.watch.wants_text() {
            self.scanner.keep(true);
        }
        Ok(())
    }

    fn array_end(&mut self) {
        if self.scanner.depth() < self.images_depth {
            self.images_depth = 0;
        }
    }

    /// Has the scanner keep the texts that will be read, and no others.
    fn keep_wanted(&mut self) {
        self.scanner.keep(match self.wanted {
            Wanted::Model | Wanted::Session(_) | Wanted::Kind | Wanted::AnswerLimit => true,
            Wanted::Text => !self.prefix.full(),
            Wanted::Nothing | Wanted::Stream | Wanted::Background | Wanted::Images => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use serde_json::{Value, json};

    use crate::config::ImagePolicy;
    use crate::edge::json::{Reason, Syntax, samples};

    use super::*;

    static PASS: Images = Images { policy: ImagePolicy::Pass, domains: Vec::new() };

    fn scan(pieces: &[&[u8]]) -> Result<Facts, BodyError> {
        scan_by(&PASS, pieces)
    }

    fn scan_by(images: &Images, pieces: &[&[u8]]) -> Result<Facts, BodyError> {
        let mut scan = BodyScan::new(images);
        pieces.iter().try_for_each(|piece| scan.feed(piece))?;
        scan.finish()
    }

    fn facts(body: &str) -> Facts {
        scan(&[body.as_bytes()]).unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    #[test]
    fn a_chat_request() {
        let body = r#"{"model": "qwen-vl", "stream" : true, "user":"u", "messages":[{"role":"user","content":[
            {"type":"text","text":"What is this?"},{"type":"image_url","image_url":{"url":"data:x"}}]}]}"#;
        let facts = facts(body);
        assert_eq!((facts.model.as_str(), &body[facts.model_range.clone()]), ("qwen-vl", "\"qwen-vl\""));
        assert_eq!((facts.stream, facts.background, facts.images), (Some(true), false, 1));
        assert_ne!(facts.affinity, 0);
        assert_ne!(facts.prefix, 0);
    }

    #[test]
    fn tokens_are_guessed_by_the_text_the_images_and_the_longest_answer() {
        let with = |member: &str| facts(&format!("{{\"model\":\"m\",{member}}}"));
        let (text, file) = ("a".repeat(4_000), "b".repeat(100_000));
        let prompt = with(&format!(r#""messages":[{{"content":"{text}"}}]"#));
        assert!((1_256..1_270).contains(&prompt.tokens()), "{}", prompt.tokens());
        for attached in [
            format!(
                r#""messages":[{{"content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{file}"}}}}]}}]"#
            ),
            format!(r#""messages":[{{"content":"","images":["{file}"]}}]"#),
            format!(r#""messages":[{{"content":[{{"type":"image","source":{{"data":"{file}"}}}}]}}]"#),
        ] {
            assert!((1_008..1_050).contains(&with(&attached).tokens()), "{} for an image", with(&attached).tokens());
        }
        for (limit, tokens) in [("10", 10), ("9000", 256), ("-1", 256), ("1e1", 256), ("null", 256)] {
            assert_eq!(with(&format!("\"max_completion_tokens\":{limit}")).tokens(), tokens, "{limit}");
        }
    }

    #[test]
    fn what_refuses_a_body() {
        let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(257));
        let very_long = format!(r#"{{"model":"{}"}}"#, "x".repeat(5000));
        let syntax = |reason, offset| BodyError::InvalidJson(Syntax { reason, offset });
        for (body, error) in [
            ("", syntax(Reason::End, 0)),
            ("{\"model\":\"a\"", syntax(Reason::End, 12)),
            ("{\"model\":\"a\"}}", syntax(Reason::Trailing, 13)),
            ("{\"model\":NaN}", syntax(Reason::Unexpected, 9)),
            ("\u{feff}{\"model\":\"a\"}", syntax(Reason::Unexpected, 0)),
            ("[]", BodyError::NotAnObject),
            ("[{\"model\":\"a\"}]", BodyError::NotAnObject),
            ("\"model\"", BodyError::NotAnObject),
            ("17", BodyError::NotAnObject),
            ("null", BodyError::NotAnObject),
            ("{}", BodyError::MissingModel),
            (r#"{"Model":"a","x":{"model":"a"},"messages":[{"model":"a"}]}"#, BodyError::MissingModel),
            (r#"{"x":"model"}"#, BodyError::MissingModel),
            (r#"{"model":null}"#, BodyError::ModelNotAString),
            (r#"{"model":1}"#, BodyError::ModelNotAString),
            (r#"{"model":["a"]}"#, BodyError::ModelNotAString),
            (r#"{"model":{"model":"a"}}"#, BodyError::ModelNotAString),
            (r#"{"model":"a","model":"a"}"#, BodyError::DuplicateModel),
            (r#"{"model":"a","x":[{}],"mod\u0065l":"b"}"#, BodyError::DuplicateModel),
            (r#"{"model":"a","stream":true,"\u0073tream":false}"#, BodyError::DuplicateStream),
            (r#"{"model":""}"#, BodyError::BadModelName),
            (r#"{"model":"a\nb"}"#, BodyError::BadModelName),
            (r#"{"model":"a\u0000"}"#, BodyError::BadModelName),
            (&long, BodyError::BadModelName),
            (&very_long, BodyError::BadModelName),
        ] {
            assert_eq!(scan(&[body.as_bytes()]), Err(error), "{body}");
        }
        assert_eq!(scan(&[b"{\"model\":\"\xff\"}"]), Err(BodyError::BadModelName));
    }

    #[test]
    fn only_the_top_level_names_a_model() {
        let body = r#"{"messages":[{"model":"no","stream":true,"content":"\"model\":\"no\""}],"mod\u0065l":"y\u0065s","x":{"model":"no","stream":true}}"#;
        let facts = facts(body);
        assert_eq!((facts.model.as_str(), &body[facts.model_range]), ("yes", r#""y\u0065s""#));
        assert_eq!(facts.stream, None);
    }

    #[test]
    fn switches() {
        for (member, stream, background) in [
            (r#""stream":true"#, Some(true), false),
            (r#""stream":false"#, Some(false), false),
            (r#""stream":null"#, None, false),
            (r#""stream":"true""#, None, false),
            (r#""stream":[true]"#, None, false),
            (r#""stream":{"stream":true}"#, None, false),
            (r#""background":true"#, None, true),
            (r#""background":true,"background":false"#, None, true),
            (r#""stream_options":{"background":true}"#, None, false),
        ] {
            let facts = facts(&format!(r#"{{{member},"model":"m"}}"#));
            assert_eq!((facts.stream, facts.background), (stream, background), "{member}");
        }
    }

    #[test]
    fn images() {
        for (member, images) in [
            (r#""messages":[{"content":[{"type":"image_url"},{"type":"text"},{"type":"image_url"}]}]"#, 2),
            (r#""input":[{"content":[{"type":"input_image","image_url":"x"}]}]"#, 1),
            (r#""messages":[{"content":[{"type":"image","source":{"type":"base64"}}]}]"#, 1),
            (r#""messages":[{"content":[{"t\u0079pe":"im\u0061ge"}]}]"#, 1),
            (r#""messages":[{"role":"user","images":["a","b"]},{"images":["c"]},{"images":[]}]"#, 3),
            (r#""images":[{"type":"image_url"},["x","y"],null],"x":[{"type":"image_url"}]"#, 4),
            (r#""images":[{"images":["a","b"]},"c"]"#, 2),
            (r#""images":"a""#, 0),
            (r#""images":{"a":["b"]}"#, 0),
            (r#""type":["image"]"#, 0),
            (r#""content":"{\"type\":\"image\"}""#, 0),
        ] {
            assert_eq!(facts(&format!(r#"{{"model":"m",{member}}}"#)).images, images, "{member}");
        }
    }

    #[test]
    fn addresses_are_found_wherever_engines_look_for_them() {
        let inline = Images { policy: ImagePolicy::DataOnly, domains: Vec::new() };
        let is_refused = |member: &str| {
            let body = format!(r#"{{"model":"m",{member}}}"#);
            let whole = scan_by(&inline, &[body.as_bytes()]);
            let mut rng = Rng::with_seed(5);
            samples::each_division(&mut rng, body.as_bytes(), |pieces| assert_eq!(scan_by(&inline, pieces), whole));
            assert_eq!(scan(&[body.as_bytes()]).err(), None, "{member} passes where nothing is said");
            whole == Err(BodyError::ImageUrlNotAllowed)
        };
        for member in [
            r#""messages":[{"content":[{"type":"image_url","image_url":{"url":"http://x/"}}]}]"#,
            r#""messages":[{"content":[{"type":"image_url","image_url":{"detail":"low","\u0075rl":"\u0068ttp://x/"}}]}]"#,
            r#""messages":[{"content":[{"type":"image_url","image_url":{"url":"data:,","url":"http://x/"}}]}]"#,
            r#""messages":[{"content":[{"type":"image_url","image_url":{"a":{"image_url":{}},"url":"http://x/"}}]}]"#,
            r#""messages":[{"content":[{"type":"image_url","image_url":"http://x/"}]}]"#,
            r#""messages":[{"content":[{"type":"image_url","image_url":["data:,",{},"http://x/"]}]}]"#,
            r#""messages":[{"content":[{"type":"video_url","video_url":{"url":"file:///x"}}]}]"#,
            r#""messages":[{"content":[{"type":"image","url":"http://x/"}]}]"#,
            r#""messages":[{"content":{"type":"image","url":"http://x/"}}]"#,
            r#""input":[{"content":[{"type":"input_image","image_url":"http://x/"}]}]"#,
            r#""messages":[{"content":[{"type":"image","source":{"type":"url","url":"http://x/"}}]}]"#,
            r#""messages":[{"images":["iVBORw0KGgo=","http://x/"]}]"#,
            r#""images":[{"url":"http://x/"}]"#,
            r#""image":"/etc/x.png""#,
            r#""image":"/etc/passwd""#,
            r#""images":["/proc/self/environ"]"#,
            r#""messages":[{"content":[{"type":"video","video":["/etc/passwd"]}]}]"#,
            r#""image_data":"http://x/""#,
            r#""image_data":[{"data":"http://x/","id":1}]"#,
            r#""audio_data":["/etc/passwd"]"#,
            r#""prompt":{"prompt_string":"x","multimodal_data":["http://x/"]}"#,
            r#""messages":[{"content":[{"type":"input_image","input_image":{"url":"http://x/"}}]}]"#,
            r#""messages":[{"content":[{"type":"input_audio","input_audio":{"format":"wav","data":"http://x/"}}]}]"#,
            r#""messages":[{"content":[{"type":"input_audio","input_audio":{"data":"/etc/passwd"}}]}]"#,
            r#""messages":[{"content":[{"type":"input_audio","input_audio":"http://x/"}]}]"#,
            r#""messages":[{"content":[{"type":"document_url","document_url":"http://x/"}]}]"#,
            r#""ref_audio":"http://x/""#,
        ] {
            assert!(is_refused(member), "{member}");
        }
        for member in [
            r#""messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]}]"#,
            r#""messages":[{"content":"see http://x/","images":["iVBORw0KGgo="]}]"#,
            r#""messages":[{"content":[{"type":"input_audio","input_audio":{"data":"UklGRiQA","format":"wav"}}]}]"#,
            r#""messages":[{"content":[{"type":"document","source":{"type":"text","data":"see http://x/"}}]}]"#,
            r#""modalities":["text","audio"],"audio":{"voice":"alloy","format":"wav"}"#,
            r#""metadata":{"data":"http://x/"}"#,
            r#""messages":[{"content":[{"type":"text","text":"http://x/"}]}]"#,
            r#""messages":[{"content":[{"type":"tool_use","input":{"url":"http://x/"}}]}]"#,
            r#""messages":[{"content":[{"type":"image","source":{"type":"base64","data":"AA=="}}]}]"#,
            r#""tools":[{"parameters":{"properties":{"url":{"type":"string","default":"http://x/"}}}}]"#,
            r#""metadata":{"url":"http://x/"}"#,
            r#""url":"http://x/""#,
        ] {
            assert!(!is_refused(member), "{member}");
        }
    }

    #[test]
    fn an_image_is_not_kept_to_be_judged() {
        let inline = Images { policy: ImagePolicy::DataOnly, domains: Vec::new() };
        for (start, passes) in [("data:image/png;base64,", true), ("http://x/", false)] {
            let image = "A".repeat(100_000);
            let body = format!(r#"{{"model":"m","image_url":"{start}{image}","stream":true}}"#);
            let pieces: Vec<&[u8]> = body.as_bytes().chunks(4_000).collect();
            assert_eq!(scan_by(&inline, &pieces).is_ok(), passes, "{start}");
        }
    }

    #[test]
    fn session_keys() {
        let affinity = |members: &str| facts(&format!(r#"{{"model":"m",{members}}}"#)).affinity;
        let user = affinity(r#""user":"a""#);
        assert_ne!(user, 0);
        assert_eq!(user, affinity(r#""session_id":"a","user":"b""#));
        assert_eq!(user, affinity(r#""user":"b","prompt_cache_key":"\u0061","session_id":"c""#));
        assert_ne!(user, affinity(r#""user":"b""#));
        for none in [r#""user":"""#, r#""user":1"#, r#""user":{"user":"a"}"#, r#""user":["a"]"#, r#""x":{"user":"a"}"#]
        {
            assert_eq!(affinity(none), 0, "{none}");
        }
    }

    #[test]
    fn prompts() {
        let prefix = |members: &str| facts(&format!(r#"{{"model":"m",{members}}}"#)).prefix;
        let one = prefix(r#""prompt":"a\nb""#);
        assert_ne!(one, 0);
        for same in [
            r#""input":"a\u000ab""#,
            r#""input":["a\nb"]"#,
            r#""x":{"content":"no"},"messages":[{"role":"user","content":"a\nb"}]"#,
            r#""messages":[{"role":"user","content":[{"type":"text","text":"a\nb"},{"type":"image_url","image_url":{"url":"u"}}]}]"#,
            r#""input":[{"role":"user","content":[{"type":"input_text","text":"a\nb"}]}]"#,
        ] {
            assert_eq!(prefix(same), one, "{same}");
        }
        assert_ne!(prefix(r#""prompt":["a","b"]"#), prefix(r#""prompt":["b","a"]"#));
        for none in [
            r#""prompt":[1,2]"#,
            r#""prompt":"""#,
            r#""content":"a""#,
            r#""x":{"content":"a"}"#,
            r#""messages":[],"x":{"content":"a"}"#,
            r#""messages":[{"role":"a"}]"#,
        ] {
            assert_eq!(prefix(none), 0, "{none}");
        }
        let long = "x".repeat(1024);
        assert_eq!(prefix(&format!(r#""prompt":"{long}a""#)), prefix(&format!(r#""prompt":["{long}","b"]"#)));
    }

    /// What a reader with the whole document before it would say.
    fn expected(body: &str) -> Facts {
        fn images(value: &Value) -> u32 {
            match value {
                Value::Array(elements) => elements.iter().map(images).sum(),
                Value::Object(members) => {
                    let typed = members.get("type").and_then(Value::as_str);
                    let typed = matches!(typed, Some("image_url" | "input_image" | "image"));
                    u32::from(typed) + members.values().map(images).sum::<u32>()
                }
                _ => 0,
            }
        }
        let body: Value = serde_json::from_str(body).unwrap();
        Facts {
            model: body["model"].as_str().unwrap().to_owned(),
            stream: body["stream"].as_bool(),
            images: images(&body),
            ..Facts::default()
        }
    }

    fn request(rng: &mut Rng) -> String {
        let mut members: Vec<String> = (0..rng.usize(..4)).map(|at| samples::other_member(rng, at, 2)).collect();
        let model = json!(rng.choice(["m", "a/b", "é\"", "😀"]).unwrap());
        let model = samples::string(rng, model.as_str().unwrap());
        members.push(samples::member(rng, "model", &model));
        if rng.bool() {
            let stream = rng.choice(["true", "false", "null", "[true]"]).unwrap();
            members.push(samples::member(rng, "stream", stream));
        }
        for _ in 0..rng.usize(..3) {
            let kind = rng.choice(["\"image_url\"", "\"text\"", "\"\\u0069mage\"", "[\"image\"]"]).unwrap();
            let part = [samples::member(rng, "type", kind), samples::other_member(rng, 0, 1)];
            let part = samples::object(rng, &part);
            members.push(format!("\"part{}\":[[{part}]]", members.len()));
        }
        rng.shuffle(&mut members);
        samples::object(rng, &members)
    }

    #[test]
    fn agrees_with_a_parser_wherever_it_is_cut() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..100 {
            // Numbers that serde_json takes for infinite are not the point here.
            let body = request(&mut rng).replace("1e400", "1e40");
            let found = facts(&body);
            let named: String = serde_json::from_str(&body[found.model_range.clone()]).unwrap();
            assert_eq!(named, found.model);
            assert_eq!(
                Facts { model_range: 0..0, affinity: 0, prefix: 0, text_bytes: 0, ..found.clone() },
                expected(&body),
                "{body}"
            );
            samples::each_division(&mut rng, body.as_bytes(), |pieces| {
                assert_eq!(scan(pieces), Ok(found.clone()), "{body}")
            });
        }
    }

    #[test]
    fn refusals_do_not_depend_on_the_cuts() {
        let mut rng = Rng::with_seed(2);
        for _ in 0..100 {
            let body = request(&mut rng);
            let body = samples::broken(&mut rng, &body);
            let whole = scan(&[&body]);
            samples::each_division(&mut rng, &body, |pieces| assert_eq!(scan(pieces), whole));
        }
    }

    #[test]
    fn session_and_prompt_do_not_depend_on_the_cuts() {
        let mut rng = Rng::with_seed(3);
        for _ in 0..60 {
            let (key, text) = (samples::text(&mut rng), samples::text(&mut rng));
            let (key, text) = (samples::string(&mut rng, &key), samples::string(&mut rng, &text));
            let body = format!(
                r#"{{"user":{key},"max_tokens":1234,"model":"m","messages":[{{"content":{text}}},{{"text":{text}}}]}}"#
            );
            let whole = facts(&body);
            samples::each_division(&mut rng, body.as_bytes(), |pieces| {
                assert_eq!(scan(pieces), Ok(whole.clone()), "{body}")
            });
        }
    }
}
