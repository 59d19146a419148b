//! Measurements by cell and subject, their medians, and ratios within a round.

use std::collections::BTreeMap;

use crate::record::{Line, Measurement, Values};

/// All measurements of a run.
pub struct Numbers {
    all: Vec<Measurement>,
}

/// Over all rounds.
#[derive(Clone, Copy)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
    pub rounds: usize,
}

impl Numbers {
    pub fn of(lines: &[Line]) -> Self {
        let measurements = lines.iter().filter_map(|line| match line {
            Line::Measurement(one) => Some(one.clone()),
            Line::Machine(_) => None,
        });
        let mut numbers = Self { all: measurements.collect() };
        numbers.subtract_direct();
        numbers
    }

    /// A proxy's latency is what it adds to the backend's own in the same round.
    fn subtract_direct(&mut self) {
        let is_latency = |one: &&Measurement| one.cell == "latency" && one.subject == "direct";
        let direct: BTreeMap<u32, Values> =
            self.all.iter().filter(is_latency).map(|one| (one.round, one.values.clone())).collect();
        for one in self.all.iter_mut().filter(|one| one.cell == "latency" && one.subject != "direct") {
            let Some(direct) = direct.get(&one.round) else { continue };
            for (from, to) in [("p50_us", "added_p50_us"), ("p99_us", "added_p99_us")] {
                if let (Some(with), Some(without)) = (one.values.get(from), direct.get(from)) {
                    let added = with - without;
                    one.values.insert(to.to_owned(), added);
                }
            }
        }
    }

    /// In the order in which they were measured.
    pub fn subjects(&self, cell: &str) -> Vec<&str> {
        let mut subjects: Vec<&str> = Vec::new();
        for one in self.all.iter().filter(|one| one.cell == cell && !one.values.is_empty()) {
            if !subjects.contains(&one.subject.as_str()) {
                subjects.push(&one.subject);
            }
        }
        subjects
    }

    fn rounds(&self, cell: &str, subject: &str, key: &str) -> BTreeMap<u32, f64> {
        let of_subject = self.all.iter().filter(|one| one.cell == cell && one.subject == subject);
        of_subject.filter_map(|one| Some((one.round, *one.values.get(key)?))).collect()
    }

    pub fn spread(&self, cell: &str, subject: &str, key: &str) -> Option<Spread> {
        Spread::of(self.rounds(cell, subject, key).into_values().collect())
    }

    /// How many times as much as another subject of the same round.
    pub fn ratio(&self, cell: &str, subject: &str, key: &str, base: &str) -> Option<f64> {
        let bases = self.rounds(cell, base, key);
        let mine = self.rounds(cell, subject, key);
        let ratios = mine.iter().filter_map(|(round, value)| {
            // Within the noise of a round a proxy may seem to add less than nothing: no ratio tells anything then.
            let base = bases.get(round).filter(|base| **base > 0.0)?;
            (*value > 0.0).then(|| value / base)
        });
        Spread::of(ratios.collect()).map(|spread| spread.median)
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { least, median, most, rounds: values.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(round: u32, subject: &str, rate: f64) -> Line {
        let values = Values::from([("p50_us".to_owned(), rate)]);
        let (cell, subject) = ("latency".to_owned(), subject.to_owned());
        Line::Measurement(Measurement { round, cell, subject, values, problem: String::new() })
    }

    #[test]
    fn ratios_are_of_one_round_and_latency_is_what_was_added() {
        let rounds = [(1, 10.0, 30.0, 50.0), (2, 100.0, 140.0, 160.0), (3, 10.0, 50.0, 50.0)];
        let lines: Vec<_> = rounds
            .iter()
            .flat_map(|&(round, direct, nginx, ours)| {
                [("direct", direct), ("nginx", nginx), ("vision-proxy", ours)]
                    .map(|(who, p50)| measured(round, who, p50))
            })
            .collect();
        let numbers = Numbers::of(&lines);
        assert_eq!(numbers.ratio("latency", "vision-proxy", "added_p50_us", "nginx"), Some(1.5));
        let spread = numbers.spread("latency", "vision-proxy", "added_p50_us").unwrap();
        assert_eq!((spread.least, spread.median, spread.most, spread.rounds), (40.0, 40.0, 60.0, 3));
        assert_eq!(numbers.subjects("latency"), ["direct", "nginx", "vision-proxy"]);
    }
}
