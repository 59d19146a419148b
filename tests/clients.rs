//! The official OpenAI SDKs for Python and Node do through the proxy what applications do with them.
//!
//! What they do and expect is in `clients/client.py` and `clients/client.mjs`, case by case under the same names.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::timeout;

use crate::support::*;

/// Starting Python alone takes seconds on a busy machine.
const SDK_PATIENCE: Duration = Duration::from_secs(60);
const INSTALLED_BY: &str = "test";

#[derive(Clone, Copy, Debug)]
enum Sdk {
    Python,
    Node,
}

const SDKS: [Sdk; 2] = [Sdk::Python, Sdk::Node];

impl Sdk {
    fn command(self) -> Command {
        let script = |name: &str| format!("{}/../tests/clients/{name}", env!("CARGO_MANIFEST_DIR"));
        match self {
            Self::Python => {
                let mut command = Command::new(installed("clients/python/bin/python", INSTALLED_BY));
                command.arg(script("client.py"));
                command
            }
            Self::Node => {
                let mut command = Command::new("node");
                command.env("NODE_PATH", installed("clients/node_modules", INSTALLED_BY)).arg(script("client.mjs"));
                command
            }
        }
    }

    async fn runs(self, proxy: &Proxy, cases: &[&str]) {
        self.runs_by(format!("http://{}/v1", proxy.listen), self.command(), cases).await;
    }

    /// The same by TLS, trusting the authority in this file as their documents say.
    async fn runs_by_tls(self, proxy: &Proxy, ca: &Path, cases: &[&str]) {
        let mut command = self.command();
        command.env("SSL_CERT_FILE", ca).env_remove("SSL_CERT_DIR").env("NODE_EXTRA_CA_CERTS", ca);
        self.runs_by(format!("https://{}/v1", proxy.listen), command, cases).await;
    }

    /// Runs these cases; fails with all that the script said where one of them failed.
    async fn runs_by(self, url: String, mut command: Command, cases: &[&str]) {
        command.args(cases).stdin(Stdio::null());
        command.env("OPENAI_BASE_URL", url).env("OPENAI_API_KEY", "none-needed");
        let ended = tokio::process::Command::from(command).kill_on_drop(true).output();
        let ended = timeout(SDK_PATIENCE, ended).await.unwrap_or_else(|_| panic!("{self:?} does not end: {cases:?}"));
        let ended = ended.unwrap_or_else(|why| panic!("{self:?} does not start: {why}"));
        let (stdout, stderr) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert!(ended.status.success(), "{self:?}, {}:\n{stdout}\n{stderr}", ended.status);
    }
}

/// A simulated engine of this kind, and its table in a configuration.
async fn simulated(name: &str, engine: &str, native: &str, token_interval: &str) -> (Program, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vision-proxy"));
    command.args(["simulate-backend", "--engine", engine, "--model", native, "--token-interval", token_interval]);
    let mut program = Program::start(name, &mut command);
    let line = program.first_line().await;
    let url = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("no address: {line:?}"));
    let models = format!("models = {{ \"{MODEL}\" = \"{native}\" }}\n");
    let entry = format!("[[backends]]\nname = \"{name}\"\nurl = \"{url}\"\n{models}");
    (program, entry)
}

/// All that applications do, before engines of this kind that call the model by different names.
async fn serve(engine: &str) {
    let (_a, first) = simulated("a", engine, "org/first-name", "1ms").await;
    let (_b, second) = simulated("b", engine, "second-name", "1ms").await;
    let proxy = Proxy::start(&format!("{first}{second}")).await;
    for sdk in SDKS {
        let cases = ["models", "chat", "stream", "vision", "embeddings", "responses"];
        sdk.runs(&proxy, &cases).await;
        sdk.runs(&proxy, &["unknown_model", "refused_by_proxy", "refused_by_backend"]).await;
    }
    for name in ["a", "b"] {
        let told = proxy.backend(name).await;
        assert_eq!((told["engine"].as_str(), &told["failures_total"]), (Some(engine), &0.into()), "{told}");
        assert!(told["requests_total"].as_u64() > Some(0), "{told}");
    }
}

#[tokio::test]
async fn sdks_are_served_by_vllm() {
    serve("vllm").await;
}

#[tokio::test]
async fn sdks_are_served_by_llama_cpp() {
    serve("llama-cpp").await;
}

#[tokio::test]
async fn sdks_speak_tls_with_a_private_authority() {
    let (authority, folder) = (Authority::named("private"), Folder::new());
    let ca = folder.write("ca.pem", &authority.pem);
    let (_engine, entry) = simulated("a", "vllm", "org/first-name", "1ms").await;
    let proxy = Proxy::start(&format!("{}{entry}", authority.certify(&[LOOPBACK]).table(&folder))).await;
    for sdk in SDKS {
        sdk.runs_by_tls(&proxy, &ca, &["chat", "stream", "vision"]).await;
    }
}

#[tokio::test]
async fn sdks_come_back_when_a_full_fleet_said_and_are_served() {
    for sdk in SDKS {
        let top = "[queue]\nsize = 1\n";
        let (proxy, [backend]) = proxied(top, [Setup::named("a").slots(1)]).await;
        let gate = Gate::closed();
        backend.answer_by({
            let gate = gate.clone();
            move |request| engine_answer(request).behind(&gate)
        });
        let held = proxy.client.begin_chat();
        gate.reached_by(1).await;
        let queued = proxy.client.begin_chat();
        proxy.queues(1).await;
        sdk.runs(&proxy, &["saturated_for_good"]).await;
        let refused = async || {
            let refused = proxy.metrics().await.value("vision_proxy_requests_total", &[("status", "429")]);
            refused.is_some_and(|refused| refused > 1.0)
        };
        tokio::join!(sdk.runs(&proxy, &["saturated"]), async {
            eventually("the SDK was refused once", refused).await;
            gate.open();
        });
        held.reply().await.ok();
        queued.reply().await.ok();
        let retried = backend.requests().last().expect("a request").header("x-stainless-retry-count");
        assert_ne!(retried, "0", "{sdk:?} was served at its first try");
    }
}

#[tokio::test]
async fn a_crowd_before_a_small_fleet_is_served_by_the_retries_of_its_sdk_alone() {
    // Slow enough that an SDK on a busy machine finds it full all the same.
    let (_engine, entry) = simulated("a", "openai", "first-name", "3ms").await;
    for sdk in SDKS {
        let proxy = Proxy::start(&format!("[queue]\nsize = 0\n{entry}slots = 2\n")).await;
        sdk.runs(&proxy, &["crowd"]).await;
        let refused = proxy.metrics().await.value("vision_proxy_requests_total", &[("status", "429")]);
        assert!(refused >= Some(10.0), "{sdk:?} met no full fleet: {refused:?}");
    }
}

#[tokio::test]
async fn sdks_see_a_stream_that_breaks_as_an_error() {
    let (proxy, [backend]) = proxied("", ["a"]).await;
    backend.always(Answer::stream().event(&delta(NATIVE, "one")).reset());
    for sdk in SDKS {
        sdk.runs(&proxy, &["interrupted"]).await;
    }
}
