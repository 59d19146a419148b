//! Fleets of simulated GPU servers, the real proxy before them, and nginx and HAProxy in its place where they are
//! installed: who answers how many requests in time, who over-fills a server, who leaves one idle.
//!
//! The tour: `scenario` says what is tried, `run` tries it, with the servers of `fleet`, the balancers of `contender`
//! and the clients of `load`; `measure` makes numbers of what they wrote down, `table` a table of the numbers.
//! Whatever is started is a value that ends it: an error, a panic or Ctrl-C leaves nothing running.

mod contender;
mod fleet;
mod load;
mod measure;
mod process;
mod run;
mod scenario;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use contender::Contender;
use run::Suite;

/// Compare balancers before fleets of simulated GPU servers, and print a table.
#[derive(Debug, Parser)]
struct Args {
    /// The proxy, which is also the simulated servers
    #[arg(long, value_name = "FILE", default_value = "target/release/vision-proxy")]
    program: PathBuf,

    /// The proxy alone in half of the scenarios, for two seconds each: about 40 s instead of 5 min
    #[arg(long)]
    quick: bool,

    /// Only scenarios whose name contains this; repeat for more
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Only this one; repeat for more [default: all that are installed]
    #[arg(long = "contender", value_name = "NAME", value_enum)]
    contenders: Vec<Contender>,

    /// Seconds for which requests come, in each scenario and for each contender [default: 6, or 2 if quick]
    #[arg(long)]
    seconds: Option<f64>,

    /// How often servers are asked how they are; a fifth of the proxy's default, as all times are
    #[arg(long, value_name = "MS", default_value_t = 200)]
    poll_interval_ms: u64,

    /// Fail where this proxy misses the goal of a scenario (docs/capacity.md): a request that over-fills a server, or 1 % of
    /// idle time while a request waits
    #[arg(long)]
    check: bool,

    /// Another one makes other requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            result = suite(&args) => result,
            _ = terminate.recv() => Ok(ExitCode::FAILURE),
            _ = interrupt.recv() => Ok(ExitCode::FAILURE),
        }
    })
}

async fn suite(args: &Args) -> anyhow::Result<ExitCode> {
    let program = args.program.canonicalize().with_context(|| format!("no program {}", args.program.display()))?;
    let suite = Suite {
        program: &program,
        seconds: args.seconds.unwrap_or(if args.quick { 2.0 } else { 6.0 }),
        seed: args.seed,
        poll_interval: Duration::from_millis(args.poll_interval_ms),
    };
    let scenarios = scenario::all();
    let is_wanted = |scenario: &&scenario::Scenario| match &args.only[..] {
        [] => scenario.is_quick || !args.quick,
        only => only.iter().any(|only| scenario.name.contains(only)),
    };
    table::head();
    let mut missed = Vec::new();
    for scenario in scenarios.iter().filter(is_wanted) {
        for contender in contenders(args) {
            let is_ours = contender == Contender::VisionProxy;
            if !is_ours && !scenario.is_told() {
                continue;
            }
            let folder = Folder::new()?;
            let measured = run::run(&suite, scenario, contender, &folder.0).await;
            let measured = measured.with_context(|| format!("{}, {}", scenario.name, contender.name()))?;
            table::row(scenario.name, contender, &measured);
            let misses = measured.misses(scenario.goal).filter(|_| is_ours && args.check);
            missed.extend(misses.map(|why| format!("{}: {why}", scenario.name)));
        }
    }
    missed.iter().for_each(|missed| eprintln!("missed: {missed}"));
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn contenders(args: &Args) -> Vec<Contender> {
    let wanted = match &args.contenders[..] {
        [] if args.quick => &[Contender::VisionProxy][..],
        [] => &Contender::ALL[..],
        some => some,
    };
    wanted.iter().copied().filter(|contender| contender.is_installed()).collect()
}

/// A folder of configurations and logs that goes with its run.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("scenarios-{}-{}", std::process::id(), load::now()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let path: &Path = &self.0;
        // What is left lies among the temporary files.
        let _ = std::fs::remove_dir_all(path);
    }
}
