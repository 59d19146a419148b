//! A program that runs as long as its value lives, and is ended by its process id.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;

/// Longest time to a first line.
const START: Duration = Duration::from_secs(20);

pub struct Running(Child);

impl Running {
    /// Starts it; what it says on standard error goes to `log`.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        let child = command.stdin(Stdio::null()).stderr(log).spawn();
        child.map(Self).with_context(|| format!("start {command:?}"))
    }

    /// Starts it and returns with the first line of its standard output; each further line goes to `on_line`.
    pub fn start_talking(
        command: &mut Command,
        log: &Path,
        on_line: impl Fn(&str) + Send + 'static,
    ) -> anyhow::Result<(Self, String)> {
        let mut running = Self::start(command.stdout(Stdio::piped()), log)?;
        let pipe = running.0.stdout.take().context("a pipe")?;
        let (tell, first) = mpsc::channel();
        std::thread::spawn(move || read(pipe, &tell, on_line));
        let first = first.recv_timeout(START).with_context(|| format!("{command:?} said nothing"))?;
        Ok((running, first))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends with the pipe.
fn read(pipe: impl Read, first: &mpsc::Sender<String>, on_line: impl Fn(&str)) {
    let mut lines = BufReader::new(pipe).lines().map_while(Result::ok);
    // Whoever waited may have given up.
    let _ = lines.next().map(|line| first.send(line));
    lines.for_each(|line| on_line(&line));
}
