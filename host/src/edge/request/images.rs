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

/// Members that hold an address, or an object with it.
const ADDRESSES: [&[u8]; 4] = [b"image_url", b"video_url", b"audio_url", b"file_url"];
/// Members that hold an image, or a list of them: bare base64 to some engines, an address or a file's path to others.
const MEDIA: [&[u8]; 4] = [b"image", b"images", b"video", b"audio"];
/// Members that hold an object, or a list of them, whose `url` is an address. Any other `url` is somebody's own word:
/// what a tool was called with, say.
const HOLDERS: [&[u8]; 2] = [b"source", b"content"];

/// What a value is, by the name of its member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing of interest.
    Other,
    /// An object whose `url` is an address; a list of such.
    Holder,
    Address,
    Media,
}

impl Kind {
    fn of_member(key: &[u8], is_in_holder: bool) -> Self {
        match key {
            b"url" if is_in_holder => Self::Address,
            _ if ADDRESSES.contains(&key) => Self::Address,
            _ if MEDIA.contains(&key) => Self::Media,
            _ if HOLDERS.contains(&key) => Self::Holder,
            _ => Self::Other,
        }
    }

    /// What a field of a form is; lists are written `name[]`.
    pub fn of_field(name: &[u8]) -> Self {
        Self::of_member(name.strip_suffix(b"[]").unwrap_or(name), true)
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
                self.member = Some(Kind::of_member(text, self.open.last() == Some(&Kind::Holder)));
            }
            Token::Object => self.open.push(if kind == Kind::Other { kind } else { Kind::Holder }),
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
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(byte);
    if rules.policy == ImagePolicy::Pass || text.starts_with(b"data:") {
        return true;
    }
    if kind == Kind::Media && text.iter().all(is_base64) {
        return true;
    }
    let is_listed = |url: &Url| rules.domains.iter().any(|domain| is_within(url, domain));
    rules.policy == ImagePolicy::Allow && unambiguous(text).as_ref().is_some_and(is_listed)
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
    fn base64_stands_where_an_image_does() {
        for policy in [ImagePolicy::DataOnly, ImagePolicy::Allow] {
            let media = |text: &str| may_pass(&rules(policy, &["a.example"]), Kind::Media, text.as_bytes());
            assert!(media("iVBORw0KGgo+/-_==") && media("") && media("data:image/png;base64,AA=="));
            assert!(!media("/etc/passwd.png") && !media("http://b.example/") && !media("file:/x") && !media("a b"));
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
            ("model", Kind::Other),
            ("prompt", Kind::Other),
        ] {
            assert_eq!(Kind::of_field(name.as_bytes()), kind, "{name}");
        }
    }
}
