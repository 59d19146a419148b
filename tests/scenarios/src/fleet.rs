//! The simulated servers of one run, each a process of its own, and what each wrote down of its requests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;

use crate::load::{self, MODEL, now};
use crate::process::Running;
use crate::scenario::{BATCH_COST_MICROS, FIRST_TOKEN_MS, Gpu};

/// A line of a server's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Microseconds since 1970.
    pub at: u64,
    pub change: Change,
    /// Whose request; empty for [`Change::Gone`].
    pub id: String,
    /// Counts of the whole server, right after.
    pub running: usize,
    pub waiting: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Entered,
    Began,
    Left,
    /// The whole server, with all it had.
    Gone,
}

impl Step {
    /// `None` for a line that is none of a journal.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let at = words.next()?.parse().ok()?;
        let change = match words.next()? {
            "entered" => Change::Entered,
            "began" => Change::Began,
            "left" => Change::Left,
            _ => return None,
        };
        let id = words.next()?.to_owned();
        Some(Self { at, change, id, running: words.next()?.parse().ok()?, waiting: words.next()?.parse().ok()? })
    }
}

type Journal = Arc<Mutex<Vec<Step>>>;

pub struct Backend {
    pub gpu: Gpu,
    pub address: SocketAddr,
    /// From and until when it could serve nobody.
    pub out: Vec<(u64, u64)>,
    process: Option<Running>,
    journal: Journal,
    program: PathBuf,
    log: PathBuf,
}

impl Backend {
    pub fn start(program: &Path, gpu: Gpu, folder: &Path, index: usize) -> anyhow::Result<Self> {
        let journal = Journal::default();
        let log = folder.join(format!("backend-{index}.log"));
        let (process, address) = spawn(program, gpu, SocketAddr::from(([127, 0, 0, 1], 0)), &journal, &log)?;
        Ok(Self { gpu, address, out: Vec::new(), process: Some(process), journal, program: program.to_owned(), log })
    }

    pub fn journal(&self) -> Vec<Step> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes requests and answers none, or answers again.
    pub async fn hang(&mut self, hangs: bool) -> anyhow::Result<()> {
        let fault = if hangs { r#"{"fault":"hang"}"# } else { r#"{"fault":null}"# };
        load::call(self.address, "/__simulate/fault", Some(fault.to_owned())).await?;
        self.is_out(hangs);
        Ok(())
    }

    pub fn kill(&mut self) {
        self.process = None;
        self.is_out(true);
        let gone = Step { at: now(), change: Change::Gone, id: String::new(), running: 0, waiting: 0 };
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).push(gone);
    }

    /// The same server again, at the same address.
    pub fn come_back(&mut self) -> anyhow::Result<()> {
        let (process, _) = spawn(&self.program, self.gpu, self.address, &self.journal, &self.log)?;
        self.process = Some(process);
        self.is_out(false);
        Ok(())
    }

    fn is_out(&mut self, out: bool) {
        match self.out.last_mut() {
            Some(last) if !out => last.1 = now(),
            _ if out => self.out.push((now(), u64::MAX)),
            _ => {}
        }
    }
}

fn spawn(
    program: &Path,
    gpu: Gpu,
    listen: SocketAddr,
    journal: &Journal,
    log: &Path,
) -> anyhow::Result<(Running, SocketAddr)> {
    let mut command = Command::new(program);
    command.args(["simulate-backend", "--journal", "--model", MODEL, "--tokens", "4096", "--engine", gpu.engine]);
    command.args(["--listen", &listen.to_string(), "--slots", &gpu.slots.to_string()]);
    command.args(["--first-token", &format!("{FIRST_TOKEN_MS}ms")]);
    command.args(["--token-interval", &format!("{}ms", gpu.interval_ms)]);
    command.args(["--batch-cost", &format!("{BATCH_COST_MICROS}us")]);
    command.args(["--prefill-rate", &gpu.prefill_rate.to_string()]);
    command.args(gpu.kv_tokens.iter().flat_map(|tokens| ["--kv-tokens".to_owned(), tokens.to_string()]));
    let journal = journal.clone();
    let (running, line) = Running::start_talking(&mut command, log, move |line| {
        if let Some(step) = Step::parse(line) {
            journal.lock().unwrap_or_else(PoisonError::into_inner).push(step);
        }
    })?;
    let address = line.strip_prefix("listening on http://").context("a simulated server did not start")?.parse()?;
    Ok((running, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_line_by_line() {
        let step = Step::parse("17 began c-4 3 1");
        assert_eq!(step, Some(Step { at: 17, change: Change::Began, id: "c-4".to_owned(), running: 3, waiting: 1 }));
        for line in ["", "17", "x began c 1 1", "17 sat c 1 1", "17 left c 1"] {
            assert_eq!(Step::parse(line), None, "{line}");
        }
    }
}
