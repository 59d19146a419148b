//! One proxy under test with its backends, started for one measurement and ended after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::Setting;
use super::cells::Subject;
use super::change;
use super::peers::{self, Peer};
use super::process::Process;
use crate::load::{Kind, Plan};

/// Until a process says that it is ready, or answers.
const READY_WITHIN: Duration = Duration::from_secs(20);
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// Running, and answering.
pub struct Session {
    /// Where load goes.
    pub target: String,
    /// None where load goes to the backend itself.
    pub proxy: Option<Process>,
    pub backend: Process,
    pub backends: Vec<String>,
    pub folder: PathBuf,
    /// The admin listener, where it is our own proxy.
    pub admin: Option<String>,
}

impl Session {
    pub async fn start(setting: &Setting, subject: &Subject) -> anyhow::Result<Self> {
        let folder = setting.out.join("run").join(subject.peer.name());
        // What is left of the last one; there may be none.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("plugins"))?;
        let cores = setting.cores_of(subject);
        let arguments = ["backend", "--model", subject.peer.native(), "--listeners", &subject.backends.to_string()];
        let mut backend = Process::part("backend", &cores.load, &folder, &arguments.map(str::to_owned))?;
        let backends: Vec<_> = backend.ready(READY_WITHIN).await?.split(' ').map(str::to_owned).collect();
        let mut session = Self {
            target: backends.first().context("no backend")?.clone(),
            proxy: None,
            backend,
            backends,
            folder,
            admin: None,
        };
        session.start_proxy(setting, subject, &cores.proxy).await?;
        timeout(READY_WITHIN, session.answers(subject)).await.context("it does not answer")??;
        Ok(session)
    }

    async fn start_proxy(&mut self, setting: &Setting, subject: &Subject, cores: &[usize]) -> anyhow::Result<()> {
        let (name, folder) = (subject.peer.name(), self.folder.clone());
        let port = peers::free_port()?;
        let command = match subject.peer {
            Peer::Direct => return Ok(()),
            Peer::Nginx => peers::nginx(&folder, port, &self.backends, true)?,
            Peer::NginxUnbuffered => peers::nginx(&folder, port, &self.backends, false)?,
            Peer::Haproxy => peers::haproxy(&folder, port, &self.backends)?,
            Peer::Hyper => {
                let arguments: Vec<_> = std::iter::once("bare".to_owned()).chain(self.backends.clone()).collect();
                let mut proxy = Process::part(name, cores, &folder, &arguments)?;
                self.target = proxy.ready(READY_WITHIN).await?;
                self.proxy = Some(proxy);
                return Ok(());
            }
            Peer::VisionProxy | Peer::SameNames => self.ours(setting, subject)?,
        };
        self.target = format!("127.0.0.1:{port}");
        let mut proxy = Process::start(name, cores, &folder, &command)?;
        if subject.peer.is_ours() {
            let ready = proxy.ready(READY_WITHIN).await?;
            let address = |key: &str| {
                let said = ready.split(' ').find_map(|part| part.strip_prefix(key)?.strip_prefix("=http://"));
                said.map(str::to_owned).with_context(|| format!("`{ready}` names no {key}"))
            };
            self.target = address("listen")?;
            self.admin = Some(address("admin")?);
        }
        self.proxy = Some(proxy);
        Ok(())
    }

    fn ours(&self, setting: &Setting, subject: &Subject) -> anyhow::Result<Vec<String>> {
        let file = self.folder.join("vision-proxy.toml");
        fs::write(&file, peers::vision_proxy(subject.peer, subject.workers, &self.backends, 0))?;
        Ok(vec![path(&setting.proxy), "run".into(), "--config".into(), path(&file)])
    }

    /// Waits until a chat is answered, and our own proxy has found all of its backends.
    async fn answers(&self, subject: &Subject) -> anyhow::Result<()> {
        let request = self.plan(1, Kind::Chat).request();
        while !self.is_answered(&request).await {
            sleep(BETWEEN_TRIES).await;
        }
        let Some(admin) = &self.admin else { return Ok(()) };
        let available = |line: &&str| {
            let is_state = line.starts_with("vision_proxy_backend_state{") && line.contains("state=\"available\"");
            is_state && change::value_of(line) == Some(1.0)
        };
        while change::page(admin, "/metrics").await?.lines().filter(available).count() < subject.backends {
            sleep(BETWEEN_TRIES).await;
        }
        Ok(())
    }

    async fn is_answered(&self, request: &[u8]) -> bool {
        let asked = async {
            let mut stream = TcpStream::connect(&self.target).await?;
            stream.write_all(request).await?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await?;
            std::io::Result::Ok(answer.ends_with(b" 200"))
        };
        timeout(Duration::from_secs(1), asked).await.is_ok_and(|answered| answered.unwrap_or(false))
    }

    /// A load on whatever is measured here. Its times are the caller's.
    pub fn plan(&self, connections: usize, kind: Kind) -> Plan {
        let (target, model) = (self.target.clone(), peers::MODEL.to_owned());
        Plan { target, model, connections, kind, seconds: 0.0, warm_seconds: 0.0 }
    }

    /// The processes of the proxy.
    pub fn proxy_pids(&self) -> Vec<u32> {
        self.proxy.as_ref().map(Process::pids).unwrap_or_default()
    }

    pub async fn stop(self) {
        if let Some(proxy) = self.proxy {
            proxy.stop().await;
        }
        self.backend.stop().await;
    }
}

/// Starts the load generator with a plan and waits until it counts.
pub async fn begin(plan: &Plan, cores: &[usize], folder: &Path, number: usize) -> anyhow::Result<Process> {
    let arguments = ["load".to_owned(), serde_json::to_string(plan)?];
    let mut load = Process::part(&format!("load-{number}"), cores, folder, &arguments)?;
    // Thousands of streams take their time to open.
    let within = Duration::from_secs(60);
    match load.line(within).await?.as_str() {
        "begin" => Ok(load),
        other => bail!("the load generator said `{other}`"),
    }
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
