//! Who may ask, and for which images: `[[keys]]` and `[images]`.
//!
//! A client's key is never in the configuration, only its SHA-256, from which nobody gets it back: keys are random.

use std::collections::BTreeSet;

use toml::Value;

use super::document::{Findings, join};
use super::file;
use super::notation::{Notation, Wrong, describe, text};

/// `[[keys]]`: a key that clients may have, and how much they may ask for with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyConfig {
    /// Unique; whose key it is, in metrics and the admin API.
    pub name: String,
    /// SHA-256 of the key.
    pub sha256: [u8; 32],
    /// Requests a minute; `None`: any number.
    pub requests_per_minute: Option<u32>,
    /// Requests at once, over all workers.
    pub concurrency: Option<u32>,
    /// Bytes of request bodies a minute.
    pub bytes_per_minute: Option<u64>,
}

/// `[images]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Which addresses of images may go to a backend.
    pub policy: ImagePolicy,
    /// With [`ImagePolicy::Allow`]: hosts, with a port where it is not the scheme's own; `*.example.com` is every name
    /// below `example.com`.
    pub domains: Vec<String>,
}

/// Which addresses of images may go to a backend, which would fetch them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePolicy {
    /// All; nothing is looked at.
    Pass,
    /// None: images come inline.
    DataOnly,
    /// Inline ones, and those of the listed domains.
    Allow,
}

impl ImagePolicy {
    const ALL: [Self; 3] = [Self::Pass, Self::DataOnly, Self::Allow];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::DataOnly => "data-only",
            Self::Allow => "allow",
        }
    }
}

impl Notation for ImagePolicy {
    const FORM: &'static str = "\"pass\", \"data-only\" or \"allow\"";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let name = text(value)?;
        Self::ALL.into_iter().find(|policy| policy.name() == name).ok_or(Wrong::Form)
    }
}

/// The hash of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyHash([u8; 32]);

impl Notation for KeyHash {
    const FORM: &'static str = "64 hex digits, the SHA-256 of the key";

    /// Quotes nothing: what stands here by mistake may be the key itself.
    fn read(value: &Value) -> Result<Self, Wrong> {
        let hash = value.as_str().and_then(|text| {
            let digits: Vec<u8> = text
                .chars()
                .map(|char| char.to_digit(16).and_then(|digit| digit.try_into().ok()))
                .collect::<Option<_>>()?;
            let (pairs, []) = digits.as_chunks::<2>() else { return None };
            let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
            bytes.try_into().ok()
        });
        let wrong = || {
            Wrong::Because(format!(
                "should be {}, as `vision-proxy key new` prints it; the key itself is never written here",
                Self::FORM
            ))
        };
        hash.map(Self).ok_or_else(wrong)
    }
}

/// Hosts that images may come from, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Domains(Vec<String>);

impl Notation for Domains {
    const FORM: &'static str =
        "a list of hosts in small letters, such as [\"images.example.com\", \"*.cdn.example.com\", \"files:8443\"]";

    fn read(value: &Value) -> Result<Self, Wrong> {
        let domains = value.as_array().filter(|domains| !domains.is_empty()).ok_or(Wrong::Form)?;
        let domain = |value: &Value| match value.as_str().filter(|domain| is_domain(domain)) {
            Some(domain) => Ok(domain.to_owned()),
            None => Err(Wrong::Because(format!("should be {}; {} is none", Self::FORM, describe(value)))),
        };
        Ok(Self(domains.iter().map(domain).collect::<Result<_, _>>()?))
    }
}

/// Whether an address could have this host: what never matches is a mistake. `*` stands for one or more labels.
fn is_domain(domain: &str) -> bool {
    let host = domain.strip_prefix("*.").unwrap_or(domain);
    let address = format!("https://{host}/");
    let parsed = url::Url::parse(&address);
    !host.is_empty() && !host.contains(['/', '@', '?', '#']) && parsed.is_ok_and(|url| url.as_str() == address)
}

/// Turns what was typed into keys; what is wrong goes to `findings`.
pub(super) fn keys(findings: &mut Findings, typed: Vec<file::Key>) -> Vec<KeyConfig> {
    let (mut names, mut hashes) = (BTreeSet::new(), BTreeSet::new());
    let mut key = |(at, typed): (usize, file::Key)| {
        let key = format!("keys[{at}]");
        let missing = |name: &str, is_there: bool, example: &str, findings: &mut Findings| {
            let place = join(&key, name);
            if !is_there && findings.is_sound(&place) {
                findings.add(&place, format!("is missing; {example}"));
            }
        };
        missing("name", typed.name.is_some(), "whose key is it? Such as name = \"team-a\"", findings);
        missing("sha256", typed.sha256.is_some(), "`vision-proxy key new NAME` makes a key and prints it", findings);
        let (name, sha256) = (typed.name?.0.0, typed.sha256?.0.0);
        if !names.insert(name.clone()) {
            findings.add(&join(&key, "name"), format!("{name:?} is taken; every key needs a name of its own"));
        }
        if !hashes.insert(sha256) {
            findings.add(&join(&key, "sha256"), "this key is there already; one key cannot have two names");
        }
        Some(KeyConfig {
            name,
            sha256,
            requests_per_minute: typed.requests_per_minute.map(|limit| limit.0.get()),
            concurrency: typed.concurrency.map(|limit| limit.0.get()),
            bytes_per_minute: typed.bytes_per_minute.map(|limit| limit.0.0),
        })
    };
    typed.into_iter().enumerate().filter_map(&mut key).collect()
}

/// Turns what was typed into a policy; what is wrong goes to `findings`.
pub(super) fn images(findings: &mut Findings, typed: file::Images) -> Images {
    let policy = typed.policy.map_or(ImagePolicy::Pass, |policy| policy.0);
    let domains = typed.domains.map(|domains| domains.0.0).unwrap_or_default();
    let is_sound = findings.is_sound("images");
    if policy == ImagePolicy::Allow && domains.is_empty() && is_sound {
        findings
            .add("images.policy", "\"allow\" needs the domains to allow, such as domains = [\"images.example.com\"]");
    }
    if policy != ImagePolicy::Allow && !domains.is_empty() && is_sound {
        findings.add("images.domains", "means nothing here: policy = \"allow\" would heed it");
    }
    Images { policy, domains }
}
