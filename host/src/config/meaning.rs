//! From what was typed to what is meant: the defaults, the command line, and what only the whole can show.
//!
//! `vision-proxy check`, the start and every reload come through here, so they cannot disagree. A contradiction
//! is sought only between values that are right by themselves.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::access;
use super::backends::{self, fetch};
use super::document::{self, Findings};
use super::file::{self, File};
use super::notation::Written;
use super::tls;
use super::{
    Capacity, Config, Cost, Ejection, Failover, Limits, Mistake, Mistakes, PluginLimits, Plugins, Queue, Timeouts,
};

/// Where the configuration is looked for when none is named, best first.
const PLACES: [&str; 2] = ["vision-proxy.toml", "/etc/vision-proxy/vision-proxy.toml"];

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

/// Every worker has its own instance of each plugin and its own connections; no machine is served by more.
const WORKERS_MAX: u32 = 1024;

/// A page of WebAssembly: with less an instance cannot exist.
const PLUGIN_MEMORY_MIN_BYTES: u64 = 64 << 10;

/// All that 32-bit WebAssembly can address.
const PLUGIN_MEMORY_MAX_BYTES: u64 = 4 << 30;

const MIB: u64 = 1 << 20;

/// What the command line says besides the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Base addresses of backends, added to those of the file.
    pub backends: Vec<String>,
    /// Instead of `listen`.
    pub listen: Option<SocketAddr>,
    /// Instead of `admin`.
    pub admin: Option<SocketAddr>,
}

/// The configuration file to use: the named one, which must exist, else the first in the usual places, if any.
pub fn find(explicit: Option<&Path>) -> Result<Option<PathBuf>, Mistakes> {
    match explicit {
        Some(path) if is_missing(path) => Err(unreadable(path, "there is no such file".to_owned())),
        Some(path) => Ok(Some(path.to_owned())),
        None => Ok(PLACES.iter().map(PathBuf::from).find(|path| !is_missing(path))),
    }
}

/// A file that is there but cannot be looked at is not missing: it is found, and reading it says why not.
fn is_missing(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

fn unreadable(path: &Path, message: String) -> Mistakes {
    Mistakes { path: Some(path.to_owned()), all: vec![Mistake { key: String::new(), line: None, message }] }
}

/// Reads the configuration in the file at `path`; without one, the defaults and the command line are all.
///
/// Blocks on the file and on those of secrets.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config, Mistakes> {
    let text = match path {
        Some(path) => std::fs::read_to_string(path).map_err(|why| {
            let why =
                if why.kind() == ErrorKind::InvalidData { "it is not UTF-8 text".to_owned() } else { why.to_string() };
            unreadable(path, format!("cannot be read: {why}"))
        })?,
        None => String::new(),
    };
    parse(&text, path, overrides)
}

/// The files that the configuration at `path` names for TLS, be it good or bad: what is in them is part of it.
pub fn files(path: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let Ok((typed, _)) = document::read(&text) else { return Vec::new() };
    let folder = path.parent().unwrap_or(Path::new(""));
    tls::files(typed.tls.as_ref(), &typed.backends.0).into_iter().map(|path| folder.join(path)).collect()
}

/// Reads the configuration in `text`. `path` is where it stands: relative paths start from its folder.
///
/// Blocks on the files of secrets.
pub fn parse(text: &str, path: Option<&Path>, overrides: &Overrides) -> Result<Config, Mistakes> {
    let refused = |all| Mistakes { path: path.map(Path::to_owned), all };
    let (typed, findings) = document::read(text).map_err(refused)?;
    let folder = path.and_then(Path::parent).unwrap_or(Path::new(""));
    let mut reading = Reading { findings, folder, overrides };
    let config = reading.config(typed);
    let mistakes = reading.findings.into_mistakes();
    if mistakes.is_empty() { Ok(config) } else { Err(refused(mistakes)) }
}

/// One reading of a configuration.
struct Reading<'a> {
    findings: Findings,
    folder: &'a Path,
    overrides: &'a Overrides,
}

impl Reading<'_> {
    /// The configuration, of use only where `findings` stays empty.
    fn config(&mut self, typed: File) -> Config {
        let tls = tls::Reader::new(self.folder);
        let config = Config {
            listen: self.overrides.listen.unwrap_or_else(|| or(typed.listen, LISTEN)),
            admin: self.overrides.admin.unwrap_or_else(|| or(typed.admin, ADMIN)),
            tls: tls.listen(&mut self.findings, typed.tls),
            admin_token: fetch(&mut self.findings, self.folder, "admin_token", typed.admin_token),
            workers: self.workers(or(typed.workers, 0)),
            reveal: or(typed.reveal, true),
            trusted_proxies: or(typed.trusted_proxies, Vec::new()),
            keys: access::keys(&mut self.findings, typed.keys.0),
            images: access::images(&mut self.findings, typed.images),
            plugins: self.plugins(typed.plugins),
            models: typed.models.into_iter().map(|(name, natives)| (name.0.0, natives.0.0)).collect(),
            backends: backends::read(&mut self.findings, &tls, self.folder, typed.backends.0, &self.overrides.backends),
            capacity: self.capacity(typed.capacity),
            queue: queue(typed.queue),
            failover: failover(typed.failover),
            timeouts: timeouts(typed.timeouts),
            limits: self.limits(typed.limits),
        };
        self.check_listeners(&config);
        config
    }

    fn workers(&mut self, typed: u32) -> usize {
        if typed > WORKERS_MAX {
            self.findings.add("workers", format!("should be at most {WORKERS_MAX}; 0 means one a core"));
        }
        match typed {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            typed => size(typed.into()),
        }
    }

    fn plugins(&mut self, typed: file::Plugins) -> Plugins {
        Plugins {
            dir: self.folder.join(or(typed.dir, PathBuf::from("plugins"))),
            policy: or(typed.policy, "round-robin".to_owned()),
            translator: or(typed.translator, "model-map".to_owned()),
            settings: typed.settings.into_iter().map(|(name, settings)| (name.0.0, settings.0.0)).collect(),
            limits: self.plugin_limits(typed.limits),
            pins: typed.pins.into_iter().map(|(name, pin)| (name.0.0, pin.0.0)).collect(),
            trusted_keys: or(typed.trusted_keys, Vec::new()),
        }
    }

    fn plugin_limits(&mut self, typed: file::PluginLimits) -> PluginLimits {
        let memory = or(typed.memory, 16 * MIB);
        if !(PLUGIN_MEMORY_MIN_BYTES..=PLUGIN_MEMORY_MAX_BYTES).contains(&memory) {
            self.findings.add(
                "plugins.limits.memory",
                "should be from \"64KiB\", a page of WebAssembly, to \"4GiB\", all it can address",
            );
        }
        // About 33 µs on the machine this was measured on.
        PluginLimits { fuel: or(typed.fuel, 200_000), memory_bytes: size(memory) }
    }

    fn capacity(&mut self, typed: file::Capacity) -> Capacity {
        let capacity = Capacity {
            poll_interval: or(typed.poll_interval, Duration::from_secs(1)),
            stale_after: or(typed.stale_after, Duration::from_secs(5)),
            max_waiting: or(typed.max_waiting, 0),
            max_kv_cache: or(typed.max_kv_cache, 0.95),
            replicas: or(typed.replicas, 1),
            replica: typed.replica.map(|written| written.0.get()),
            slow_start: or(typed.slow_start, Duration::from_secs(10)),
            cost: Cost { image: or(typed.cost.image, 0.0), mib: or(typed.cost.mib, 0.0) },
        };
        if capacity.stale_after < capacity.poll_interval {
            let message = "stale_after is shorter than poll_interval: every report would be stale before the next";
            self.contradiction("capacity.stale_after", "capacity.poll_interval", message);
        }
        if capacity.replica.is_some_and(|replica| replica > capacity.replicas) {
            self.contradiction("capacity.replica", "capacity.replicas", "there are not so many replicas");
        }
        capacity
    }

    fn limits(&mut self, typed: file::Limits) -> Limits {
        let limits = Limits {
            body_bytes: or(typed.body, 64 * MIB),
            bodies_in_flight_bytes: or(typed.bodies_in_flight, 1024 * MIB),
        };
        if limits.bodies_in_flight_bytes < limits.body_bytes {
            let message = "bodies_in_flight is smaller than body: the largest allowed request would never fit";
            self.contradiction("limits.bodies_in_flight", "limits.body", message);
        }
        limits
    }

    fn check_listeners(&mut self, config: &Config) {
        let admin = if self.overrides.admin.is_some() { "--admin" } else { "admin" };
        let listen = if self.overrides.listen.is_some() { "--listen" } else { "listen" };
        if clash(config.listen, config.admin) {
            self.contradiction(
                admin,
                listen,
                "listen and admin need two ports: the admin API is never on the first listener",
            );
        }
        if !config.admin.ip().to_canonical().is_loopback()
            && config.admin_token.is_none()
            && self.findings.is_sound("admin_token")
        {
            let message = "is not a loopback address, so changes need a key: add admin_token = { file = \"PATH\" } or { env = \"NAME\" }";
            self.findings.add(admin, message);
        }
    }

    /// Notes that two keys do not go together, at the one that was typed.
    fn contradiction(&mut self, key: &str, other: &str, message: &str) {
        if !self.findings.is_sound(key) || !self.findings.is_sound(other) {
            return;
        }
        let is_typed = |key: &str| key.starts_with("--") || self.findings.line(key).is_some();
        let key = if is_typed(key) || !is_typed(other) { key } else { other };
        self.findings.add(key, message);
    }
}

fn queue(typed: file::Queue) -> Queue {
    Queue {
        size: size(or(typed.size, 1024_u32).into()),
        bytes: or(typed.bytes, 512 * MIB),
        timeout: or(typed.timeout, Duration::from_secs(30)),
        spill_after: or(typed.spill_after, Duration::from_secs(2)),
    }
}

fn failover(typed: file::Failover) -> Failover {
    Failover {
        attempts: or(typed.attempts, 3),
        retry_unanswered: or(typed.retry_unanswered, true),
        ejection: Ejection { after: or(typed.eject_after, 5), first: or(typed.eject_for, Duration::from_secs(1)) },
    }
}

fn timeouts(typed: file::Timeouts) -> Timeouts {
    Timeouts {
        connect: or(typed.connect, Duration::from_secs(1)),
        first_byte: or(typed.first_byte, Duration::from_secs(300)),
        between_chunks: or(typed.between_chunks, Duration::from_secs(60)),
        client: or(typed.client, Duration::from_secs(30)),
        drain: or(typed.drain, Duration::from_secs(300)),
        drain_delay: or(typed.drain_delay, Duration::from_secs(5)),
    }
}

/// What was typed, else the default.
fn or<T: Into<M>, M>(typed: Option<Written<T>>, default: M) -> M {
    typed.map_or(default, |written| written.0.into())
}

/// A number of things in memory; what does not fit the machine's word cannot be there either.
fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Whether the two cannot be bound at once. Port 0 is another free port each time.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |all: SocketAddr, it: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || it.is_ipv4());
    one.port() != 0
        && one.port() == other.port()
        && (one.ip() == other.ip() || covers(one, other) || covers(other, one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BackendConfig, Engine, MetricsAt};

    const SAMPLE: &str = include_str!("../../../config/vision-proxy.toml");

    /// Tables without fixed keys, and values that are written as tables.
    const FREE: [&str; 10] = [
        "trusted_proxies",
        "admin_token",
        "images.domains",
        "models",
        "plugins.settings",
        "plugins.pins",
        "plugins.trusted_keys",
        "backends.labels",
        "backends.models",
        "backends.api_key",
    ];

    fn with_backend(url: &str) -> Overrides {
        Overrides { backends: vec![url.to_owned()], ..Overrides::default() }
    }

    fn read(text: &str) -> Config {
        parse(text, None, &with_backend("http://10.0.0.11:8000"))
            .unwrap_or_else(|mistakes| panic!("{text}\n{mistakes}"))
    }

    /// The sample with its examples in force: what begins with `#` and no space is an example.
    fn sample_with_examples() -> String {
        let example =
            |line: &'static str| line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
        SAMPLE.lines().map(|line| example(line).unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_sample_says_what_the_defaults_are() {
        assert_eq!(read(SAMPLE), read(""));
    }

    #[test]
    fn the_sample_shows_every_key_and_its_examples_are_right() {
        let text = sample_with_examples();
        // Only what was typed is read, for the secrets of the examples are on no machine.
        let (_, findings) = document::read(&text).unwrap();
        assert_eq!(findings.into_mistakes(), []);
        let root: toml::Table = toml::from_str(&text).unwrap();
        for (table, keys) in file::tables() {
            let found =
                table.split('.').filter(|step| !step.is_empty()).fold(&root, |table, step| match &table[step] {
                    toml::Value::Array(items) => items[0].as_table().unwrap(),
                    value => value.as_table().unwrap(),
                });
            assert!(!keys.is_empty(), "[{table}]");
            for key in keys {
                let value = found.get(*key).unwrap_or_else(|| panic!("the sample does not show `{key}` of [{table}]"));
                let path = document::join(table, key);
                // A table is one that is looked into here, or one whose keys are the user's own.
                let is_known = FREE.contains(&path.as_str()) || file::tables().iter().any(|(table, _)| *table == path);
                assert!(is_known || !(value.is_table() || value.is_array()), "{path} is missing in `tables`");
            }
        }
    }

    #[test]
    fn workers_zero_is_one_a_core() {
        assert_eq!(read("workers = 0").workers, std::thread::available_parallelism().unwrap().get());
        assert_eq!(read("workers = 3").workers, 3);
    }

    #[test]
    fn the_top_and_the_plugins_arrive_as_typed() {
        let config = parse(
            r#"
            listen = "0.0.0.0:80"
            admin = "[::1]:81"
            reveal = false
            models = { "qwen-vl" = ["a", "b"] }
            [plugins]
            dir = "wasm"
            policy = "least-busy"
            translator = "mine"
            settings.mine = { deep = { list = [1, 2.5, true, "x"] }, day = 2026-01-02 }
            limits = { fuel = 5, memory = "1 MiB" }
            trusted_keys = ["RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"]
            pins.mine = "sha256:ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef0123456789"
            "#,
            Some(Path::new("/etc/vision-proxy/vision-proxy.toml")),
            &with_backend("http://gpu:8000"),
        )
        .unwrap();
        assert_eq!(
            (config.listen.to_string(), config.admin.to_string()),
            ("0.0.0.0:80".to_owned(), "[::1]:81".to_owned())
        );
        assert!(!config.reveal);
        assert_eq!(config.models, [("qwen-vl".to_owned(), vec!["a".to_owned(), "b".to_owned()])].into());
        let settings = serde_json::json!({"deep": {"list": [1, 2.5, true, "x"]}, "day": "2026-01-02"});
        assert_eq!(
            config.plugins,
            Plugins {
                dir: "/etc/vision-proxy/wasm".into(),
                policy: "least-busy".into(),
                translator: "mine".into(),
                settings: [("mine".into(), settings)].into(),
                limits: PluginLimits { fuel: 5, memory_bytes: 1 << 20 },
                pins: [("mine".into(), "abcdef0123456789".repeat(4))].into(),
                trusted_keys: vec!["RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".into()],
            }
        );
    }

    #[test]
    fn numbers_and_times_arrive_as_typed() {
        let config = read(
            r#"
            capacity = { poll_interval = "300ms", stale_after = "1m 5s", max_waiting = 3, max_kv_cache = 1, replicas = 2, replica = 1, slow_start = "2s", cost = { image = 2, mib = 0.5 } }
            queue = { size = 0, bytes = "2MiB", timeout = "2s", spill_after = "0s" }
            failover = { attempts = 1, retry_unanswered = false, eject_after = 9, eject_for = "2s" }
            timeouts = { connect = "1ms", first_byte = "2ms", between_chunks = "3ms", client = "4ms", drain = "0s", drain_delay = "0s" }
            limits = { body = "1KiB", bodies_in_flight = "1MB" }
            "#,
        );
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let cost = Cost { image: 2.0, mib: 0.5 };
        let capacity = Capacity {
            poll_interval: ms(300),
            stale_after: s(65),
            max_waiting: 3,
            max_kv_cache: 1.0,
            replicas: 2,
            replica: Some(1),
            slow_start: s(2),
            cost,
        };
        assert_eq!(config.capacity, capacity);
        assert_eq!(config.queue, Queue { size: 0, bytes: 2 * MIB, timeout: s(2), spill_after: s(0) });
        assert_eq!(
            config.failover,
            Failover { attempts: 1, retry_unanswered: false, ejection: Ejection { after: 9, first: s(2) } }
        );
        let timeouts = Timeouts {
            connect: ms(1),
            first_byte: ms(2),
            between_chunks: ms(3),
            client: ms(4),
            drain: s(0),
            drain_delay: s(0),
        };
        assert_eq!(config.timeouts, timeouts);
        assert_eq!(config.limits, Limits { body_bytes: 1024, bodies_in_flight_bytes: 1_000_000 });
    }

    #[test]
    fn a_request_costs_whole_slots_and_at_least_one() {
        let mib = 1 << 20;
        for (image, per_mib, images, bytes, slots) in [
            (0.0, 0.0, 9, 64 * mib, 1),
            (1.0, 0.0, 0, 9 * mib, 1),
            (1.0, 0.0, 2, 0, 3),
            (0.5, 0.0, 1, 0, 2),
            (0.1, 0.0, 10, 0, 2),
            (0.0, 0.25, 0, 8 * mib, 3),
            (1e6, 1e6, u32::MAX, usize::MAX, u32::MAX),
        ] {
            assert_eq!(Cost { image, mib: per_mib }.slots(images, bytes), slots, "{image} {per_mib} {images} {bytes}");
        }
    }

    #[test]
    fn backends_of_the_command_line_follow_those_of_the_file() {
        let config = read(
            r#"
            [[backends]]
            name = "gpu-a"
            url = "http://GPU-A:8000/v1"
            metrics_url = "http://gpu-a:8002/metrics/"
            engine = "llama-cpp"
            slots = 32
            weight = 2
            tier = 3
            labels = { zone = "a" }
            models = { "qwen-vl" = "c" }
            [[backends]]
            url = "http://[::1]"
            "#,
        );
        let full = BackendConfig {
            name: "gpu-a".into(),
            url: "http://gpu-a:8000".parse().unwrap(),
            tls: None,
            metrics: Some(MetricsAt { url: "http://gpu-a:8002/metrics".parse().unwrap(), tls: None }),
            engine: Some(Engine::LlamaCpp),
            slots: Some(32),
            weight: 2,
            tier: 3,
            labels: [("zone".into(), "a".into())].into(),
            models: [("qwen-vl".into(), "c".into())].into(),
            api_key: None,
        };
        assert_eq!(config.backends[0], full);
        let names: Vec<_> = config.backends.iter().map(|backend| backend.name.as_str()).collect();
        assert_eq!(names, ["gpu-a", "::1:80", "10.0.0.11:8000"]);
        let bare = &config.backends[2];
        assert_eq!((bare.engine, bare.slots, bare.weight), (None, None, 1));
    }

    #[test]
    fn the_command_line_wins_over_the_addresses_of_the_file() {
        let addresses = |text: &str, listen: &str, admin: &str| {
            let overrides =
                Overrides { listen: listen.parse().ok(), admin: admin.parse().ok(), ..with_backend("http://gpu") };
            parse(text, None, &overrides).map(|config| (config.listen.port(), config.admin.port()))
        };
        let file = "listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"";
        assert_eq!(addresses(file, "", ""), Ok((1, 2)));
        assert_eq!(addresses(file, "127.0.0.1:3", "127.0.0.1:4"), Ok((3, 4)));
        assert_eq!(addresses("", "127.0.0.1:0", "127.0.0.1:0"), Ok((0, 0)));
        let clash = addresses(file, "127.0.0.1:2", "").unwrap_err().to_string();
        assert!(clash.contains("two ports"), "{clash}");
        assert_eq!(addresses(file, "", "[::ffff:127.0.0.1]:5"), Ok((1, 5)));
        let open = addresses(file, "", "0.0.0.0:2").unwrap_err().to_string();
        assert!(open.starts_with("--admin: is not a loopback address"), "{open}");
    }

    #[test]
    fn addresses_clash_where_one_socket_covers_the_other() {
        for (one, other, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("[::]:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
        ] {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!((clash(one, other), clash(other, one)), (expected, expected), "{one} {other}");
        }
    }

    #[test]
    fn a_named_file_must_exist_and_be_readable() {
        let missing = Path::new("/nowhere/vision-proxy.toml");
        assert_eq!(find(Some(missing)).unwrap_err().to_string(), "/nowhere/vision-proxy.toml: there is no such file");
        assert_eq!(find(Some(Path::new("/"))).unwrap(), Some("/".into()));
        let folder = load(Some(Path::new("/")), &with_backend("http://gpu")).unwrap_err().to_string();
        assert!(folder.starts_with("/: cannot be read: "), "{folder}");
        assert_eq!(load(None, &with_backend("http://10.0.0.11:8000")).unwrap(), read(""));
    }

    #[test]
    fn secrets_stand_beside_the_file_and_are_never_printed() {
        let folder = std::env::temp_dir().join(format!("vision-proxy-meaning-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("key"), "hunter2\n").unwrap();
        let file = folder.join("vision-proxy.toml");
        std::fs::write(
            &file,
            "admin = \"0.0.0.0:9901\"\nadmin_token = { file = \"key\" }\n[[backends]]\nurl = \"http://gpu\"\napi_key = { file = \"./key\" }",
        )
        .unwrap();
        let config = load(Some(&file), &Overrides::default());
        std::fs::remove_dir_all(&folder).unwrap();
        let config = config.unwrap();
        assert_eq!(config.admin_token.as_ref().unwrap().expose(), "hunter2");
        assert_eq!(config.backends[0].api_key.as_ref().unwrap().expose(), "hunter2");
        assert!(!format!("{config:?} {config:#?}").contains("hunter2"));
    }
}
