//! Finds what a multipart/form-data body tells while its chunks arrive.
//!
//! Invariants: the body is read once and never copied, but for the few short values that are asked for; what two
//! parsers might take apart differently (a delimiter that goes on, folded or doubled headers, a part without a
//! plain name) is refused, so that the backend finds the same `model` that was found here.

use memchr::memchr;

use super::facts::{Affinity, BodyError, Facts, MultipartFault, SessionKey, model_name};
use super::images::{ADDRESS_LIMIT_BYTES, Kind, may_pass};
use super::parameters::{Malformed, Parameters, is_token};
use crate::config::Images;

/// The longest headers of one part: what HTTP servers allow a whole request, and a hundred times what clients send.
const HEADERS_LIMIT: usize = 8 << 10;

/// RFC 2046 §5.1.1.
const BOUNDARY_LIMIT: usize = 70;

/// Bytes kept of a value: one more than the longest address, so that a longer one is still seen to be too long.
const VALUE_LIMIT: usize = ADDRESS_LIMIT_BYTES + 1;

/// The line end before a delimiter, which belongs to it and not to the part.
const LINE_END: &[u8] = b"\r\n";

/// Where the body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In what precedes a delimiter, with so many bytes of one recognised.
    Content(usize),
    /// Behind a delimiter's boundary.
    Delimiter,
    /// Behind the first dash of the last delimiter.
    Dash,
    /// In the white space before the end of a delimiter's line.
    Padding,
    /// Behind the carriage return at the end of a delimiter's line.
    LineEnd,
    Headers,
    /// Behind the last delimiter: whatever follows is to be ignored.
    Epilogue,
}

/// What the part being read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// What precedes the first delimiter.
    Preamble,
    Model,
    Stream,
    Session(SessionKey),
    /// An image by its address, or as base64.
    Image(Kind),
    Other,
}

/// The scan of one body. After an error there is nothing more to feed.
#[derive(Debug)]
pub struct MultipartScan<'a> {
    images: &'a Images,
    /// Line end, two dashes and boundary.
    delimiter: Vec<u8>,
    state: State,
    part: Part,
    /// Bytes fed before this chunk.
    read: usize,
    /// Offset of the first byte of the part's content.
    content_start: usize,
    /// The part's headers, then the start of its value.
    held: Vec<u8>,
    model_seen: bool,
    stream_seen: bool,
    affinity: Affinity,
    facts: Facts,
}

impl<'a> MultipartScan<'a> {
    /// The scan of a body whose `content-type` is this. `images` says which addresses may stand in it.
    pub fn new(content_type: &str, images: &'a Images) -> Result<Self, BodyError> {
        let boundary = boundary(content_type).map_err(|_| BodyError::InvalidMultipart(MultipartFault::Boundary))?;
        Ok(Self {
            images,
            delimiter: [LINE_END, b"--", &boundary].concat(),
            // The first delimiter may stand at the very beginning, with no line end before it.
            state: State::Content(LINE_END.len()),
            part: Part::Preamble,
            read: 0,
            content_start: 0,
            held: Vec::new(),
            model_seen: false,
            stream_seen: false,
            affinity: Affinity::default(),
            facts: Facts::default(),
        })
    }

    /// Reads the next chunk of the body.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), BodyError> {
        let mut at = 0;
        while at < chunk.len() {
            at = match self.state {
                State::Content(matched) => self.content(chunk, at, matched)?,
                State::Headers => self.headers(chunk, at)?,
                State::Epilogue => chunk.len(),
                _ => {
                    let byte = chunk.get(at).copied().unwrap_or_default();
                    self.state = self.behind_delimiter(byte).ok_or(fault(MultipartFault::Delimiter))?;
                    at + 1
                }
            };
        }
        self.read += chunk.len();
        Ok(())
    }

    /// What the body told, if it is complete.
    pub fn finish(mut self) -> Result<Facts, BodyError> {
        if self.state != State::Epilogue {
            return Err(fault(MultipartFault::Truncated));
        }
        if !self.model_seen {
            return Err(BodyError::MissingModel);
        }
        self.facts.affinity = self.affinity.hash();
        Ok(self.facts)
    }

    /// Reads content until the chunk or the part ends; returns how far.
    fn content(&mut self, chunk: &[u8], from: usize, mut matched: usize) -> Result<usize, BodyError> {
        let mut at = from;
        while let Some(byte) = chunk.get(at) {
            if self.delimiter.get(matched) == Some(byte) {
                matched += 1;
                at += 1;
                if matched == self.delimiter.len() {
                    self.state = State::Delimiter;
                    self.end_part(self.read + at)?;
                    return Ok(at);
                }
            } else if matched > 0 {
                // A boundary holds no carriage return, so a delimiter can begin at this byte but no earlier.
                self.hold_delimiter(matched, self.read + at);
                matched = 0;
            } else {
                let rest = chunk.get(at..).unwrap_or_default();
                let run = memchr(b'\r', rest).unwrap_or(rest.len());
                if self.wants_value() {
                    hold(&mut self.held, rest.get(..run).unwrap_or_default());
                }
                at += run;
            }
        }
        self.state = State::Content(matched);
        Ok(at)
    }

    /// Keeps the bytes before `offset` that looked like the start of a delimiter. The line end before the content
    /// may have been part of the likeness; it is not part of the content.
    fn hold_delimiter(&mut self, matched: usize, offset: usize) {
        let content = matched.min(offset - self.content_start);
        if self.wants_value() {
            hold(&mut self.held, self.delimiter.get(matched - content..matched).unwrap_or_default());
        }
    }

    fn wants_value(&self) -> bool {
        !matches!(self.part, Part::Preamble | Part::Other)
    }

    /// Ends the part before the delimiter that ends at `offset`.
    fn end_part(&mut self, offset: usize) -> Result<(), BodyError> {
        let range = self.content_start..offset.saturating_sub(self.delimiter.len());
        if self.part != Part::Preamble && range.end < range.start {
            // Headers, an empty line and the delimiter: a part without content to some parsers, content to others.
            return Err(fault(MultipartFault::Delimiter));
        }
        match self.part {
            Part::Model => {
                self.facts.model = model_name(&self.held)?;
                self.facts.model_range = range;
            }
            // Python writes `True`; a form has no type that would tell it from `true`.
            Part::Stream => self.facts.stream = Some(self.held.eq_ignore_ascii_case(b"true") || self.held == b"1"),
            Part::Session(key) => self.affinity.offer(key, &self.held),
            Part::Image(kind) if !may_pass(self.images, kind, &self.held) => return Err(BodyError::ImageUrlNotAllowed),
            Part::Image(_) => {}
            Part::Preamble | Part::Other => {}
        }
        self.held.clear();
        Ok(())
    }

    fn behind_delimiter(&self, byte: u8) -> Option<State> {
        match (self.state, byte) {
            (State::Delimiter, b'-') => Some(State::Dash),
            (State::Dash, b'-') => Some(State::Epilogue),
            (State::Delimiter | State::Padding, b' ' | b'\t') => Some(State::Padding),
            (State::Delimiter | State::Padding, b'\r') => Some(State::LineEnd),
            (State::LineEnd, b'\n') => Some(State::Headers),
            _ => None,
        }
    }

    /// Reads headers until the chunk or they end; returns how far.
    fn headers(&mut self, chunk: &[u8], from: usize) -> Result<usize, BodyError> {
        let rest = chunk.get(from..).unwrap_or_default();
        let len = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        if self.held.len() + len > HEADERS_LIMIT {
            return Err(fault(MultipartFault::HeaderTooLong));
        }
        self.held.extend_from_slice(rest.get(..len).unwrap_or_default());
        let at = from + len;
        if self.held == LINE_END || self.held.ends_with(b"\r\n\r\n") {
            let named = Named::read(&self.held).map_err(|_| fault(MultipartFault::Header))?;
            self.held.clear();
            self.begin_part(&named)?;
            self.content_start = self.read + at;
            self.state = State::Content(LINE_END.len());
        }
        Ok(at)
    }

    fn begin_part(&mut self, named: &Named) -> Result<(), BodyError> {
        self.part = match named.name.as_slice() {
            b"model" if self.model_seen => return Err(BodyError::DuplicateModel),
            b"stream" if self.stream_seen => return Err(BodyError::DuplicateStream),
            b"model" if named.is_file => return Err(BodyError::ModelNotAString),
            b"model" => Part::Model,
            b"stream" => Part::Stream,
            name => match (SessionKey::named(name), Kind::of_field(name)) {
                (Some(key), _) => Part::Session(key),
                (None, kind) if kind.is_judged() && !named.is_file => Part::Image(kind),
                (None, _) => Part::Other,
            },
        };
        self.model_seen |= self.part == Part::Model;
        self.stream_seen |= self.part == Part::Stream;
        let image = named.is_file && matches!(named.name.as_slice(), b"image" | b"image[]");
        self.facts.images = self.facts.images.saturating_add(u32::from(image));
        Ok(())
    }
}

fn fault(fault: MultipartFault) -> BodyError {
    BodyError::InvalidMultipart(fault)
}

/// Adds to a value what it has room for.
fn hold(held: &mut Vec<u8>, bytes: &[u8]) {
    let room = VALUE_LIMIT.saturating_sub(held.len());
    held.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
}

/// The boundary that the content type names.
fn boundary(content_type: &str) -> Result<Vec<u8>, Malformed> {
    let (kind, mut parameters) = Parameters::split(content_type.as_bytes());
    let mut boundary = None;
    while let Some((name, value)) = parameters.next()? {
        if name.eq_ignore_ascii_case(b"boundary") && boundary.replace(value).is_some() {
            return Err(Malformed);
        }
    }
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
    match boundary {
        Some(boundary)
            if kind.eq_ignore_ascii_case(b"multipart/form-data")
                && (1..=BOUNDARY_LIMIT).contains(&boundary.len())
                && boundary.iter().all(allowed)
                && !boundary.ends_with(b" ") =>
        {
            Ok(boundary.into_owned())
        }
        _ => Err(Malformed),
    }
}

/// What a part's headers say of it.
struct Named {
    name: Vec<u8>,
    is_file: bool,
}

impl Named {
    /// Reads the headers with the empty line behind them: exactly one of them must be the disposition.
    fn read(headers: &[u8]) -> Result<Self, Malformed> {
        let mut named = None;
        let mut rest = headers;
        while let Some(end) = memchr(b'\n', rest) {
            let (line, next) = rest.split_at_checked(end + 1).ok_or(Malformed)?;
            let line = line.strip_suffix(LINE_END).ok_or(Malformed)?;
            rest = next;
            if line.is_empty() {
                break;
            }
            let colon = memchr(b':', line).ok_or(Malformed)?;
            let (name, value) = line.split_at_checked(colon).ok_or(Malformed)?;
            // Also refuses a folded line, whose first byte is white space.
            if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) || value.contains(&b'\r') {
                return Err(Malformed);
            }
            let value = value.strip_prefix(b":").unwrap_or(value);
            if name.eq_ignore_ascii_case(b"content-disposition") && named.replace(Self::disposition(value)?).is_some() {
                return Err(Malformed);
            }
        }
        named.ok_or(Malformed)
    }

    fn disposition(value: &[u8]) -> Result<Self, Malformed> {
        let (kind, mut parameters) = Parameters::split(value);
        let mut name = None;
        let mut is_file = false;
        while let Some((parameter, value)) = parameters.next()? {
            match parameter.to_ascii_lowercase().as_slice() {
                b"name" if name.replace(value).is_some() => return Err(Malformed),
                // RFC 7578 §4.2 forbids it, and a parser that reads it would find another name.
                b"name*" => return Err(Malformed),
                b"filename" | b"filename*" => is_file = true,
                _ => {}
            }
        }
        match name {
            Some(name) if kind.eq_ignore_ascii_case(b"form-data") => Ok(Self { name: name.into_owned(), is_file }),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use crate::config::ImagePolicy;
    use crate::edge::json::samples;

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=XyX";
    static PASS: Images = Images { policy: ImagePolicy::Pass, domains: Vec::new() };

    fn scan(pieces: &[&[u8]]) -> Result<Facts, BodyError> {
        let mut scan = MultipartScan::new(TYPE, &PASS).unwrap();
        pieces.iter().try_for_each(|piece| scan.feed(piece))?;
        scan.finish()
    }

    fn part(disposition: &str, value: &str) -> String {
        format!("--XyX\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{value}\r\n")
    }

    fn form(parts: &[(&str, &str)]) -> String {
        let parts: String = parts.iter().map(|(disposition, value)| part(disposition, value)).collect();
        parts + "--XyX--\r\n"
    }

    fn facts(body: &str) -> Facts {
        scan(&[body.as_bytes()]).unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    #[test]
    fn addresses_of_images_are_judged() {
        let inline = Images { policy: ImagePolicy::DataOnly, domains: Vec::new() };
        let allow = Images { policy: ImagePolicy::Allow, domains: vec!["a.example".into()] };
        let long = format!("https://a.example/{}", "a".repeat(ADDRESS_LIMIT_BYTES));
        for (images, name, value, passes) in [
            (&PASS, "url", "http://x/", true),
            (&inline, "url", "http://x/", false),
            (&inline, "url[]", "file:///x", false),
            (&inline, "url", "data:,", true),
            (&inline, "image", "iVBORw0KGgo=", true),
            (&inline, "image", "/etc/passwd", false),
            (&inline, "image\"; filename=\"x.png", "http://is-the-files-content/", true),
            (&inline, "prompt", "see http://x/", true),
            (&allow, "url", "https://a.example/", true),
            (&allow, "url", &long, false),
        ] {
            let part = |name: &str, value: &str| {
                format!("--XyX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
            };
            let body = format!("{}{}--XyX--", part("model", "m"), part(name, value));
            let mut scan = MultipartScan::new(TYPE, images).unwrap();
            let scanned = body.as_bytes().chunks(7).try_for_each(|piece| scan.feed(piece));
            let expected = if passes { Ok(()) } else { Err(BodyError::ImageUrlNotAllowed) };
            assert_eq!(scanned, expected, "{name}={value}");
        }
    }

    #[test]
    fn an_image_edit() {
        let body = form(&[
            ("name=\"image[]\"; filename=\"a.png\"", "\u{89}PNG\r\n--Xy"),
            ("name=\"image\"; filename=\"b.png\"", ""),
            ("name=image", "not a file"),
            ("name=\"mask\"; filename=\"c.png\"", "model"),
            ("name=\"model\"", "flux/dev"),
            ("name=stream", "true"),
            ("name=\"user\"", "u"),
        ]);
        let facts = facts(&body);
        assert_eq!((facts.model.as_str(), &body[facts.model_range.clone()]), ("flux/dev", "flux/dev"));
        assert_eq!((facts.stream, facts.images, facts.prefix), (Some(true), 2, 0));
        assert_eq!(facts.affinity, {
            let mut affinity = Affinity::default();
            affinity.offer(SessionKey::User, b"u");
            affinity.hash()
        });
    }

    #[test]
    fn unusual_forms() {
        let model = part("name=\"model\"", "m");
        for body in [
            format!("{model}--XyX--"),
            format!("\r\n{model}--XyX--\r\n"),
            format!("preamble\r\nmore --XyX\r\n{model}--XyX--\r\nepilogue\r\n--XyX\r\nwhatever"),
            format!("--XyX \t \r\n{}--XyX--\r\n", model.strip_prefix("--XyX\r\n").unwrap()),
            model.replace("Content-Disposition", "content-disPosition") + "--XyX--",
            model.replace("form-data", "Form-Data").replace("name=", "NAME=") + "--XyX--",
            model.replace("\r\n\r\n", "\r\nContent-Type: text/plain\r\nX:\r\n\r\n") + "--XyX--",
            model.replace("\"model\"", r#""\model""#) + "--XyX--",
        ] {
            let facts = facts(&body);
            assert_eq!((facts.model.as_str(), &body[facts.model_range]), ("m", "m"), "{body}");
        }
    }

    #[test]
    fn what_refuses_a_form() {
        use MultipartFault::{Delimiter, Header, HeaderTooLong, Truncated};
        let model = part("name=\"model\"", "m");
        let fault = BodyError::InvalidMultipart;
        let with_header = |header: &str| format!("--XyX\r\n{header}\r\n\r\nm\r\n--XyX--");
        let long = with_header(&format!("X: {}", "x".repeat(9000)));
        for (body, error) in [
            (String::new(), fault(Truncated)),
            ("--XyX--".into(), BodyError::MissingModel),
            (form(&[("name=\"Model\"", "m"), ("name=\"x\"; filename=\"model\"", "m")]), BodyError::MissingModel),
            (model.clone(), fault(Truncated)),
            (format!("{model}--XyX"), fault(Truncated)),
            (format!("{model}--XyX-"), fault(Truncated)),
            (format!("{model}--XyX-x"), fault(Delimiter)),
            (format!("{model}--XyXX--"), fault(Delimiter)),
            (format!("{model}--XyX --"), fault(Delimiter)),
            (format!("{model}--XyX\n"), fault(Delimiter)),
            (format!("{model}--XyX\rX"), fault(Delimiter)),
            // One parser's part without content is another's content.
            ("--XyX\r\nContent-Disposition: form-data; name=x\r\n\r\n--XyX--".into(), fault(Delimiter)),
            ("--XyX\r\n\r\n\r\n--XyX--".into(), fault(Header)),
            ("--XyX\r\n\r\nm\r\n--XyX--".into(), fault(Header)),
            (with_header("Content-Type: text/plain"), fault(Header)),
            (with_header("Content-Disposition: attachment; name=model"), fault(Header)),
            (with_header("Content-Disposition: form-data"), fault(Header)),
            (with_header("Content-Disposition: form-data; name=\"model"), fault(Header)),
            (with_header("Content-Disposition: form-data; name=x; name=model"), fault(Header)),
            (with_header("Content-Disposition: form-data; name=x; name*=utf-8''model"), fault(Header)),
            (
                with_header("Content-Disposition: form-data; name=x\r\nContent-Disposition: form-data; name=model"),
                fault(Header),
            ),
            (with_header("Content-Disposition: form-data;\r\n name=model"), fault(Header)),
            (with_header("Content-Disposition : form-data; name=model"), fault(Header)),
            (with_header("Content-Disposition: form-data; name=model\nX: y"), fault(Header)),
            (with_header("Content-Disposition: form-data; name=model\rX: y"), fault(Header)),
            (with_header("no colon"), fault(Header)),
            (with_header("X: y\rZ: z\r\nContent-Disposition: form-data; name=model"), fault(Header)),
            (long, fault(HeaderTooLong)),
            (form(&[("name=model", "a"), ("name=\"model\"", "a")]), BodyError::DuplicateModel),
            (form(&[("name=stream", "true"), ("name=stream", "true")]), BodyError::DuplicateStream),
            (form(&[("name=model; filename=m", "a")]), BodyError::ModelNotAString),
            (form(&[("name=model", "")]), BodyError::BadModelName),
            (form(&[("name=model", "a\r\nb")]), BodyError::BadModelName),
            (form(&[("name=model", &"x".repeat(2000))]), BodyError::BadModelName),
        ] {
            assert_eq!(scan(&[body.as_bytes()]), Err(error), "{body}");
        }
    }

    #[test]
    fn headers_up_to_the_limit() {
        let headers = |len: usize| {
            let fixed = "Content-Disposition: form-data; name=model\r\nX: \r\n\r\n";
            let padding = "x".repeat(len - fixed.len());
            format!("--XyX\r\n{}m\r\n--XyX--", fixed.replace("X: ", &format!("X: {padding}")))
        };
        assert_eq!(facts(&headers(HEADERS_LIMIT)).model, "m");
        let error = BodyError::InvalidMultipart(MultipartFault::HeaderTooLong);
        assert_eq!(scan(&[headers(HEADERS_LIMIT + 1).as_bytes()]), Err(error));
    }

    #[test]
    fn boundaries() {
        let seventy = "b".repeat(70);
        for (content_type, boundary) in [
            ("multipart/form-data; boundary=abc", "abc"),
            ("Multipart/Form-Data;charset=utf-8;BOUNDARY=abc;x=y", "abc"),
            ("multipart/form-data; boundary=\"a b:c/d=e?(f),.'+_-\"", "a b:c/d=e?(f),.'+_-"),
            (
                "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
                "----WebKitFormBoundary7MA4YWxkTrZu0gW",
            ),
            (&format!("multipart/form-data; boundary={seventy}"), &seventy),
        ] {
            assert_eq!(
                MultipartScan::new(content_type, &PASS).unwrap().delimiter,
                [b"\r\n--", boundary.as_bytes()].concat()
            );
        }
        for content_type in [
            "",
            "multipart/form-data",
            "multipart/mixed; boundary=a",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"\"",
            "multipart/form-data; boundary=\"a \"",
            "multipart/form-data; boundary=a; boundary=a",
            "multipart/form-data; boundary=\"a",
            "multipart/form-data; boundary=a*b",
            "multipart/form-data; boundary=é",
            "multipart/form-data; boundary=\"a\r\nb\"",
            &format!("multipart/form-data; boundary={seventy}b"),
        ] {
            let error = MultipartScan::new(content_type, &PASS).unwrap_err();
            assert_eq!(error, BodyError::InvalidMultipart(MultipartFault::Boundary), "{content_type}");
        }
    }

    fn random_form(rng: &mut Rng) -> (String, String) {
        const CONTENTS: [&str; 12] = [
            "",
            "a",
            "\r",
            "\n",
            "\r\n",
            "\r\n-",
            "\r\n--",
            "\r\n--X",
            "\r\n--Xy",
            "--XyX",
            "\r\r\n--XyY",
            "\n--XyX--\r",
        ];
        let content = |rng: &mut Rng| -> String {
            let mut contents =
                std::iter::repeat_with(|| (0..rng.usize(..5)).map(|_| rng.choice(CONTENTS).unwrap()).collect());
            // Put together, they may be the delimiter itself, which no content holds.
            contents.find(|content: &String| !content.contains("\r\n--XyX")).unwrap()
        };
        // The first byte keeps a part from beginning with the delimiter, which is refused.
        let mut parts: Vec<_> =
            (0..rng.usize(..4)).map(|at| part(&format!("name=p{at}"), &format!("c{}", content(rng)))).collect();
        let model = format!("m{}", rng.choice(["", "-", "--XyX", "/b", "é"]).unwrap());
        parts.push(part("name=\"model\"", &model));
        rng.shuffle(&mut parts);
        (format!("{}--XyX--{}", parts.concat(), content(rng)), model)
    }

    #[test]
    fn finds_the_same_wherever_it_is_cut() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..300 {
            let (body, model) = random_form(&mut rng);
            let whole = facts(&body);
            assert_eq!((&body[whole.model_range.clone()], &whole.model), (model.as_str(), &model));
            samples::each_division(&mut rng, body.as_bytes(), |pieces| {
                assert_eq!(scan(pieces), Ok(whole.clone()), "{body}")
            });
        }
    }

    #[test]
    fn refuses_the_same_wherever_it_is_cut() {
        let mut rng = Rng::with_seed(2);
        for _ in 0..300 {
            let (body, _) = random_form(&mut rng);
            let body = samples::broken(&mut rng, &body);
            let whole = scan(&[&body]);
            samples::each_division(&mut rng, &body, |pieces| assert_eq!(scan(pieces), whole));
        }
    }

    #[test]
    fn values_are_what_the_range_says() {
        // What looks like a delimiter's start must be in the value too, cut anywhere.
        let mut rng = Rng::with_seed(3);
        for user in ["\r\n--Xy", "\r\n--X\r\n--XyY", "-", "--Xy", "--X", "\r\r\r\n--", "a\r"] {
            let body = form(&[("name=user", user), ("name=model", "m")]);
            let mut affinity = Affinity::default();
            affinity.offer(SessionKey::User, user.as_bytes());
            samples::each_division(&mut rng, body.as_bytes(), |pieces| {
                assert_eq!(scan(pieces).unwrap().affinity, affinity.hash(), "{user:?}");
            });
        }
    }
}
