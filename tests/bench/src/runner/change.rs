//! Changes while traffic flows: another policy, or another configuration, every 200 ms.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

use super::peers::{self, Peer};

const EVERY: Duration = Duration::from_millis(200);
/// A page of the admin listener takes milliseconds; the core may be busy.
const ADMIN_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
pub enum Change {
    Plugin,
    Config,
}

/// Whoever changes things, and what it needs for that.
pub struct Changer {
    pub change: Change,
    /// Of the proxy: its configuration, and the folder of plugins.
    pub folder: PathBuf,
    /// The component that is swapped in, again and again.
    pub policy: PathBuf,
    pub peer: Peer,
    pub workers: usize,
    pub backends: Vec<String>,
    /// The address of the admin listener.
    pub admin: String,
}

impl Changer {
    /// Changes until dropped.
    pub async fn run(&self) -> anyhow::Result<()> {
        let component = match self.change {
            Change::Plugin => fs::read(&self.policy).with_context(|| format!("no policy {}", self.policy.display()))?,
            Change::Config => Vec::new(),
        };
        let mut clock = interval(EVERY);
        for change in 1.. {
            clock.tick().await;
            let (bytes, place) = match self.change {
                Change::Plugin => (varied(&component, change), self.folder.join("plugins/round-robin.wasm")),
                Change::Config => {
                    let text = peers::vision_proxy(self.peer, self.workers, &self.backends, change);
                    (text.into_bytes(), self.folder.join("vision-proxy.toml"))
                }
            };
            // Moved into its place, so that nobody reads half of it.
            let aside = self.folder.join("next");
            fs::write(&aside, bytes)?;
            fs::rename(&aside, &place)?;
        }
        Ok(())
    }

    /// How many changes the proxy has taken over so far.
    pub async fn taken_over(&self) -> anyhow::Result<f64> {
        let (counter, result) = match self.change {
            Change::Plugin => ("vision_proxy_plugin_reloads_total{", "plugin=\"round-robin\",result=\"swapped\""),
            Change::Config => ("vision_proxy_config_reloads_total{", "result=\"loaded\""),
        };
        let metrics = timeout(ADMIN_WITHIN, page(&self.admin, "/metrics")).await??;
        let line = metrics.lines().find(|line| line.starts_with(counter) && line.contains(result));
        Ok(line.and_then(value_of).unwrap_or(0.0))
    }
}

/// The same component, and yet another content: a custom section at its end, which says nothing.
fn varied(component: &[u8], change: u64) -> Vec<u8> {
    const CUSTOM: u8 = 0;
    const NAME: &[u8] = b"bench";
    let number = change.to_le_bytes();
    let (name_length, length) = (NAME.len() as u8, (1 + NAME.len() + number.len()) as u8);
    [component, &[CUSTOM, length, name_length], NAME, &number].concat()
}

/// The value in a line of metrics.
pub fn value_of(line: &str) -> Option<f64> {
    line.rsplit(' ').next()?.parse().ok()
}

/// A page of an admin listener, head and all.
pub async fn page(address: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
