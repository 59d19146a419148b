//! `run`: every cell, every subject of it, round after round: A B C A B C. Subjects of a cell follow each other
//! closely, so that a machine that is slow for a minute is slow for all of them; what is compared are ratios within a
//! round.

mod cells;
mod change;
mod machine;
mod measure;
mod peers;
mod policy;
mod process;
mod session;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::timeout;

use crate::record::{Line, Machine, Measurement, Results};
use crate::{pinned, report};
use cells::{Cell, Subject, Work};
use peers::Peer;

/// No measurement takes longer: what hangs is given up, and the run goes on.
const ONE_AT_MOST: Duration = Duration::from_secs(180);
const QUICK_SECONDS: f64 = 0.5;
/// A stream is two files to a proxy, and it needs some besides.
const FILES_A_STREAM: u64 = 2;
const OTHER_FILES: u64 = 500;

#[derive(clap::Args)]
pub struct Args {
    /// Half a second each, one round, few streams: to see that everything works. Its numbers mean nothing
    #[arg(long)]
    quick: bool,
    /// How often everything is measured [default: 3, quick: 1]
    #[arg(long)]
    rounds: Option<u32>,
    /// How long one measurement counts [default: 3, quick: 0.5]
    #[arg(long)]
    seconds: Option<f64>,
    /// Only these, such as chat,latency,sse. `list` names all
    #[arg(long, value_delimiter = ',')]
    cells: Vec<String>,
    /// Only these, such as nginx,hyper,vision-proxy. `list` names all
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// The binary that is measured
    #[arg(long, default_value = "target/release/vision-proxy")]
    proxy: PathBuf,
    /// The component for the cell `swap` [default: the built-in round-robin, from where cargo built it]
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Cores of the proxy
    #[arg(long, default_value = "0")]
    proxy_cores: String,
    /// Cores of load generator and backends
    #[arg(long, default_value = "1")]
    load_cores: String,
    /// Where results.jsonl and everything else goes
    #[arg(long, default_value = report::FOLDER)]
    out: PathBuf,
}

/// What all measurements of a run share.
pub struct Setting {
    pub proxy: PathBuf,
    pub policy: PathBuf,
    pub out: PathBuf,
    pub cores: Cores,
    /// All cores of the machine.
    pub all_cores: Vec<usize>,
    pub seconds: f64,
    pub warm_seconds: f64,
    pub most_streams: usize,
}

/// Who runs where.
#[derive(Clone)]
pub struct Cores {
    pub proxy: Vec<usize>,
    pub load: Vec<usize>,
    /// How many load generators.
    pub loads: usize,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut remarks = Vec::new();
    let cells = selected(&args, &mut remarks)?;
    if cells.is_empty() {
        return Ok(());
    }
    let setting = Setting::of(&args, &mut remarks)?;
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 3 });
    let mut results = Results::create(&report::results_in(&setting.out))?;
    results.add(Line::Machine(Machine {
        processor: machine::processor(),
        cores: setting.all_cores.len(),
        kernel: machine::kernel(),
        proxy_cores: pinned::listed(&setting.cores.proxy),
        load_cores: pinned::listed(&setting.cores.load),
        seconds: setting.seconds,
        is_quick: args.quick,
        versions: machine::versions(&setting.proxy).collect(),
        remarks,
    }))?;
    // The runner itself keeps off the core of the proxy.
    pinned::pin_to(&setting.cores.load)?;
    for round in 1..=rounds {
        for cell in &cells {
            for subject in cell.subjects.iter().filter(|subject| subject.is_due(round)) {
                results.add(Line::Measurement(measured(&setting, cell, subject, round).await))?;
            }
        }
    }
    report::show(&results.lines);
    println!("\nresults: {}", report::results_in(&setting.out).display());
    Ok(())
}

async fn measured(setting: &Setting, cell: &Cell, subject: &Subject, round: u32) -> Measurement {
    let outcome = timeout(ONE_AT_MOST, measure::measure(setting, subject)).await;
    let outcome = outcome.context("it takes too long").and_then(|outcome| outcome);
    let (values, problem) = outcome.unwrap_or_else(|error| (Default::default(), format!("{error:#}")));
    let shown = if problem.is_empty() { "done" } else { &problem };
    eprintln!("round {round}  {:<12} {:<24} {shown}", cell.name, subject.name);
    Measurement { round, cell: cell.name.to_owned(), subject: subject.name.clone(), values, problem }
}

/// The cells and subjects that were asked for and can be measured here.
fn selected(args: &Args, remarks: &mut Vec<String>) -> anyhow::Result<Vec<Cell>> {
    let mut cells = cells::all(args.quick);
    let is_list = |asked: &[String]| asked.iter().any(|name| name == "list");
    if is_list(&args.cells) {
        cells.iter().for_each(|cell| println!("{:<14} {}", cell.name, cell.about));
        return Ok(Vec::new());
    }
    if is_list(&args.peers) {
        Peer::ALL.iter().for_each(|peer| println!("{}", peer.name()));
        return Ok(Vec::new());
    }
    are_known(&args.cells, cells.iter().map(|cell| cell.name))?;
    are_known(&args.peers, Peer::ALL.iter().map(|peer| peer.name()))?;
    let missing: BTreeSet<_> =
        Peer::ALL.iter().filter_map(|peer| peer.program()).filter(|program| peers::found(program).is_none()).collect();
    remarks.extend(missing.iter().map(|program| format!("{program} is not installed here, and left out")));
    let is_asked = |asked: &[String], name: &str| asked.is_empty() || asked.iter().any(|one| one == name);
    cells.retain(|cell| is_asked(&args.cells, cell.name));
    for cell in &mut cells {
        cell.subjects.retain(|subject| {
            let is_there = subject.peer.program().is_none_or(|program| !missing.contains(program));
            is_there && is_asked(&args.peers, subject.peer.name())
        });
    }
    Ok(cells)
}

fn are_known<'a>(asked: &[String], known: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
    let known: Vec<_> = known.collect();
    match asked.iter().find(|name| !known.contains(&name.as_str())) {
        Some(unknown) => bail!("there is no `{unknown}`: {}", known.join(", ")),
        None => Ok(()),
    }
}

impl Setting {
    fn of(args: &Args, remarks: &mut Vec<String>) -> anyhow::Result<Self> {
        let proxy = args.proxy.canonicalize();
        let proxy = proxy.with_context(|| format!("no {}: `make build` makes it", args.proxy.display()))?;
        std::fs::create_dir_all(&args.out)?;
        let all_cores: Vec<_> = (0..machine::cores()).collect();
        let mut cores = Cores {
            proxy: pinned::parse_cores(&args.proxy_cores)?,
            load: pinned::parse_cores(&args.load_cores)?,
            loads: 1,
        };
        if all_cores.len() == 1 {
            remarks.push("one core only: the proxy shares it with load generator and backends".to_owned());
            (cores.proxy, cores.load) = (all_cores.clone(), all_cores.clone());
        } else if all_cores.len() == 2 {
            remarks.push("two cores only: two workers share the second with load generator and backends".to_owned());
        }
        let seconds = args.seconds.unwrap_or(if args.quick { QUICK_SECONDS } else { 3.0 });
        ensure!(seconds > 0.0 && seconds <= 60.0, "--seconds is to be above 0 and at most 60");
        let most_streams = pinned::most_open_files().saturating_sub(OTHER_FILES) / FILES_A_STREAM;
        Ok(Self {
            policy: args.policy.clone().or_else(|| built_in_policy(&proxy)).unwrap_or_default(),
            proxy,
            out: args.out.canonicalize()?,
            cores,
            all_cores,
            seconds,
            warm_seconds: (seconds / 5.0).min(1.0),
            most_streams: usize::try_from(most_streams).unwrap_or(usize::MAX),
        })
    }

    /// Who runs where for this subject. One worker and two are compared under the same two load generators, on the
    /// cores that neither needs; where there are none, on all of them.
    pub fn cores_of(&self, subject: &Subject) -> Cores {
        if !subject.scales {
            return self.cores.clone();
        }
        let proxy = self.all_cores.iter().copied().take(subject.workers).collect();
        let left: Vec<_> = self.all_cores.iter().copied().skip(2).collect();
        let load = match (left.is_empty(), subject.workers) {
            (false, _) => left,
            (true, 1) => self.cores.load.clone(),
            (true, _) => self.all_cores.clone(),
        };
        Cores { proxy, load, loads: 2 }
    }
}

impl Subject {
    /// Memory is the same each time, and takes its time.
    fn is_due(&self, round: u32) -> bool {
        round == 1 || !matches!(self.work, Work::Memory { .. })
    }
}

/// The newest that cargo built beside the proxy.
fn built_in_policy(proxy: &Path) -> Option<PathBuf> {
    let built = std::fs::read_dir(proxy.parent()?.join("build")).ok()?;
    let policies = built.flatten().map(|entry| entry.path().join("out/builtin/round-robin.wasm"));
    policies.filter(|path| path.is_file()).max_by_key(|path| path.metadata().and_then(|about| about.modified()).ok())
}
