//! `pinned`: becomes another program that runs on certain cores only and ends with the runner.

use std::os::unix::process::CommandExt;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Become PROGRAM, pinned to these cores.
#[derive(clap::Args)]
pub struct Args {
    /// Such as 0 or 0,1
    #[arg(long)]
    cores: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    program: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    open_files_as_many_as_allowed()?;
    pin_to(&parse_cores(&args.cores)?)?;
    let (program, arguments) = args.program.split_first().context("no program")?;
    Err(std::process::Command::new(program).args(arguments).exec()).with_context(|| format!("cannot run {program}"))
}

/// Restricts this thread, and what it starts from now on, to these cores.
pub fn pin_to(cores: &[usize]) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        anyhow::ensure!(core < CpuSet::MAX_CPU, "core {core} is beyond what this system can name");
        set.set(core);
    }
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on core {}", listed(cores)))
}

/// `0,2` means cores 0 and 2.
pub fn parse_cores(text: &str) -> anyhow::Result<Vec<usize>> {
    let core = |part: &str| part.trim().parse().with_context(|| format!("`{part}` is no core: write 0 or 0,1"));
    text.split(',').map(core).collect()
}

/// The other way round.
pub fn listed(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// How many files a process may have open once it has asked.
pub fn most_open_files() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

fn open_files_as_many_as_allowed() -> anyhow::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
