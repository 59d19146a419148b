//! A real vLLM on the CPU, with a tiny vision model that talks nonsense.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use crate::support::wait::patiently;
use crate::support::*;

/// `--max-num-seqs`: requests that it runs at once; it queues the others without a limit.
pub const RUNS_AT_ONCE: u32 = 4;
/// It imports Python for a minute, and several start at once on a machine of two cores.
const START: Duration = Duration::from_secs(600);

pub struct Vllm {
    /// Also what it calls its model.
    pub name: &'static str,
    pub address: SocketAddr,
    pub program: Program,
    /// The processes behind the one that serves, once it was up: they may outlive it.
    behind: Vec<u32>,
}

impl Vllm {
    /// Begins to start, with these arguments besides; [`Vllm::is_up`] waits until it has.
    pub fn start(name: &'static str, arguments: &[&str]) -> Self {
        // Free now, and hardly taken by another before it is used: nothing else runs beside these tests.
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("a bound socket");
        drop(free);
        Self { name, address, program: serve(name, address, arguments), behind: Vec::new() }
    }

    /// Starts again on its old port.
    pub fn restart(&mut self, arguments: &[&str]) {
        self.end();
        self.program = serve(self.name, self.address, arguments);
    }

    pub async fn is_up(&mut self) {
        let (client, program) = (Client::http1(self.address), &mut self.program);
        patiently(START, &format!("{} is up", self.name), async || {
            assert!(!program.has_ended(), "it ended while it started");
            let health = try_whole(client.request("GET", "/health").timeout(Duration::from_secs(5))).await;
            health.is_ok_and(|reply| reply.status == 200)
        })
        .await;
        self.behind = descendants(self.program.id());
    }

    /// To be asked without the proxy.
    pub fn client(&self) -> Client {
        Client::http1(self.address)
    }

    /// Its table in a configuration; [`MODEL`] is the public name.
    pub fn entry(&self) -> String {
        let Self { name, address, .. } = self;
        let models = format!("models = {{ \"{MODEL}\" = \"{name}\", \"lost\" = \"not-here\" }}\n");
        format!("[[backends]]\nname = \"{name}\"\nurl = \"http://{address}\"\n{models}")
    }

    /// One of its own metrics.
    pub async fn metric(&self, name: &str) -> f64 {
        let metrics = Metrics::parse(self.client().get("/metrics").await.ok().text());
        metrics.value(name, &[]).unwrap_or_else(|| panic!("no {name}"))
    }

    /// The process that runs the model, behind the one that serves.
    pub fn engine_core(&self) -> u32 {
        self.behind.iter().copied().find(|id| name_of(*id).starts_with("VLLM::EngineCor")).expect("an engine core")
    }

    /// Ends it with all its processes.
    fn end(&mut self) {
        self.behind.extend(descendants(self.program.id()));
        for id in self.behind.drain(..).filter(|id| name_of(*id).starts_with("VLLM::")) {
            // An error means that it ended meanwhile.
            _ = Command::new("kill").args(["-KILL", &id.to_string()]).status();
        }
        self.program.kill();
    }
}

impl Drop for Vllm {
    fn drop(&mut self) {
        self.end();
    }
}

fn serve(name: &str, address: SocketAddr, arguments: &[&str]) -> Program {
    let mut command = Command::new(installed("engines/vllm/bin/python", "test-engines"));
    command.args(["-m", "vllm.entrypoints.openai.api_server", "--served-model-name", name, "--load-format", "dummy"]);
    command.arg("--model").arg(installed("engines/vllm/tiny-vision", "test-engines"));
    command.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
    command.args(["--max-num-seqs", &RUNS_AT_ONCE.to_string(), "--max-model-len", "4096"]);
    // So few blocks that a handful of requests shows in the use of the cache.
    command.args(["--num-gpu-blocks-override", "256", "--enforce-eager", "--dtype", "float32"]);
    command.args(arguments);
    for (key, value) in [
        ("HF_HUB_OFFLINE", "1"),
        ("TRANSFORMERS_OFFLINE", "1"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("VLLM_TARGET_DEVICE", "cpu"),
        ("VLLM_CPU_KVCACHE_SPACE", "1"),
        ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        ("VLLM_CPU_NUM_OF_RESERVED_CPU", "0"),
        ("OMP_NUM_THREADS", "1"),
        ("CUDA_VISIBLE_DEVICES", ""),
        ("PYTHONUNBUFFERED", "1"),
    ] {
        command.env(key, value);
    }
    Program::start(name, &mut command)
}

/// What a process calls itself, of which the kernel keeps 15 letters; empty where there is none.
fn name_of(process: u32) -> String {
    std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default()
}

/// The processes below this one.
fn descendants(id: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.into_iter().flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}
