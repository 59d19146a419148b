//! The proxies that are compared, and their configurations.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::pinned::most_open_files;

/// What clients call the model.
pub const MODEL: &str = "bench-model";
/// What the backends call it where names are translated.
const NATIVE: &str = "org/bench-model-7b-instruct";
/// Files of a proxy that are neither a client's connection nor a backend's.
const OTHER_FILES: u64 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// No proxy at all.
    Direct,
    Nginx,
    /// nginx that passes bodies on as they come, and so cannot send one again elsewhere.
    NginxUnbuffered,
    Haproxy,
    /// hyper and nothing else.
    Hyper,
    /// With names translated.
    VisionProxy,
    /// With names that are the same on both sides.
    SameNames,
}

impl Peer {
    pub const ALL: [Self; 7] = [
        Self::Direct,
        Self::Nginx,
        Self::NginxUnbuffered,
        Self::Haproxy,
        Self::Hyper,
        Self::VisionProxy,
        Self::SameNames,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::NginxUnbuffered => "nginx-unbuffered",
            Self::Haproxy => "haproxy",
            Self::Hyper => "hyper",
            Self::VisionProxy => "vision-proxy",
            Self::SameNames => "vision-proxy-same-names",
        }
    }

    /// The program that must be there, where it is not part of this workspace.
    pub fn program(self) -> Option<&'static str> {
        match self {
            Self::Nginx | Self::NginxUnbuffered => Some("nginx"),
            Self::Haproxy => Some("haproxy"),
            _ => None,
        }
    }

    pub fn is_ours(self) -> bool {
        matches!(self, Self::VisionProxy | Self::SameNames)
    }

    /// The model's name on the backends.
    pub fn native(self) -> &'static str {
        if self == Self::VisionProxy { NATIVE } else { MODEL }
    }
}

/// Where a program is, as a shell would find it.
pub fn found(program: &str) -> Option<String> {
    let folders = std::env::var_os("PATH")?;
    let places = std::env::split_paths(&folders).chain([Path::new("/usr/sbin").to_owned()]);
    let found = places.map(|folder| folder.join(program)).find(|path| path.is_file())?;
    Some(found.to_string_lossy().into_owned())
}

/// Writes nginx's configuration and says how to start it.
pub fn nginx(folder: &Path, port: u16, backends: &[String], buffers_requests: bool) -> anyhow::Result<Vec<String>> {
    let is_root = rustix::process::geteuid().is_root();
    let servers = backends.iter().map(|address| format!("    server {address} max_fails=1 fail_timeout=2s;"));
    let text = include_str!("../../peers/nginx.conf")
        .replace("@FILES@", &most_open_files().to_string())
        .replace("@DIR@", &folder.to_string_lossy())
        // Its worker would else be somebody who may not enter the folder.
        .replace("@USER@", if is_root { "user root;" } else { "" })
        .replace("@REQUEST_BUFFERING@", if buffers_requests { "on" } else { "off" })
        .replace("@BACKENDS@", &lines(servers))
        .replace("@PORT@", &port.to_string());
    let file = folder.join("nginx.conf");
    fs::write(&file, text)?;
    let program = found("nginx").context("there is no nginx")?;
    Ok(vec![program, "-p".into(), folder.to_string_lossy().into(), "-c".into(), file.to_string_lossy().into()])
}

/// Writes HAProxy's configuration and says how to start it.
pub fn haproxy(folder: &Path, port: u16, backends: &[String]) -> anyhow::Result<Vec<String>> {
    let servers = backends.iter().enumerate().map(|(at, address)| format!("  server backend{at} {address}"));
    let connections = most_open_files().saturating_sub(OTHER_FILES) / 2;
    let text = include_str!("../../peers/haproxy.cfg")
        .replace("@CONNECTIONS@", &connections.to_string())
        .replace("@BACKENDS@", &lines(servers))
        .replace("@PORT@", &port.to_string());
    let file = folder.join("haproxy.cfg");
    fs::write(&file, text)?;
    let program = found("haproxy").context("there is no haproxy")?;
    Ok(vec![program, "-db".into(), "-f".into(), file.to_string_lossy().into()])
}

/// Our own configuration. `change` makes it differ from the one before, and nothing else.
pub fn vision_proxy(peer: Peer, workers: usize, backends: &[String], change: u64) -> String {
    let names = match peer {
        Peer::VisionProxy => format!("models = {{ \"{MODEL}\" = \"{NATIVE}\" }}\n"),
        _ => String::new(),
    };
    let tables = backends.iter().map(|address| {
        format!(
            "[[backends]]\nurl = \"http://{address}\"\nengine = \"vllm\"\nslots = 100_000\nlabels = {{ change = \
             \"{change}\" }}\n{names}"
        )
    });
    include_str!("../../peers/vision-proxy.toml")
        .replace("@WORKERS@", &workers.to_string())
        .replace("@BACKENDS@", &lines(tables))
}

fn lines(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join("\n")
}

/// A port that nobody has now, for programs that cannot say which one they took.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
