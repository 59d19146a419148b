//! What a run leaves behind: `results.jsonl`, one line about the machine and one line a measurement.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Numbers by name; the names are those that `report::columns` knows.
pub type Values = BTreeMap<String, f64>;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Machine(Machine),
    Measurement(Measurement),
}

/// Where and how it was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub kernel: String,
    pub proxy_cores: String,
    pub load_cores: String,
    pub seconds: f64,
    /// Made to see that everything works: its numbers mean nothing.
    pub is_quick: bool,
    pub versions: BTreeMap<String, String>,
    pub remarks: Vec<String>,
}

/// One subject in one cell in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measurement {
    pub round: u32,
    pub cell: String,
    pub subject: String,
    pub values: Values,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

/// A new file of results.
pub struct Results {
    file: File,
    pub lines: Vec<Line>,
}

impl Results {
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(path);
        Ok(Self { file: file.with_context(|| format!("cannot write {}", path.display()))?, lines: Vec::new() })
    }

    /// Written at once: an aborted run has its results too.
    pub fn add(&mut self, line: Line) -> anyhow::Result<()> {
        writeln!(self.file, "{}", serde_json::to_string(&line)?)?;
        self.lines.push(line);
        Ok(())
    }
}

pub fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("no results in {}: `make bench` makes them", path.display()))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
