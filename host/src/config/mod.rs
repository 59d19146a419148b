//! What the configuration means: the typed result of reading the file, with every default applied.
//!
//! Nothing here is optional that has a default; nothing here is text that has a meaning. What was typed
//! lives in `file`, how it becomes this in `meaning`. Every mistake is told at once, with its key and line, and
//! a secret is never written, printed or quoted.

mod access;
mod backends;
mod document;
mod engine;
mod file;
mod meaning;
mod names;
mod networks;
mod notation;
mod registration;
mod secret;
mod suggest;
mod tls;
mod url;
mod warnings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use subtle::ConstantTimeEq;

pub use access::{ImagePolicy, Images, KeyConfig};
pub use engine::Engine;
pub use meaning::{Overrides, files, find, load, parse};
pub use registration::{Registration, registration};
pub use tls::{BackendTls, ListenTls};
pub use url::UrlMistake;

/// A complete, valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where applications connect.
    pub listen: SocketAddr,
    /// Dashboard, metrics and admin API.
    pub admin: SocketAddr,
    /// TLS on `listen`; `None`: clear text.
    pub tls: Option<ListenTls>,
    /// Bearer token for changes through the admin listener.
    pub admin_token: Option<Secret>,
    /// Worker threads; never 0 (0 in the file becomes one a core).
    pub workers: usize,
    /// Whether answers carry the `x-vision-proxy-*` headers.
    pub reveal: bool,
    /// Peers that are believed what they say of the clients behind them.
    pub trusted_proxies: Vec<IpNet>,
    /// Who may ask; nobody has to say who they are where it is empty.
    pub keys: Vec<KeyConfig>,
    /// Which addresses of images may go to a backend.
    pub images: Images,
    /// Which plugins run, with what.
    pub plugins: Plugins,
    /// `[models]`: public name → the names it may have on backends, best first.
    pub models: BTreeMap<String, Vec<String>>,
    /// Those of the file, then those of the command line.
    pub backends: Vec<BackendConfig>,
    /// When a backend counts as busy.
    pub capacity: Capacity,
    /// Where requests wait when all is busy.
    pub queue: Queue,
    /// What happens when an attempt fails.
    pub failover: Failover,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// How large things may be.
    pub limits: Limits,
}

/// `[plugins]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugins {
    /// The watched folder; relative to the configuration file's folder. It need not exist.
    pub dir: PathBuf,
    /// Name of the active policy.
    pub policy: String,
    /// Name of the active translator.
    pub translator: String,
    /// `[plugins.settings.NAME]` as JSON.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// What one instance may use.
    pub limits: PluginLimits,
    /// Plugin name → SHA-256 (64 lower-case hex digits) that alone may run under it.
    pub pins: BTreeMap<String, String>,
    /// Public keys of minisign, one of which must have signed a file for it to run. Empty: none need be signed.
    pub trusted_keys: Vec<String>,
}

impl Plugins {
    /// Whether this name is one of those that are set to work.
    pub fn is_active(&self, name: &str) -> bool {
        [&self.policy, &self.translator].into_iter().any(|active| active == name)
    }
}

/// `[plugins.limits]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluginLimits {
    /// Fuel of one pick.
    pub fuel: u64,
    /// Linear memory of one instance, in bytes.
    pub memory_bytes: usize,
}

/// `[[backends]]`, or one `--backend`.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendConfig {
    /// Unique; `host:port` where none was given.
    pub name: String,
    /// Where it listens.
    pub url: BackendUrl,
    /// There where `url` is `https://`, and only there.
    pub tls: Option<BackendTls>,
    /// Where its metrics are, if not behind `url`.
    pub metrics: Option<MetricsAt>,
    /// `None` is `"auto"`: found out by asking.
    pub engine: Option<Engine>,
    /// Configured slots; `None`: what the engine reports, else learned.
    pub slots: Option<u32>,
    /// Its share against the others, for policies that heed it; at least 1.
    pub weight: u32,
    /// Used once every backend of a lower tier is down, or has been busy for `queue.spill_after`.
    pub tier: u32,
    /// Free words about it, for people and plugins.
    pub labels: BTreeMap<String, String>,
    /// Public name → native name on this backend.
    pub models: BTreeMap<String, String>,
    /// Bearer token it is sent.
    pub api_key: Option<Secret>,
}

/// `metrics_url` of a backend.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsAt {
    /// The page itself; where it has no path, the engine's usual one is asked for there.
    pub url: BackendUrl,
    /// There where `url` is `https://`, and only there.
    pub tls: Option<BackendTls>,
}

/// An `http://` or `https://` base address, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackendUrl {
    pub is_https: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// 80 where none was written, or 443.
    pub port: u16,
    /// Path before every request path, without a trailing slash; empty for most. A trailing `/v1` is
    /// taken off, for the base URLs of OpenAI clients end so.
    pub prefix: String,
}

impl BackendUrl {
    /// Whether both are one server, spoken to in one way: what is meant for the one may be sent to the other.
    pub fn is_same_origin(&self, other: &Self) -> bool {
        (self.is_https, &self.host, self.port) == (other.is_https, &other.host, other.port)
    }

    /// `host:port` as it stands in a `Host` header.
    pub fn authority(&self) -> impl std::fmt::Display + '_ {
        std::fmt::from_fn(|f| {
            if self.host.contains(':') {
                write!(f, "[{}]:{}", self.host, self.port)
            } else {
                write!(f, "{}:{}", self.host, self.port)
            }
        })
    }
}

impl std::fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.prefix)
    }
}

/// A key that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Holds `text` back from every log.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The secret itself, to be sent to the one it is meant for.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether that is it. The time it takes says nothing of how much of it was right.
    pub fn is(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// `[capacity]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Capacity {
    /// Between two polls of a backend.
    pub poll_interval: Duration,
    /// Older reports are ignored; the own count decides.
    pub stale_after: Duration,
    /// An engine with more requests waiting inside it than this is busy.
    pub max_waiting: u32,
    /// An engine with a fuller KV-cache than this (0 to 1) is busy.
    pub max_kv_cache: f64,
    /// Proxies that share the fleet, this one among them; at least 1.
    pub replicas: u32,
    /// Which of them this one is, from 1 to `replicas`; `None` where nobody says.
    pub replica: Option<u32>,
    /// A backend that returns gets its slots back over this time; zero: at once.
    pub slow_start: Duration,
    /// What requests cost.
    pub cost: Cost,
}

/// `[capacity.cost]`: how many slots a request takes, besides the one that every request takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// For each image.
    pub image: f64,
    /// For each MiB of body.
    pub mib: f64,
}

impl Cost {
    /// The slots that a request takes: whole ones, and at least one.
    pub fn slots(self, images: u32, body_bytes: usize) -> u32 {
        if self.image == 0.0 && self.mib == 0.0 {
            return 1;
        }
        let mib = body_bytes as f64 / 1_048_576.0;
        // A cast from f64 saturates; what rounding adds to a whole number of slots is no slot.
        (1.0 + self.image * f64::from(images) + self.mib * mib - 1e-9).ceil().max(1.0) as u32
    }
}

/// `[queue]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Requests that may wait at once; 0 refuses at once when all is busy.
    pub size: usize,
    /// Bodies of requests that wait, in bytes.
    pub bytes: u64,
    /// The longest wait.
    pub timeout: Duration,
    /// A request that waits longer may go to the next tier.
    pub spill_after: Duration,
}

/// `[failover]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// Backends tried for one request, the first included; at least 1.
    pub attempts: u32,
    /// Whether a request whose connection died before any response byte may be run again elsewhere.
    pub retry_unanswered: bool,
    pub ejection: Ejection,
}

/// `failover.eject_after` and `failover.eject_for`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// Consecutive failures of real traffic that eject a backend; at least 1.
    pub after: u32,
    /// How long the first ejection lasts; above zero.
    pub first: Duration,
}

/// `[timeouts]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// Making a connection.
    pub connect: Duration,
    /// From the request sent to the first byte of the answer's body.
    pub first_byte: Duration,
    /// The longest silence within an answer.
    pub between_chunks: Duration,
    /// How long a client may take nothing of an answer that is ready for it.
    pub client: Duration,
    /// For what still runs, after SIGTERM or when a backend is removed.
    pub drain: Duration,
    /// How long listening goes on after SIGTERM while `/readyz` already answers 503.
    pub drain_delay: Duration,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body, in bytes.
    pub body_bytes: u64,
    /// All request bodies held at once, in bytes.
    pub bodies_in_flight_bytes: u64,
}

/// One mistake in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Dotted key, such as `backends[1].url`; empty where the file as a whole is at fault.
    pub key: String,
    /// Line in the file, from 1, where there is one.
    pub line: Option<usize>,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Every mistake of a configuration at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes {
    /// The file they are in; `None` where there is no file.
    pub path: Option<PathBuf>,
    /// In the order of the file; what has no line comes last.
    pub all: Vec<Mistake>,
}

impl std::fmt::Display for Mistakes {
    /// A line a mistake: `vision-proxy.toml:12: backends[1].url: …`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, mistake) in self.all.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            if let Some(path) = &self.path {
                write!(f, "{}", path.display())?;
                if let Some(line) = mistake.line {
                    write!(f, ":{line}")?;
                }
                f.write_str(": ")?;
            }
            if !mistake.key.is_empty() {
                write!(f, "{}: ", mistake.key)?;
            }
            f.write_str(&mistake.message)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one backend; what is put below it begins in line 3.
    const BACKEND: &str = "backends = [{ url = \"http://gpu:8000\" }]\n\n";

    fn mistakes(text: &str) -> Mistakes {
        parse(text, Some("vision-proxy.toml".as_ref()), &Overrides::default()).expect_err(text)
    }

    /// Asserts that the text has exactly one mistake: at that key and line, saying that.
    #[track_caller]
    fn assert_one(text: &str, key: &str, line: Option<usize>, part: &str) {
        let all = mistakes(text).all;
        let [mistake] = all.as_slice() else { panic!("{text}\nhas {all:#?}") };
        assert_eq!((mistake.key.as_str(), mistake.line), (key, line), "{text}\n{mistake:?}");
        assert!(mistake.message.contains(part), "{text}\n{mistake:?}");
    }

    /// The same for lines that are put below a good backend; the last of them is at fault.
    #[track_caller]
    fn assert_last(lines: &str, key: &str, part: &str) {
        assert_one(&format!("{BACKEND}{lines}"), key, Some(2 + lines.lines().count()), part);
    }

    #[test]
    fn syntax_is_one_mistake() {
        assert_one("workers = 1\nlisten = \n", "", Some(2), "not TOML");
        assert_one("workers = 1\nreveal = true\nworkers = 2", "", Some(3), "duplicate key");
        assert_one("[queue]\nsize = 1\n[queue]\n", "", Some(3), "duplicate key");
        assert_one("listen = \"127", "", Some(1), "not TOML");
    }

    #[test]
    fn unknown_keys_are_named_at_every_level() {
        for (lines, key, part) in [
            ("listn = 1", "listn", "did you mean `listen`?"),
            ("[plugins]\npolcy = \"x\"", "plugins.polcy", "did you mean `policy`?"),
            ("[plugins.limits]\nmemroy = \"1MiB\"", "plugins.limits.memroy", "did you mean `memory`?"),
            ("[capacity]\nmax-waiting = 0", "capacity.max-waiting", "did you mean `max_waiting`?"),
            ("[queues]", "queues", "did you mean `queue`?"),
            ("[queue]\nsizes = 1", "queue.sizes", "did you mean `size`?"),
            ("[failover]\nattempt = 1", "failover.attempt", "did you mean `attempts`?"),
            (
                "[timeouts]\nidle = \"1s\"",
                "timeouts.idle",
                "known here: connect, first_byte, between_chunks, client, drain, drain_delay",
            ),
            ("[limits]\nbodies = \"1s\"", "limits.bodies", "known here: body, bodies_in_flight"),
            ("timeouts.connet = \"1s\"", "timeouts.connet", "did you mean `connect`?"),
            ("[plugins]\nreveal = false", "plugins.reveal", "at the top of the file, before the first [table]"),
            ("[queue]\ndrain = \"1s\"", "queue.drain", "stands in [timeouts]"),
            ("[queue]\nslots = 1", "queue.slots", "stands in [[backends]]"),
            ("\"a.b\" = 1", "\"a.b\"", "unknown key"),
        ] {
            assert_last(lines, key, part);
        }
        assert_one(
            "[[backends]]\nurl = \"http://a\"\n[[backends]]\nurl = \"http://b\"\nwieght = 1",
            "backends[1].wieght",
            Some(5),
            "`weight`",
        );
    }

    #[test]
    fn wrong_types_are_told_with_what_is_right() {
        for (lines, key, part) in [
            (
                "listen = 8080",
                "listen",
                "should be an IP address with a port, such as \"127.0.0.1:8080\" or \"[::]:8080\", not 8080",
            ),
            ("listen = \"localhost:8080\"", "listen", "not \"localhost:8080\""),
            ("workers = \"4\"", "workers", "a whole number from 0 to 4294967295, not \"4\""),
            ("workers = -1", "workers", "not -1"),
            ("workers = 1.5", "workers", "not 1.5"),
            ("workers = 99999999999999999999", "workers", "too large"),
            ("workers = 1025", "workers", "at most 1024"),
            ("reveal = \"yes\"", "reveal", "should be true or false, not \"yes\""),
            ("plugins = 3", "plugins", "expected a table"),
            ("[models]\nqwen = \"Qwen/Qwen2.5-VL\"", "models.qwen", "should be a list of names"),
            ("[models]\nqwen = []", "models.qwen", "should be a list of names"),
            ("[plugins.settings]\nmine = 3", "plugins.settings.mine", "a table of that plugin's settings, not 3"),
            ("[queue]\nsize = [1]", "queue.size", "not a list"),
            ("[queue]\nsize = 2026-01-01", "queue.size", "not a date"),
            ("[capacity]\nmax_kv_cache = {}", "capacity.max_kv_cache", "not a table"),
        ] {
            assert_last(lines, key, part);
        }
        assert_one("[backends]\nurl = \"http://gpu\"", "backends", Some(1), "[[backends]] in double brackets");
        assert_one("backends = [\"http://gpu\"]", "backends[0]", Some(1), "[[backends]]");
        assert_one("[[backends]]\nurl = \"http://gpu\"\nlabels = \"a\"", "backends[0].labels", Some(3), "map");
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (lines, key, part) in [
            ("[plugins.limits]\nfuel = 0", "plugins.limits.fuel", "at least 1"),
            ("[plugins.limits]\nmemory = \"1KiB\"", "plugins.limits.memory", "64KiB"),
            ("[plugins.limits]\nmemory = \"5GiB\"", "plugins.limits.memory", "4GiB"),
            (
                "[capacity]\npoll_interval = 5",
                "capacity.poll_interval",
                "a duration above zero such as \"1s\" or \"300ms\", not 5",
            ),
            ("[capacity]\npoll_interval = \"5\"", "capacity.poll_interval", "not \"5\""),
            ("[capacity]\npoll_interval = \"0s\"", "capacity.poll_interval", "above zero"),
            ("[capacity]\nmax_kv_cache = 0", "capacity.max_kv_cache", "above 0 and at most 1"),
            ("[capacity]\nmax_kv_cache = 1.01", "capacity.max_kv_cache", "not 1.01"),
            ("[capacity]\nmax_kv_cache = nan", "capacity.max_kv_cache", "not NaN"),
            ("[queue]\ntimeout = \"0s\"", "queue.timeout", "above zero"),
            ("[failover]\nattempts = 0", "failover.attempts", "from 1"),
            ("[failover]\neject_after = 0", "failover.eject_after", "from 1"),
            ("[failover]\neject_for = \"0s\"", "failover.eject_for", "above zero"),
            ("[timeouts]\nconnect = \"0ms\"", "timeouts.connect", "above zero"),
            ("[timeouts]\nfirst_byte = \"0ms\"", "timeouts.first_byte", "above zero"),
            ("[timeouts]\nbetween_chunks = \"2M\"", "timeouts.between_chunks", "\"m\" a minute"),
            ("[timeouts]\ndrain = \"-1s\"", "timeouts.drain", "a duration such as"),
            ("[limits]\nbody = 1024", "limits.body", "a size such as \"64MiB\", not 1024"),
            ("[limits]\nbody = \"0B\"", "limits.body", "a size"),
            ("[limits]\nbody = \"64 megs\"", "limits.body", "not \"64 megs\""),
        ] {
            assert_last(lines, key, part);
        }
    }

    #[test]
    fn keys_are_checked_and_never_quoted() {
        let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let good = format!("name = \"a\"\nsha256 = \"{hash}\"");
        for (lines, key, part) in [
            ("[keys]\nname = \"a\"", "keys", "[[keys]] in double brackets"),
            ("[[keys]]\nsha256 = \"hunter2\"\nname = \"a b\"", "keys[0].name", "letters, digits"),
            ("[[keys]]\nname = \"a\"\nsha256 = \"hunter2\"", "keys[0].sha256", "64 hex digits"),
            ("[[keys]]\nname = \"a\"\nsha256 = 3", "keys[0].sha256", "`vision-proxy key new`"),
            (&format!("[[keys]]\n{good}\nrequests_per_minute = 0"), "keys[0].requests_per_minute", "from 1"),
            (&format!("[[keys]]\n{good}\nconcurency = 1"), "keys[0].concurency", "did you mean `concurrency`?"),
            (&format!("[[keys]]\n{good}\nbytes_per_minute = 5"), "keys[0].bytes_per_minute", "a size"),
        ] {
            let told = mistakes(&format!("{BACKEND}{lines}"));
            assert!(told.all.iter().any(|one| one.key == key && one.message.contains(part)), "{lines}\n{told}");
            assert!(!told.to_string().contains("hunter2"), "{told}");
        }
        assert_one(&format!("{BACKEND}[[keys]]\nname = \"a\""), "keys[0].sha256", Some(3), "is missing");
        assert_one(&format!("{BACKEND}[[keys]]\nsha256 = \"{hash}\""), "keys[0].name", Some(3), "is missing");
        let other = format!("name = \"b\"\nsha256 = \"{}\"", "0".repeat(64));
        let two = |second: &str| format!("{BACKEND}[[keys]]\n{good}\n[[keys]]\n{second}");
        assert_one(&two(&other.replace("\"b\"", "\"a\"")), "keys[1].name", Some(7), "\"a\" is taken");
        assert_one(&two(&good.replace("\"a\"", "\"b\"")), "keys[1].sha256", Some(8), "is there already");
        let config = parse(&two(&other), None, &Overrides::default()).unwrap();
        assert_eq!(config.keys[0].sha256[..2], [0x9f, 0x86]);
        assert_eq!((config.keys[1].sha256, config.keys[1].concurrency), ([0; 32], None));
    }

    #[test]
    fn image_policies_and_domains_go_together() {
        for (lines, key, part) in [
            ("[images]\npolicy = \"deny\"", "images.policy", "\"pass\", \"data-only\" or \"allow\""),
            ("[images]\npolicy = \"allow\"", "images.policy", "needs the domains"),
            ("[images]\ndomains = [\"a.example\"]", "images.domains", "means nothing here"),
            ("[images]\npolicy = \"allow\"\ndomains = []", "images.domains", "a list of hosts"),
        ] {
            assert_last(lines, key, part);
        }
        for bad in ["https://a.example", "A.example", "a.example/", "", "*.", "u@a.example", "a b", "files:443"] {
            let lines = format!("[images]\npolicy = \"allow\"\ndomains = [\"{bad}\"]");
            assert_last(&lines, "images.domains", "is none");
        }
        let good =
            "[images]\npolicy = \"allow\"\ndomains = [\"a.example\", \"*.b.example\", \"files:8443\", \"10.0.0.1\"]";
        let images = parse(&format!("{BACKEND}{good}"), None, &Overrides::default()).unwrap().images;
        assert_eq!((images.policy, images.domains.len()), (ImagePolicy::Allow, 4));
    }

    #[test]
    fn a_secret_is_known_by_the_whole_of_it() {
        let secret = Secret::new("hunter2");
        assert!(secret.is(b"hunter2"));
        assert!([&b""[..], b"hunter", b"hunter22", b"Hunter2"].iter().all(|other| !secret.is(other)));
    }

    #[test]
    fn names_are_checked_on_both_sides() {
        let long = "x".repeat(257);
        for (lines, key, part) in [
            ("[models]\n\"\" = [\"a\"]", "models.\"\"".to_owned(), "1 to 256 bytes"),
            ("[models]\nqwen = [\"a\", \"\"]", "models.qwen".to_owned(), "each name"),
            ("[models]\nqwen = [\"a\\nb\"]", "models.qwen".to_owned(), "control characters, not \"a\\nb\""),
            (&format!("[models]\n{long} = [\"a\"]"), format!("models.{long}"), "1 to 256 bytes"),
            ("[plugins]\npolicy = \"../evil\"", "plugins.policy".to_owned(), "not \"../evil\""),
            ("[plugins]\npolicy = \"mine.wasm\"", "plugins.policy".to_owned(), "without .wasm"),
            ("[plugins]\ntranslator = \"\"", "plugins.translator".to_owned(), "1 to 128 bytes"),
            ("[plugins]\ndir = \"\"", "plugins.dir".to_owned(), "the path of a folder"),
            ("[plugins.settings]\n\"a/b\" = {}", "plugins.settings.\"a/b\"".to_owned(), "a plugin's name"),
            ("[plugins.settings]\nmine = { x = inf }", "plugins.settings.mine".to_owned(), "JSON has no such number"),
            ("[plugins]\ntrusted_keys = [\"RWQ=\"]", "plugins.trusted_keys".to_owned(), "minisign public keys"),
            ("[plugins]\ntrusted_keys = \"RWQ=\"", "plugins.trusted_keys".to_owned(), "a list"),
            ("[plugins.pins]\nmine = \"sha256:abc\"", "plugins.pins.mine".to_owned(), "64 hex digits"),
            (
                &format!("[plugins.pins]\nmine = \"{}\"", "a".repeat(64)),
                "plugins.pins.mine".to_owned(),
                "should be sha256:",
            ),
        ] {
            assert_last(lines, &key, part);
        }
    }

    #[test]
    fn networks_are_addresses_and_prefixes() {
        let read = |text: &str| parse(&format!("{BACKEND}trusted_proxies = {text}"), None, &Overrides::default());
        let networks = read("[\"10.0.0.0/8\", \"192.168.1.7\", \"fd00::/8\"]").unwrap().trusted_proxies;
        assert_eq!(
            networks.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.0/8", "192.168.1.7/32", "fd00::/8"]
        );
        assert_last("trusted_proxies = \"10.0.0.0/8\"", "trusted_proxies", "a list of addresses and networks");
        for wrong in ["[\"10.0.0.0/33\"]", "[\"proxy.local\"]", "[7]"] {
            assert_last(&format!("trusted_proxies = {wrong}"), "trusted_proxies", "is no address or network");
        }
    }

    #[test]
    fn each_key_of_a_backend_is_checked() {
        for (line, key, part) in [
            ("engine = \"vlm\"", "engine", "did you mean \"vllm\"?"),
            ("engine = \"LLAMA.CPP\"", "engine", "did you mean \"llama-cpp\"?"),
            ("engine = \"mlx\"", "engine", "known are auto, vllm, sglang, llama-cpp, ollama, tgi, trtllm"),
            ("engine = 3", "engine", "the name of an engine"),
            ("slots = 0", "slots", "from 1"),
            ("weight = 0", "weight", "from 1"),
            ("name = \"gpu a\"", "name", "letters, digits"),
            ("name = \"\"", "name", "1 to 128 bytes"),
            ("labels = { zone = 3 }", "labels.zone", "should be a text"),
            ("models = { qwen = \"a\\u0000\" }", "models.qwen", "control characters"),
            ("models = { qwen = [\"a\"] }", "models.qwen", "not a list"),
        ] {
            assert_one(
                &format!("[[backends]]\nurl = \"http://gpu\"\n{line}"),
                &format!("backends[0].{key}"),
                Some(3),
                part,
            );
        }
        assert_one("[[backends]]\nurl = 3", "backends[0].url", Some(2), "an address");
        assert_one("[[backends]]\nname = \"a\"", "backends[0].url", Some(1), "is missing");
    }

    #[test]
    fn every_engine_is_known_by_its_name() {
        let engines = Engine::ALL.into_iter().map(|engine| (engine.name(), Some(engine)));
        for (name, engine) in engines.chain([("auto", None)]) {
            let config = parse(
                &format!("backends = [{{ url = \"http://gpu\", engine = \"{name}\" }}]"),
                None,
                &Overrides::default(),
            );
            assert_eq!(config.unwrap().backends[0].engine, engine, "{name}");
        }
    }

    #[test]
    fn no_two_backends_are_alike() {
        let two = |first: &str, second: &str| format!("[[backends]]\n{first}\n[[backends]]\n{second}");
        let url = "url = \"http://gpu:80/v1\"";
        assert_one(
            &two(url, "url = \"http://GPU\""),
            "backends[1].url",
            Some(4),
            "http://gpu:80 is already backends[0].url (line 2)",
        );
        let named = |name: &str, host: &str| format!("url = \"http://{host}\"\nname = \"{name}\"");
        assert_one(
            &two(&named("a", "x"), &named("a", "y")),
            "backends[1].name",
            Some(6),
            "\"a\" is already backends[0].name (line 3)",
        );
        // By default both would be named after host and port.
        assert_one(
            &two("url = \"http://gpu/a\"", "url = \"http://gpu/b\""),
            "backends[1].name",
            Some(3),
            "\"gpu:80\" is already",
        );
        // A name that was refused is no reason to speak of the one it would have had by default.
        let bad_name = two("url = \"http://gpu/a\"", "url = \"http://gpu/b\"\nname = \"gpu b\"");
        assert_one(&bad_name, "backends[1].name", Some(5), "letters, digits");
        let long = format!("[[backends]]\nurl = \"http://{}gpu\"", "long-label.".repeat(12));
        assert_one(&long, "backends[0].name", Some(1), "is needed here");
        let overrides = Overrides { backends: vec!["http://gpu:80".into()], ..Overrides::default() };
        let clash = parse(&format!("[[backends]]\n{url}"), None, &overrides).unwrap_err();
        assert!(
            clash.to_string().starts_with("--backend: http://gpu:80 is already backends[0].url (line 2)"),
            "{clash}"
        );
    }

    #[test]
    fn without_backends_it_says_how_to_add_one() {
        for text in ["", "workers = 1"] {
            assert_one(text, "backends", None, "give --backend http://HOST:PORT, or write [[backends]]");
        }
        let registered = parse("backends = []", None, &Overrides::default());
        assert_eq!(registered.map(|config| config.backends), Ok(Vec::new()), "an empty list is meant");
    }

    #[test]
    fn mistakes_of_the_command_line_are_told_without_passwords() {
        let backends = vec!["ftp://gpu".to_owned(), "http://me:hunter2@gpu".to_owned()];
        let told = parse("", None, &Overrides { backends, ..Overrides::default() }).unwrap_err().to_string();
        assert!(
            told.contains("--backend: \"ftp://gpu\": backends are") && told.contains("--backend: \"gpu\": a user name"),
            "{told}"
        );
        assert!(!told.contains("hunter2"));
    }

    #[test]
    fn contradictions_are_sought_between_sound_values_only() {
        assert_last("listen = \"127.0.0.1:9901\"", "listen", "two ports");
        assert_last("listen = \"0.0.0.0:1\"\nadmin = \"127.0.0.1:1\"", "admin", "two ports");
        assert_last("admin = \"0.0.0.0:9901\"", "admin", "admin_token");
        assert_last("[limits]\nbody = \"2GiB\"", "limits.body", "bodies_in_flight is smaller than body");
        assert_last(
            "[limits]\nbody = \"2KiB\"\nbodies_in_flight = \"1KiB\"",
            "limits.bodies_in_flight",
            "smaller than body",
        );
        assert_last("[capacity]\npoll_interval = \"10s\"", "capacity.poll_interval", "stale before the next");
        assert_last("[capacity]\nreplicas = 2\nreplica = 3", "capacity.replica", "not so many");
        assert_last("admin = \"127.0.0.1:8080\"\nlisten = 3", "listen", "should be");
        assert_last("[capacity]\npoll_interval = \"10s\"\nstale_after = \"x\"", "capacity.stale_after", "should be");
        assert_last("admin = \"0.0.0.0:1\"\nadmin_token = \"hunter2\"", "admin_token", "should be");
    }

    #[test]
    fn secrets_come_from_elsewhere_and_are_never_quoted() {
        for value in [
            "\"hunter2\"",
            "4711",
            "[\"hunter2\"]",
            "{ value = \"hunter2\" }",
            "{ file = \"a\", env = \"B\" }",
            "{ env = \"hunter2-x\" }",
            "{}",
        ] {
            let text = format!("{BACKEND}admin_token = {value}");
            assert_one(&text, "admin_token", Some(3), "should be { file = \"PATH\" } or { env = \"NAME\" }");
            assert_one(
                &format!("[[backends]]\nurl = \"http://gpu\"\napi_key = {value}"),
                "backends[0].api_key",
                Some(3),
                "should be {",
            );
            let told = mistakes(&text);
            assert!(!format!("{told} {told:?}").contains("hunter2") && !told.to_string().contains("4711"), "{told}");
        }
        assert_last("admin_token = { file = \"/nowhere/key\" }", "admin_token", "cannot read /nowhere/key");
        assert_last(
            "admin_token = { env = \"VISION_PROXY_NO_SUCH\" }",
            "admin_token",
            "VISION_PROXY_NO_SUCH is not set",
        );
    }

    #[test]
    fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
        let told = mistakes(concat!(
            "wrkers = 4\n",
            "reveal = 1\n",
            "[capacity]\n",
            "poll_interval = \"fast\"\n",
            "stale = \"1s\"\n",
            "[limits]\n",
            "body = \"2MiB\"\n",
            "bodies_in_flight = \"1MiB\"\n",
            "[[backends]]\n",
            "name = \"a\"\n",
            "[[backends]]\n",
            "url = \"ftp://gpu\"\n",
            "name = \"a\"\n",
            "engine = \"olama\"\n",
            "models = { \"\" = \"x\", y = 3 }\n",
        ));
        let lines: Vec<_> = told.all.iter().map(|mistake| (mistake.key.as_str(), mistake.line)).collect();
        let expected = [
            ("wrkers", 1),
            ("reveal", 2),
            ("capacity.poll_interval", 4),
            ("capacity.stale", 5),
            ("limits.bodies_in_flight", 8),
            ("backends[0].url", 9),
            ("backends[1].url", 12),
            ("backends[1].name", 13),
            ("backends[1].engine", 14),
            ("backends[1].models.\"\"", 15),
            ("backends[1].models.y", 15),
        ];
        assert_eq!(lines, expected.map(|(key, line)| (key, Some(line))));
        let shown = told.to_string();
        assert_eq!(shown.lines().next(), Some("vision-proxy.toml:1: wrkers: unknown key; did you mean `workers`?"));
        assert_eq!(shown.lines().count(), expected.len());
    }

    #[test]
    fn a_wrong_file_ends_after_a_hundred_mistakes() {
        let text: String = (0..5000).map(|at| format!("key{at} = 1\n")).collect();
        assert_eq!(mistakes(&text).all.len(), 100);
    }
}
