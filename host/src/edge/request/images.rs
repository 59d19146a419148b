//! Which addresses of images may go to a backend (`[images]` of the configuration). Pure.
//!
//! An engine fetches what it is told to, from inside the network it stands in, so an address that is read one way
//! here and another way there would be a hole (CVE-2026-24779). Therefore an address is parsed as browsers do (WHATWG)
//! and passes only where it is its own normalised form: then there is but one way to read it.

use url::{Host, Url};

use crate::config::{ImagePolicy, Images};
use crate::edge::json::Token;

/// Longest address that is not an image itself; signed ones of object stores have two thousand bytes.
pub const ADDRESS_LIMIT_BYTES: usize = 8 << 10;

/// No file's path is longer (`PATH_MAX` of Linux, its NUL included).
const PATH_LIMIT_BYTES: usize = 4096;

/// Members that hold an address, or an object with it.
const ADDRESSES: [&[u8]; 5] = [b"image_url", b"video_url", b"audio_url", b"file_url", b"document_url"];
/// Members that hold an image, a film or a sound, or a list of them: bare base64 to some engines, an address or a file's
/// path to others; or an object with it under `data`, or with an address under `url`.
const MEDIA: [&[u8]; 11] = [
    b"image",
    b"images",
    b"video",
    b"audio",
    b"image_data",
    b"video_data",
    b"audio_data",
    b"input_image",
    b"input_audio",
    b"multimodal_data",
    b"ref_audio",
];
/// Members that hold an object, or a list of them, whose `url` is an address. Any other `url` is somebody's own word:
/// what a tool was called with, say.
const HOLDERS: [&[u8]; 2] = [b"source", b"content"];
/// How base64 begins of what engines take: PNG, JPEG, GIF, BMP, both TIFF, RIFF (WebP, WAV), Ogg, FLAC, MP3 with its tag,
/// WebM. A path that begins so is nobody's: JPEG's is `/9j/`.
const BEGINNINGS: [&[u8]; 11] =
    [b"iVBORw0KGgo", b"/9j/", b"R0lGOD", b"Qk", b"SUkqA", b"TU0AK", b"UklGR", b"T2dnUw", b"ZkxhQ", b"SUQz", b"GkXfo"];

/// What a value is, by the name of its member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing of interest.
    Other,
    /// An object whose `url` is an address; a list of such.
    Holder,
    /// The same, and its `data` is a medium.
    MediaHolder,
    Address,
    Media,
}

impl Kind {
    /// What the member of an object of this kind is.
    fn of_member(self, key: &[u8]) -> Self {
        match key {
            b"url" if matches!(self, Self::Holder | Self::MediaHolder) => Self::Address,
            b"data" if self == Self::MediaHolder => Self::Media,
            _ if ADDRESSES.contains(&key) => Self::Address,
            _ if MEDIA.contains(&key) => Self::Media,
            _ if HOLDERS.contains(&key) => Self::Holder,
            _ => Self::Other,
        }
    }

    /// What a field of a form is; lists are written `name[]`.
    pub fn of_field(name: &[u8]) -> Self {
        Self::Holder.of_member(name.strip_suffix(b"[]").unwrap_or(name))
    }

    /// What an object is that stands where this is expected.
    fn object(self) -> Self {
        match self {
            Self::Other => Self::Other,
            Self::Holder | Self::Address => Self::Holder,
            Self::MediaHolder | Self::Media => Self::MediaHolder,
        }
    }

    /// Whether a text of this kind is judged.
    pub fn is_judged(self) -> bool {
        matches!(self, Self::Address | Self::Media)
    }
}

/// Follows a JSON body to the texts that are addresses.
#[derive(Debug)]
pub struct Watch<'a> {
    rules: &'a Images,
    /// What the open objects and lists are, the outermost first.
    open: Vec<Kind>,
    /// What the member is whose name was read last; `None` behind its value.
    member: Option<Kind>,
}

impl<'a> Watch<'a> {
    pub fn new(rules: &'a Images) -> Self {
        Self { rules, open: Vec::new(), member: None }
    }

    /// Whether there is anything to be watched for.
    pub fn is_on(&self) -> bool {
        self.rules.policy != ImagePolicy::Pass
    }

    /// What the next value is, if it is no member's name.
    fn next(&self) -> Kind {
        self.member.or(self.open.last().copied()).unwrap_or(Kind::Other)
    }

    /// Whether the text of the next value is needed.
    pub fn wants_text(&self) -> bool {
        self.next().is_judged()
    }

    /// Takes note of a token and its text; false where that is an address that may not pass.
    pub fn may_pass(&mut self, token: Token, text: &[u8]) -> bool {
        let kind = self.next();
        self.member = None;
        match token {
            Token::Key => {
                self.member = Some(self.open.last().map_or(Kind::Other, |around| around.of_member(text)));
            }
            Token::Object => self.open.push(kind.object()),
            Token::Array => self.open.push(kind),
            Token::ObjectEnd | Token::ArrayEnd => drop(self.open.pop()),
            Token::String => return !kind.is_judged() || may_pass(self.rules, kind, text),
            Token::Number | Token::True | Token::False | Token::Null => {}
        }
        true
    }
}

/// Whether this text, of which [`ADDRESS_LIMIT_BYTES`] and one more were kept, may go on.
pub fn may_pass(rules: &Images, kind: Kind, text: &[u8]) -> bool {
    if rules.policy == ImagePolicy::Pass || text.starts_with(b"data:") {
        return true;
    }
    if kind == Kind::Media && is_base64(text) {
        return true;
    }
    let is_listed = |url: &Url| rules.domains.iter().any(|domain| is_within(url, domain));
    rules.policy == ImagePolicy::Allow && unambiguous(text).as_ref().is_some_and(is_listed)
}

/// Whether a text is base64 to every reader, though a path may be written with the same letters: it begins as what engines
/// take does, or is too long for a path. (Readers take several slashes in a row for one.)
fn is_base64(text: &[u8]) -> bool {
    let is_of_it = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(byte);
    // MP4, HEIC and AVIF say so behind four bytes of length: "ftyp".
    let is_boxed = text.starts_with(b"AAAA") && text.get(6..10) == Some(b"Z0eX");
    let begins_well = || is_boxed || BEGINNINGS.iter().any(|beginning| text.starts_with(beginning));
    let path_bytes = || text.chunk_by(|before, after| before == after && *after == b'/').count();
    text.iter().all(is_of_it) && (text.is_empty() || begins_well() || path_bytes() >= PATH_LIMIT_BYTES)
}

/// The address, where everybody reads the same in it.
fn unambiguous(text: &[u8]) -> Option<Url> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= ADDRESS_LIMIT_BYTES)?;
    let url = Url::parse(text).ok().filter(|url| url.as_str() == text)?;
    let is_plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    // What WHATWG leaves as it is in a path or query, but others take for a separator.
    (is_plain && !text.contains(['\\', '@'])).then_some(url)
}

/// Whether an address is of this domain: `host`, `host:port` or `*.host`.
fn is_within(url: &Url, domain: &str) -> bool {
    let Some(host) = url.host_str() else { return false };
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    match domain.strip_prefix('*') {
        Some(above) => matches!(url.host(), Some(Host::Domain(_))) && authority.ends_with(above),
        None => authority == domain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(policy: ImagePolicy, domains: &[&str]) -> Images {
        Images { policy, domains: domains.iter().map(ToString::to_string).collect() }
    }

    fn addresses<'a>(rules: &Images, among: &[&'a str]) -> Vec<&'a str> {
        among.iter().filter(|text| may_pass(rules, Kind::Address, text.as_bytes())).copied().collect()
    }

    #[test]
    fn everything_passes_where_nothing_is_said() {
        let odd = ["http://10.0.0.1/", "file:///etc/passwd", "https:\\\\x", "", "data:,"];
        assert_eq!(addresses(&rules(ImagePolicy::Pass, &[]), &odd), odd);
    }

    #[test]
    fn inline_images_alone() {
        let inline = rules(ImagePolicy::DataOnly, &[]);
        let long = format!("data:image/png;base64,{}", "A".repeat(100_000));
        assert_eq!(addresses(&inline, &["data:image/png;base64,AA==", "data:,", &long]).len(), 3);
        let others =
            ["https://images.example.com/a.png", "file:///etc/passwd", "/etc/passwd", "AAAA", "", " data:,", "DATA:,"];
        assert_eq!(addresses(&inline, &others), [""; 0]);
    }

    #[test]
    fn base64_stands_where_an_image_does_and_a_path_does_not() {
        let sound = "1AAx".repeat(PATH_LIMIT_BYTES / 4);
        let slashes = "/".repeat(2 * PATH_LIMIT_BYTES) + "etc/passwd";
        for policy in [ImagePolicy::DataOnly, ImagePolicy::Allow] {
            let media = |text: &str| may_pass(&rules(policy, &["a.example"]), Kind::Media, text.as_bytes());
            for good in [
                "",
                "data:image/png;base64,AA==",
                "iVBORw0KGgo+/-_==",
                "/9j/4AAQSkZJRg\r\nABAQ",
                "R0lGODlhAQABAAAAACw=",
                "UklGRiQAAABXQVZF",
                "AAAAIGZ0eXBpc29t",
                "AAAAHGZ0eXBhdmlm",
                &sound,
            ] {
                assert!(media(good), "{good}");
            }
            for bad in [
                "/etc/passwd",
                "//etc/passwd",
                "/proc/self/environ",
                "etc/shadow",
                "secret",
                "/etc/apng",
                "//tmp/x=",
                "AAAA",
                "AAAA/etc/x",
                "9j/x",
                &slashes,
                "/etc/passwd.png",
                "http://b.example/",
                "file:/x",
                "a b",
            ] {
                assert!(!media(bad), "{bad}");
            }
        }
    }

    #[test]
    fn listed_domains_and_no_others() {
        let listed = rules(ImagePolicy::Allow, &["images.example.com", "*.cdn.example.com", "files:8443"]);
        let good = [
            "https://images.example.com/a.png",
            "http://images.example.com/a%20b.png?x=1&y=%2F#z",
            "https://eu.west.cdn.example.com/",
            "https://files:8443/x",
            "data:image/png;base64,AA==",
        ];
        assert_eq!(addresses(&listed, &good), good);
        let bad = [
            "https://example.com/",
            "https://evil.example/images.example.com",
            "https://images.example.com.evil.example/",
            "https://evilcdn.example.com/",
            "https://cdn.example.com/",
            "https://images.example.com:8443/",
            "https://files/x",
            "ftp://images.example.com/",
            "file:///etc/passwd",
            "file://images.example.com/etc/passwd",
            "//images.example.com/",
            "images.example.com",
        ];
        assert_eq!(addresses(&listed, &bad), [""; 0]);
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways() {
        let listed = rules(ImagePolicy::Allow, &["images.example.com", "127.0.0.1", "*.example.com"]);
        let long = format!("https://images.example.com/{}", "a".repeat(ADDRESS_LIMIT_BYTES));
        let bad = [
            "https://images.example.com\\@evil.example/",
            "https://images.example.com/\\evil",
            "https://images.example.com/?x=\\",
            "https://evil.example\\.images.example.com/",
            "https://user@images.example.com/",
            "https://user:pass@images.example.com/",
            "https://@images.example.com/",
            "https://images.example.com/@evil.example",
            "https://IMAGES.example.com/",
            "HTTPS://images.example.com/",
            "https:images.example.com/",
            "https:/images.example.com/",
            "https:///images.example.com/",
            "https://images.example.com",
            "https://images.example.com:443/",
            "https://images.example.com/a/../b",
            "https://images.example.com/%2e%2e/b",
            "https://images.example.com/ ",
            " https://images.example.com/",
            "https://images.example.com/\t",
            "https://ima\nges.example.com/",
            "https://images.example.com/é",
            "https://images。example.com/",
            "https://ｉmages.example.com/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://2130706433/",
            "http://127.1/",
            &long,
        ];
        assert_eq!(addresses(&listed, &bad), [""; 0]);
        assert_eq!(addresses(&listed, &["http://127.0.0.1/"]), ["http://127.0.0.1/"], "listed, and plain");
    }

    #[test]
    fn fields_of_forms_that_name_images() {
        for (name, kind) in [
            ("url", Kind::Address),
            ("url[]", Kind::Address),
            ("image_url", Kind::Address),
            ("image[]", Kind::Media),
            ("ref_audio", Kind::Media),
            ("data", Kind::Other),
            ("model", Kind::Other),
            ("prompt", Kind::Other),
        ] {
            assert_eq!(Kind::of_field(name.as_bytes()), kind, "{name}");
        }
    }
}
