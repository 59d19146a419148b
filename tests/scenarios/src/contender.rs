//! Who balances: this proxy, nginx and HAProxy, each told how many slots each server has, in the way it can be told. Where
//! nobody is told, this proxy is alone: the others cannot find out.
//!
//! nginx has no line of its own: `least_conn` with the slots as weights; its `max_conns` would refuse with 502 what a
//! line would keep, so it is left out. HAProxy has one: `maxconn` a server, and half of it in each of two replicas,
//! which know nothing of each other. Both retry what another server can still answer, as this proxy does.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::fleet::Backend;
use crate::load;
use crate::process::Running;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Contender {
    VisionProxy,
    Nginx,
    Haproxy,
}

/// What a contender is started with.
pub struct Setting<'a> {
    pub program: &'a Path,
    pub folder: &'a Path,
    pub fleet: &'a [Backend],
    pub replicas: usize,
    /// Whether the configuration says how many slots each server has.
    pub is_told: bool,
    /// The longest wait for the first byte of an answer.
    pub patience: Duration,
    /// How often servers are asked how they are.
    pub poll_interval: Duration,
}

/// A contender that answers.
pub struct Front {
    pub address: SocketAddr,
    _process: Running,
}

impl Contender {
    pub const ALL: [Self; 3] = [Self::VisionProxy, Self::Nginx, Self::Haproxy];

    pub const fn name(self) -> &'static str {
        match self {
            Self::VisionProxy => "Vision Proxy",
            Self::Nginx => "nginx `least_conn`",
            Self::Haproxy => "HAProxy `leastconn` `maxconn`",
        }
    }

    /// Whether it can be started here.
    pub fn is_installed(self) -> bool {
        let version = |program, flag| {
            let mut command = Command::new(program);
            command.arg(flag).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        match self {
            Self::VisionProxy => true,
            Self::Nginx => version("nginx", "-v"),
            Self::Haproxy => version("haproxy", "-v"),
        }
    }

    /// Starts one replica, and returns when it has seen every server.
    pub async fn start(self, setting: &Setting<'_>, replica: usize) -> anyhow::Result<Front> {
        match self {
            Self::VisionProxy => vision_proxy(setting, replica).await,
            Self::Nginx => peer(setting, replica, "nginx", nginx_config).await,
            Self::Haproxy => peer(setting, replica, "haproxy", haproxy_config).await,
        }
    }
}

/// Longest time until a contender answers.
const START: Duration = Duration::from_secs(10);

async fn vision_proxy(setting: &Setting<'_>, replica: usize) -> anyhow::Result<Front> {
    let mut config = format!(
        "listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n[plugins]\npolicy = \"least-busy\"\n\
         [timeouts]\nfirst_byte = \"{}s\"\n[capacity]\npoll_interval = \"{}ms\"\nreplicas = {}\n\
         slow_start = \"2s\"\n[failover]\neject_for = \"200ms\"\n",
        setting.patience.as_secs(),
        setting.poll_interval.as_millis(),
        setting.replicas
    );
    for (index, backend) in setting.fleet.iter().enumerate() {
        let (url, engine) = (backend.address, backend.gpu.engine);
        let slots = if setting.is_told { format!("slots = {}\n", backend.gpu.slots) } else { String::new() };
        let entry = format!("url = \"http://{url}\"\nengine = \"{engine}\"\n{slots}");
        write!(config, "[[backends]]\nname = \"s{index}\"\n{entry}")?;
    }
    let path = write_config(setting, replica, "vision-proxy.toml", &config)?;
    let mut command = Command::new(setting.program);
    command.arg("run").arg("--config").arg(&path).current_dir(setting.folder);
    let (process, line) = Running::start_talking(&mut command, &path.with_extension("log"), |_| {})?;
    let address = |name: &str| {
        let word = line.split(' ').find_map(|word| word.strip_prefix(name));
        anyhow::Ok(word.with_context(|| format!("no {name} in {line:?}"))?.parse()?)
    };
    let (listen, admin): (SocketAddr, SocketAddr) = (address("listen=http://")?, address("admin=http://")?);
    let known = async || {
        let fleet: Value = serde_json::from_slice(&load::call(admin, "/api/fleet", None).await?)?;
        let backends = fleet["backends"].as_array().context("no list of backends")?;
        anyhow::ensure!(backends.iter().all(|backend| backend["state"] == "available"), "not all are available");
        Ok(())
    };
    until(known).await?;
    Ok(Front { address: listen, _process: process })
}

async fn peer(
    setting: &Setting<'_>,
    replica: usize,
    name: &str,
    config: fn(&Setting<'_>, SocketAddr) -> anyhow::Result<String>,
) -> anyhow::Result<Front> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let path = write_config(setting, replica, &format!("{name}.conf"), &config(setting, address)?)?;
    let mut command = Command::new(name);
    match name {
        "nginx" => command.arg("-p").arg(setting.folder).arg("-e").arg(path.with_extension("errors")).arg("-c"),
        _ => command.arg("-db").arg("-f"),
    };
    let process = Running::start(command.arg(&path).stdout(Stdio::null()), &path.with_extension("log"))?;
    until(async || load::call(address, "/v1/models", None).await.map(drop)).await?;
    Ok(Front { address, _process: process })
}

fn write_config(setting: &Setting<'_>, replica: usize, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = setting.folder.join(format!("{replica}-{name}"));
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Without active checks a server is taken out by its failures.
/// One process, which is the worker: what is started is what is ended, and `least_conn` counts in one place.
fn nginx_config(setting: &Setting<'_>, listen: SocketAddr) -> anyhow::Result<String> {
    let mut servers = String::new();
    for backend in setting.fleet {
        let (address, slots) = (backend.address, backend.gpu.slots);
        writeln!(servers, "    server {address} weight={slots} max_fails=2 fail_timeout=1s;")?;
    }
    let folder = setting.folder.display();
    let patience = setting.patience.as_secs();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {folder}/nginx-{kind}-{};\n", listen.port()))
        .concat();
    Ok(format!(
        "daemon off;\nmaster_process off;\npid {folder}/nginx-{}.pid;\nevents {{ worker_connections 8192; }}\n\
         http {{\n{paths}  access_log off;\n  client_max_body_size 64m;\n  client_body_buffer_size 2m;\n\
         \x20 upstream fleet {{\n    least_conn;\n{servers}    keepalive 256;\n  }}\n\
         \x20 server {{\n    listen {listen};\n    location / {{\n      proxy_pass http://fleet;\n\
         \x20     proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      proxy_buffering off;\n\
         \x20     proxy_connect_timeout 1s;\n      proxy_read_timeout {patience}s;\n\
         \x20     proxy_next_upstream error timeout http_502 http_503 http_429 non_idempotent;\n\
         \x20     proxy_next_upstream_tries 3;\n    }}\n  }}\n}}\n",
        listen.port()
    ))
}

fn haproxy_config(setting: &Setting<'_>, listen: SocketAddr) -> anyhow::Result<String> {
    let patience = setting.patience.as_secs();
    let mut config = format!(
        "global\n  maxconn 8192\n  nbthread 2\n  tune.bufsize 65536\n\
         defaults\n  mode http\n  timeout connect 1s\n  timeout client 60s\n  timeout server {patience}s\n\
         \x20 timeout queue 30s\n  retries 2\n  option redispatch 1\n  option http-buffer-request\n\
         \x20 option http-no-delay\n\
         \x20 retry-on conn-failure empty-response response-timeout 503\n\
         frontend clients\n  bind {listen}\n  default_backend fleet\n\
         backend fleet\n  balance leastconn\n  option httpchk GET /v1/models\n\
         \x20 default-server check inter {}ms fall 2 rise 1\n",
        setting.poll_interval.as_millis()
    );
    for (index, backend) in setting.fleet.iter().enumerate() {
        let (address, slots) = (backend.address, backend.gpu.slots);
        let own = (slots / setting.replicas).max(1);
        writeln!(config, "  server s{index} {address} weight {slots} maxconn {own}")?;
    }
    Ok(config)
}

async fn until(ready: impl AsyncFn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let deadline = Instant::now() + START;
    loop {
        match ready().await {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() > deadline => return Err(why),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}
