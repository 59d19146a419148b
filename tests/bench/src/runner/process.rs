//! Processes of the runner: pinned, ended by their own ids, and never left behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::{pinned, proc};

/// How long a process may take to end once it is told to.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running process. Dropped, it is told to end.
pub struct Process {
    name: String,
    child: Child,
    pid: u32,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts a program on these cores; what it says on standard error goes to `NAME.log` in `folder`.
    pub fn start(name: &str, cores: &[usize], folder: &Path, command: &[String]) -> anyhow::Result<Self> {
        let log = File::create(log_of(folder, name))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["pinned", "--cores", &pinned::listed(cores), "--"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id().context("it ended at once")?;
        let lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        Ok(Self { name: name.to_owned(), child, pid, lines })
    }

    /// Starts a part of this program.
    pub fn part(name: &str, cores: &[usize], folder: &Path, arguments: &[String]) -> anyhow::Result<Self> {
        let this = std::env::current_exe()?.to_string_lossy().into_owned();
        let command: Vec<_> = std::iter::once(this).chain(arguments.iter().cloned()).collect();
        Self::start(name, cores, folder, &command)
    }

    /// Its next line.
    pub async fn line(&mut self, within: Duration) -> anyhow::Result<String> {
        let line = timeout(within, self.lines.next_line()).await;
        let line = line.with_context(|| format!("{} said nothing for {within:?}", self.name))??;
        line.with_context(|| format!("{} ended: see {}.log", self.name, self.name))
    }

    /// What follows `ready` in its next line.
    pub async fn ready(&mut self, within: Duration) -> anyhow::Result<String> {
        let line = self.line(within).await?;
        let rest = line.strip_prefix("ready ").with_context(|| format!("{} said `{line}`", self.name))?;
        Ok(rest.to_owned())
    }

    /// It and its children.
    pub fn pids(&self) -> Vec<u32> {
        proc::family(self.pid)
    }

    /// Ends it, by force where it must be.
    pub async fn stop(mut self) {
        let family = self.pids();
        signal(self.pid, Signal::TERM);
        if timeout(PATIENCE, self.child.wait()).await.is_err() {
            family.iter().for_each(|pid| signal(*pid, Signal::KILL));
            // It cannot refuse that.
            let _ = timeout(PATIENCE, self.child.wait()).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Not reaped yet, so the id is still its own.
        if self.child.id().is_some() {
            signal(self.pid, Signal::TERM);
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Whoever is gone needs no signal.
        let _ = kill_process(pid, signal);
    }
}

fn log_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}
