//! The proxy under test: the built binary with a configuration of its own, on ports of its own.
//!
//! It is killed when its test ends. Its output fails the test where it speaks of a panic.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use serde_json::Value;

use super::{Backend, Client, Folder, Metrics, Program, Setup, eventually};

const CONFIG_FILE: &str = "vision-proxy.toml";
/// Before every configuration: free ports.
const ANY_PORT: &str = "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";

pub struct Proxy {
    /// Speaks HTTP/1.1 in the clear to the first listener.
    pub client: Client,
    pub listen: SocketAddr,
    pub admin: Client,
    pub admin_address: SocketAddr,
    process: Program,
    folder: Folder,
}

/// A table of the configuration: polls that are too rare to notice anything while a test runs.
pub const RARE_POLLS: &str = "[capacity]\npoll_interval = \"60s\"\nstale_after = \"60s\"\n";

/// The configuration of a fleet: `top` (further top-level keys and tables), then a table a backend.
pub fn config<'a>(top: &str, backends: impl IntoIterator<Item = &'a Backend>) -> String {
    let entries: String = backends.into_iter().map(Backend::entry).collect();
    format!("{top}\n{entries}")
}

/// Starts these backends and a proxy before them.
pub async fn proxied<const N: usize, S: Into<Setup>>(top: &str, setups: [S; N]) -> (Proxy, [Backend; N]) {
    let mut backends = Vec::new();
    for setup in setups {
        backends.push(setup.into().start().await);
    }
    let proxy = Proxy::start(&config(top, &backends)).await;
    (proxy, backends.try_into().unwrap_or_else(|_| unreachable!("as many as setups")))
}

impl Proxy {
    /// Runs with this configuration; returns when it is ready and has asked every backend once.
    pub async fn start(config: &str) -> Self {
        Self::start_with(config, Folder::new(), |_| {}).await
    }

    /// The same in this folder, with whatever else its command shall have, such as variables of its environment.
    pub async fn start_with(config: &str, folder: Folder, further: impl FnOnce(&mut Command)) -> Self {
        let path = folder.write(CONFIG_FILE, format!("{ANY_PORT}{config}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_vision-proxy"));
        further(command.args(["run", "--config"]).arg(path));
        Self::run_by(&mut command, folder).await
    }

    /// `vision-proxy run` with these arguments, in this folder.
    pub async fn run(args: &[&str], folder: Folder) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vision-proxy"));
        Self::run_by(command.arg("run").args(args), folder).await
    }

    /// The same with a shell's limits set before, such as `ulimit -n 64`.
    pub async fn start_within(limits: &str, config: &str) -> Self {
        let folder = Folder::new();
        let path = folder.write(CONFIG_FILE, format!("{ANY_PORT}{config}"));
        let mut command = Command::new("sh");
        let run = format!("{limits} && exec \"$0\" run --config \"$1\"");
        Self::run_by(command.args(["-c", &run, env!("CARGO_BIN_EXE_vision-proxy")]).arg(&path), folder).await
    }

    /// The proxy as this command starts it, in this folder.
    pub async fn run_by(command: &mut Command, folder: Folder) -> Self {
        let mut process = Program::start("the proxy", command.current_dir(folder.path()));
        let (listen, admin_address) = addresses(&process.first_line().await);
        let (client, admin) = (Client::http1(listen), Client::http1(admin_address));
        let proxy = Self { client, listen, admin, admin_address, process, folder };
        proxy.knows_every_backend().await;
        proxy
    }

    async fn knows_every_backend(&self) {
        let known = async || self.backends().await.iter().all(|backend| backend["state"] != "unknown");
        eventually("every backend was asked once", known).await;
    }

    /// Replaces its configuration file, in one step.
    pub fn write_config(&self, config: &str) {
        self.folder.write(CONFIG_FILE, format!("{ANY_PORT}{config}"));
    }

    /// Puts a plugin into the watched folder, in one step.
    pub fn write_plugin(&self, name: &str, content: &[u8]) {
        std::fs::create_dir_all(self.plugins_dir()).expect("the folder of plugins");
        self.folder.write(&format!("plugins/{name}.wasm"), content);
    }

    /// The watched folder; there is none before the first plugin.
    pub fn plugins_dir(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    /// A client with connections of its own.
    pub fn another_client(&self) -> Client {
        Client::http1(self.listen)
    }

    /// The same to the admin listener.
    pub fn another_client_of_admin(&self) -> Client {
        self.admin.anew()
    }

    pub async fn admin_json(&self, path: &str) -> Value {
        self.admin.get(path).await.ok().json()
    }

    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(self.admin.get("/metrics").await.ok().text())
    }

    pub async fn backends(&self) -> Vec<Value> {
        self.admin_json("/api/fleet").await["backends"].as_array().expect("a list of backends").clone()
    }

    /// What `/api/fleet` says of one backend; null where it is not there.
    pub async fn backend(&self, name: &str) -> Value {
        self.backends().await.into_iter().find(|backend| backend["name"] == name).unwrap_or_default()
    }

    pub async fn waits_until(&self, name: &str, state: &str) {
        eventually(&format!("{name} is {state}"), async || self.backend(name).await["state"] == state).await;
    }

    /// Requests that wait in the queue.
    pub async fn waiting(&self) -> u64 {
        self.admin_json("/api/fleet").await["queue"]["waiting"].as_u64().expect("a number of waiting requests")
    }

    /// Returns when so many requests wait in the queue.
    pub async fn queues(&self, count: u64) {
        eventually(&format!("{count} wait in the queue"), async || self.waiting().await == count).await;
    }

    /// Returns when no request is in flight and none waits: every slot and place was given back.
    pub async fn falls_idle(&self) {
        let idle = async || {
            let fleet = self.admin_json("/api/fleet").await;
            let backends = fleet["backends"].as_array().expect("a list of backends");
            fleet["queue"]["waiting"] == 0
                && backends.iter().all(|backend| backend["in_flight"] == 0)
                && self.metrics().await.value("vision_proxy_bodies_in_flight_bytes", &[]) == Some(0.0)
        };
        eventually("all slots, places and bytes are given back", idle).await;
    }

    /// Memory that is its own at this moment, in KiB: not the pages of the program, which come as it runs.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Processor time it has used so far.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("a running process");
        let fields = stat.rsplit_once(')').expect("its name").1.split_whitespace();
        // utime and stime, in hundredths of a second on every Linux (USER_HZ).
        let ticks = fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum::<u64>();
        Duration::from_millis(ticks * 10)
    }

    /// File descriptors it has open at this moment.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("a running process").count()
    }

    /// Everything it wrote so far.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// The most memory it had so far.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("its status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak.and_then(|kib| kib.parse::<u64>().ok()).expect("its peak") << 10
    }

    /// Of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Ends it without a word (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Another one with this configuration, on the same addresses.
    pub async fn another(&self, config: &str) -> Self {
        let folder = Folder::new();
        let path = folder.write(CONFIG_FILE, config);
        let (listen, admin) = (self.listen.to_string(), self.admin_address.to_string());
        let path = path.to_str().expect("a path of text");
        Self::run(&["--config", path, "--listen", &listen, "--admin", &admin], folder).await
    }

    /// Returns when it ended by itself.
    pub async fn ends(&mut self) -> ExitStatus {
        self.process.ends().await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.kill();
        // Where the test failed already, the output is shown.
        if !std::thread::panicking() {
            let output = self.output();
            assert!(!output.contains("panicked"), "the proxy panicked:\n{output}");
        }
    }
}

/// The two addresses of `ready listen=http://… admin=http://…`, or `https://`.
fn addresses(line: &str) -> (SocketAddr, SocketAddr) {
    let address = |key: &str| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let address = word.and_then(|url| url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")));
        address
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("no {key} address in the ready line {line:?}"))
    };
    assert!(line.starts_with("ready "), "not the ready line: {line:?}");
    (address("listen"), address("admin"))
}
