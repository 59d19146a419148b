//! `report`: from results to tables and a plot.

mod columns;
mod numbers;
mod plot;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use crate::record::{self, Line, Machine};
use numbers::Numbers;

/// Where a run leaves everything, from the top of the repository.
pub const FOLDER: &str = "target/bench";

#[derive(clap::Args)]
pub struct Args {
    /// Where results.jsonl is, and report.md and report.svg go
    #[arg(long, default_value = FOLDER)]
    out: PathBuf,
}

/// The file of results in such a folder.
pub fn results_in(folder: &Path) -> PathBuf {
    folder.join("results.jsonl")
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let lines = record::read(&results_in(&args.out))?;
    let numbers = Numbers::of(&lines);
    let (markdown, svg) = (args.out.join("report.md"), args.out.join("report.svg"));
    fs::write(&markdown, in_markdown(&lines, &numbers))?;
    fs::write(&svg, plot::svg(&numbers))?;
    println!("{}\n{}", markdown.display(), svg.display());
    Ok(())
}

/// Everything on standard output.
pub fn show(lines: &[Line]) {
    let numbers = Numbers::of(lines);
    for cell in columns::CELLS {
        for (at, table) in table::tables(&numbers, cell).iter().enumerate() {
            let title = if at == 0 { format!("\n{}: {}\n", cell.name, cell.title) } else { String::new() };
            println!("{title}\n{}", table.in_text());
        }
    }
    for remark in remarks(lines) {
        println!("! {remark}");
    }
}

fn in_markdown(lines: &[Line], numbers: &Numbers) -> String {
    let mut text = String::from("<!-- Made by `make bench-report`. -->\n\n");
    for machine in machines(lines) {
        text += &about(machine);
    }
    for cell in columns::CELLS {
        for (at, table) in table::tables(numbers, cell).iter().enumerate() {
            if at == 0 {
                text += &format!("\n### {}\n", cell.title);
            }
            text += &format!("\n{}", table.in_markdown());
        }
    }
    let remarks: String = remarks(lines).map(|remark| format!("- {remark}\n")).collect();
    if remarks.is_empty() { text } else { format!("{text}\n### Remarks\n\n{remarks}") }
}

fn machines(lines: &[Line]) -> impl Iterator<Item = &Machine> {
    lines.iter().filter_map(|line| match line {
        Line::Machine(machine) => Some(machine),
        Line::Measurement(_) => None,
    })
}

fn about(machine: &Machine) -> String {
    let versions: Vec<_> = machine.versions.values().map(String::as_str).collect();
    format!(
        "{}, {} cores, Linux {}. Proxy on core {}, load generator and backends on core {}, {} s a measurement. {}.\n\
         Medians of all rounds [smallest–largest]; ratios are medians of the ratios within a round.\n",
        machine.processor,
        machine.cores,
        machine.kernel,
        machine.proxy_cores,
        machine.load_cores,
        machine.seconds,
        versions.join(", ")
    )
}

/// What a reader must know before believing a number.
fn remarks(lines: &[Line]) -> impl Iterator<Item = String> {
    lines.iter().flat_map(|line| match line {
        Line::Machine(machine) => {
            let quick = machine.is_quick.then(|| "made with --quick: these numbers mean nothing".to_owned());
            machine.remarks.iter().cloned().chain(quick).collect::<Vec<_>>()
        }
        Line::Measurement(one) if one.problem.is_empty() => Vec::new(),
        Line::Measurement(one) => {
            vec![format!("{}, {}, round {}: {}", one.cell, one.subject, one.round, one.problem.replace('\n', " "))]
        }
    })
}
