//! The Prometheus text of `/metrics`, read strictly: a line that is none of its three kinds fails the test.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub struct Metrics {
    /// Families that carry a `# TYPE` line.
    pub typed: BTreeSet<String>,
    /// Families that carry a `# HELP` line.
    pub helped: BTreeSet<String>,
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self { typed: BTreeSet::new(), helped: BTreeSet::new(), samples: Vec::new() };
        for line in text.lines().filter(|line| !line.is_empty()) {
            match line.strip_prefix('#') {
                Some(comment) => metrics.note(comment),
                None => metrics.samples.push(Sample::parse(line)),
            }
        }
        metrics
    }

    fn note(&mut self, comment: &str) {
        let mut words = comment.split_whitespace();
        match (words.next(), words.next()) {
            (Some("TYPE"), Some(family)) => _ = self.typed.insert(family.to_owned()),
            (Some("HELP"), Some(family)) => _ = self.helped.insert(family.to_owned()),
            (Some("UNIT"), Some(_)) | (Some("EOF"), None) => {}
            _ => panic!("no comment of Prometheus: {comment:?}"),
        }
    }

    /// The sum over the samples of this name that carry all these labels; `None` where there is none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let carries =
            |sample: &&Sample| labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|v| v == value));
        self.samples
            .iter()
            .filter(|sample| sample.name == name)
            .filter(carries)
            .map(|sample| sample.value)
            .reduce(|a, b| a + b)
    }
}

impl Sample {
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("a sample without a value: {line:?}"));
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => (name, rest.strip_suffix('}').unwrap_or_else(|| panic!("open labels: {line:?}"))),
            None => (series, ""),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        assert!(!name.is_empty() && name.chars().all(legal), "no name of a metric: {line:?}");
        let value = value.parse().unwrap_or_else(|_| panic!("no number: {line:?}"));
        Self { name: name.to_owned(), labels: labels_of(labels), value }
    }
}

/// `a="x",b="y"` as a map. Values of the suite's own choosing hold no quotes and no commas.
fn labels_of(text: &str) -> BTreeMap<String, String> {
    let pair = |part: &str| {
        let (key, quoted) = part.split_once('=').unwrap_or_else(|| panic!("no label: {text:?}"));
        let value = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        (key.to_owned(), value.unwrap_or_else(|| panic!("a bare label: {text:?}")).to_owned())
    };
    text.split(',').filter(|part| !part.is_empty()).map(pair).collect()
}
