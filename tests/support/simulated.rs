//! A simulated engine as a process of its own: one that can be told to fail, stopped, killed and started again.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::{Value, json};

use super::bodies::{MODEL, NATIVE};
use super::{Client, Program};

pub struct Simulated {
    pub name: &'static str,
    address: SocketAddr,
    process: Program,
    control: Client,
    kind: Kind,
}

/// What is simulated.
#[derive(Clone, Copy)]
struct Kind {
    engine: &'static str,
    slots: u32,
    /// The configuration says how many slots it has.
    is_told: bool,
    tokens: &'static str,
    token_interval: &'static str,
    /// It writes each request's way through it to its output.
    keeps_journal: bool,
}

/// A line of a journal: what changed at a server, by the wall clock.
pub struct Step {
    pub at_us: u128,
    /// `entered`, `began` or `left`.
    pub change: String,
    /// The id that the request came with.
    pub request: String,
}

/// Tells one server how to fail.
pub struct Faults(Client);

impl Faults {
    pub async fn fails(&self, fault: &str) {
        self.0.post_json("/__simulate/fault", &json!({"fault": fault})).await.ok();
    }
}

impl Simulated {
    /// A vLLM of so many slots, quick enough for a test.
    pub async fn start(name: &'static str, slots: u32) -> Self {
        let kind =
            Kind { engine: "vllm", slots, is_told: true, tokens: "8", token_interval: "2ms", keeps_journal: false };
        Self::start_at(name, kind, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// An engine of whose slots the configuration says nothing. An answer takes a quarter of a second, so that whoever
    /// waits inside can tell.
    pub async fn untold(name: &'static str, engine: &'static str, slots: u32) -> Self {
        let kind = Kind { engine, slots, is_told: false, tokens: "20", token_interval: "10ms", keeps_journal: false };
        Self::start_at(name, kind, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// A vLLM of so many slots that writes down what it holds. An answer takes longer than a second.
    pub async fn with_journal(name: &'static str, slots: u32) -> Self {
        let (tokens, token_interval) = ("40", "30ms");
        let kind = Kind { engine: "vllm", slots, is_told: true, tokens, token_interval, keeps_journal: true };
        Self::start_at(name, kind, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    async fn start_at(name: &'static str, kind: Kind, listen: SocketAddr) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vision-proxy"));
        command.args(["simulate-backend", "--engine", kind.engine, "--model", NATIVE, "--tokens", kind.tokens]);
        command.args(["--token-interval", kind.token_interval, "--slots", &kind.slots.to_string()]);
        command.args(["--listen", &listen.to_string()]);
        if kind.keeps_journal {
            command.arg("--journal");
        }
        let mut process = Program::start(name, &mut command);
        let line = process.first_line().await;
        let address = line.strip_prefix("listening on http://").and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no address: {line:?}"));
        Self { name, address, process, control: Client::http1(address), kind }
    }

    /// Its table in a configuration.
    pub fn entry(&self) -> String {
        let (name, address, Kind { engine, slots, is_told, .. }) = (self.name, self.address, self.kind);
        let slots = if is_told { format!("slots = {slots}\n") } else { String::new() };
        let models = format!("models = {{ \"{MODEL}\" = \"{NATIVE}\" }}");
        format!("[[backends]]\nname = \"{name}\"\nurl = \"http://{address}\"\nengine = \"{engine}\"\n{slots}{models}\n")
    }

    /// Fails from now on as `simulate-backend --fault` would.
    pub async fn fails(&self, fault: &str) {
        self.faults().fails(fault).await;
    }

    /// What tells it to fail, for a task of its own.
    pub fn faults(&self) -> Faults {
        Faults(self.control.clone())
    }

    pub async fn heals(&self) {
        self.control.post_json("/__simulate/fault", &json!({"fault": null})).await.ok();
    }

    /// A number of `GET /__simulate/stats`.
    pub async fn count(&self, of: &str) -> u64 {
        let stats: Value = self.control.get("/__simulate/stats").await.ok().json();
        stats[of].as_u64().unwrap_or_else(|| panic!("no {of} in {stats}"))
    }

    /// Its journal so far, in order.
    pub fn journal(&self) -> Vec<Step> {
        let step = |line: &str| {
            let [at_us, change, request, ..] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
            Some(Step { at_us: at_us.parse().ok()?, change: change.to_owned(), request: request.to_owned() })
        };
        self.process.output().lines().filter_map(step).collect()
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Killed without a word; its connections are reset.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Whether its process has ended by itself.
    pub fn has_died(&mut self) -> bool {
        self.process.has_ended()
    }

    /// The same again at the same address, with nothing of what it was doing.
    pub async fn again(&self) -> Self {
        Self::start_at(self.name, self.kind, self.address).await
    }
}
