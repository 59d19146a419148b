//! `vision-proxy run`

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::{self, Config, Overrides};
use crate::control::{self, ConfigSource, Handed, Listening};

/// Serve: take requests, and send each to a backend that has room.
///
/// The configuration is the file given, else ./vision-proxy.toml, else /etc/vision-proxy/vision-proxy.toml. It is
/// watched: a good change takes effect without losing a request, a bad one is refused as a whole. With --backend
/// no file is needed.
///
/// When it serves, one line goes to standard output:
///   ready listen=http://127.0.0.1:8080 admin=http://127.0.0.1:9901
/// with https:// where [tls] is configured.
///
/// Sockets handed over by systemd (LISTEN_FDS) take the place of both addresses: they are told apart by the names `client`
/// and `admin`, else the first is for applications. Readiness is told where NOTIFY_SOCKET says so.
///
/// A second process may start on the same addresses before this one is told to end: no connection is refused.
///
/// Signals: TERM and INT end it in order (a second one at once), HUP reads the configuration again.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// Address for applications, instead of the configured one
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address of dashboard, metrics and admin API, instead of the configured one
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
}

/// Where the configuration comes from; `check` takes the same.
#[derive(Debug, clap::Args)]
pub struct SourceArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A backend besides those of the file, such as http://10.0.0.11:8000 (repeatable)
    #[arg(long = "backend", value_name = "URL")]
    backends: Vec<String>,
}

impl SourceArgs {
    /// Finds and reads the configuration.
    ///
    /// # Errors
    /// Every mistake in it, a line each.
    pub fn load(
        &self,
        listen: Option<SocketAddr>,
        admin: Option<SocketAddr>,
    ) -> anyhow::Result<(Config, ConfigSource)> {
        let overrides = Overrides { backends: self.backends.clone(), listen, admin };
        let path = config::find(self.config.as_deref()).map_err(explained)?;
        let config = config::load(path.as_deref(), &overrides).map_err(explained)?;
        Ok((config, ConfigSource { path, overrides }))
    }
}

/// The mistakes below a headline, so that each has its own line.
fn explained(mistakes: config::Mistakes) -> anyhow::Error {
    anyhow::anyhow!("the configuration cannot be used\n{mistakes}")
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    super::logging::start();
    let handed = Handed::take()?;
    let (listen, admin) = handed.addresses()?;
    let (config, source) = args.source.load(listen.or(args.listen), admin.or(args.admin))?;
    if config.keys.is_empty() && !config.listen.ip().to_canonical().is_loopback() {
        tracing::warn!(listen = %config.listen, "no [[keys]] are configured: whoever reaches this address may ask");
    }
    control::run(config, source, handed, |listening| {
        // On a thread of its own: a full pipe that nobody reads shall hold up nothing.
        std::thread::spawn(move || announce(listening));
    })
}

/// The ready line. Whoever started us may not read it: that is no reason to stop.
pub fn announce(listening: Listening) {
    let Listening { traffic, is_https, admin } = listening;
    let scheme = if is_https { "https" } else { "http" };
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "ready listen={scheme}://{traffic} admin=http://{admin}").and_then(|()| out.flush());
}
