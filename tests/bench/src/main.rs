//! The benchmark: one program that is the runner, and every process it starts besides the proxies.
//!
//! `run` measures and `report` writes down what was measured; the rest are the parts of a run, each a process of its
//! own so that it can be pinned to a core and its time counted: `backend`, `load`, `bare` and `pinned`.

mod backend;
mod bare;
mod load;
mod pinned;
mod proc;
mod record;
mod report;
mod runner;
mod wire;

use clap::{Parser, Subcommand};

/// Measures vision-proxy side by side with other proxies. Loopback only; every step is bounded in time.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure
    Run(runner::Args),
    /// Write report.md and report.svg from the results of a run
    Report(report::Args),
    #[command(hide = true)]
    Backend(backend::Args),
    #[command(hide = true)]
    Load(load::Args),
    #[command(hide = true)]
    Bare(bare::Args),
    #[command(hide = true)]
    Pinned(pinned::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Run(args) => on_one_thread(runner::run(args)),
        Command::Report(args) => report::run(&args),
        Command::Backend(args) => on_one_thread(backend::run(args)),
        Command::Load(args) => on_one_thread(load::run(args)),
        Command::Bare(args) => on_one_thread(bare::run(args)),
        Command::Pinned(args) => pinned::run(&args),
    }
}

fn on_one_thread(part: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, part)
}
