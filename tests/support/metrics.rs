//! The Prometheus text of `/metrics`, read strictly: a line that is none of its three kinds fails the test.

use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Metrics {
    /// By family: what its `# TYPE` line says.
    pub typed: BTreeMap<String, String>,
    /// By family: what its `# HELP` line says.
    pub helped: BTreeMap<String, String>,
    /// By family: what its `# UNIT` line says, where it has one.
    pub units: BTreeMap<String, String>,
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
        let [typed, helped, units] = [BTreeMap::new(), BTreeMap::new(), BTreeMap::new()];
        let mut metrics = Self { typed, helped, units, samples: Vec::new() };
        for line in text.lines().filter(|line| !line.is_empty()) {
            match line.strip_prefix('#') {
                Some(comment) => metrics.note(comment),
                None => metrics.samples.push(Sample::parse(line)),
            }
        }
        metrics
    }

    fn note(&mut self, comment: &str) {
        let mut words = comment.trim_start().splitn(3, ' ');
        let notes = match (words.next(), words.clone().count()) {
            (Some("TYPE"), 2) => &mut self.typed,
            (Some("HELP"), 2) => &mut self.helped,
            (Some("UNIT"), 2) => &mut self.units,
            (Some("EOF"), 0) => return,
            _ => panic!("no comment of Prometheus: {comment:?}"),
        };
        let [family, said] = [words.next(), words.next()].map(|word| word.unwrap_or_default().to_owned());
        let before = notes.insert(family, said);
        assert!(before.is_none(), "said twice: {comment:?}");
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
