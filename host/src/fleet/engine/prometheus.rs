//! The text exposition format of Prometheus, as far as load needs it: the samples of one metric, found by name.
//!
//! Tolerant and bounded: it reads the body where it stands, keeps nothing of it, and takes one pass a name. What
//! concerns other metrics may be any bytes. A line that has the name but cannot be read is a sample of no sensible
//! value (NaN), for leaving it out would make a sum too small.

use std::collections::BTreeMap;

use memchr::{memchr, memmem};

use super::{Answer, plausible};

/// No engine has more data-parallel ranks; more label values than this are a mistake or an attack.
const GROUPS_MAX: usize = 1_024;

/// One value of a metric.
pub(super) struct Sample<'a> {
    /// What stands between the braces.
    labels: &'a [u8],
    value: f64,
}

impl<'a> Sample<'a> {
    /// The value of a label as it is written, escapes and all.
    pub(super) fn label(&self, name: &str) -> Option<&'a [u8]> {
        let mut rest = self.labels;
        loop {
            let (key, value, after) = first_label(rest)?;
            if key == name.as_bytes() {
                return Some(value);
            }
            rest = after;
        }
    }

    /// The value, if it is a number of requests.
    pub(super) fn count(&self) -> Option<u32> {
        plausible::count(self.value)
    }

    /// The value, if it is a part of a whole.
    pub(super) fn fraction(&self) -> Option<f64> {
        plausible::fraction(self.value)
    }
}

/// Every sample of the metric with exactly this name, in order.
pub(super) fn samples<'a>(answer: &Answer<'a>, name: &'a str) -> impl Iterator<Item = Sample<'a>> {
    let body = if answer.ok() { answer.body } else { &[] };
    lines_after(body, name).filter_map(sample)
}

/// Those samples of the metric whose label has this value; one that cannot be read may be any of them.
pub(super) fn samples_with<'a>(
    answer: &Answer<'a>,
    name: &'a str,
    label: &'a str,
    value: &'a str,
) -> impl Iterator<Item = Sample<'a>> {
    samples(answer, name).filter(move |sample| sample.label(label).is_none_or(|found| found == value.as_bytes()))
}

/// Whether any line of the answer begins so.
pub(super) fn has(answer: &Answer<'_>, start: &str) -> bool {
    answer.ok() && lines_after(answer.body, start).next().is_some()
}

/// All samples together: for numbers of requests that are split over engines or models.
pub(super) fn sum(answer: &Answer<'_>, name: &str) -> Option<u32> {
    plausible::total(samples(answer, name).map(|sample| sample.count()))
}

/// The largest sample of each value of `label`, all together: for numbers that several processes of one such group
/// report once each although they mean the same requests.
pub(super) fn sum_of_groups(answer: &Answer<'_>, name: &str, label: &str) -> Option<u32> {
    let mut groups: BTreeMap<&[u8], u32> = BTreeMap::new();
    for sample in samples(answer, name) {
        let most = groups.entry(sample.label(label).unwrap_or_default()).or_default();
        *most = sample.count()?.max(*most);
        if groups.len() > GROUPS_MAX {
            return None;
        }
    }
    plausible::total(groups.into_values().map(Some))
}

/// The largest sample, each of them from 0 to 1.
pub(super) fn largest_fraction(answer: &Answer<'_>, name: &str) -> Option<f64> {
    plausible::largest(samples(answer, name).map(|sample| sample.fraction()))
}

/// What follows `start`, on each line that begins with it.
fn lines_after<'a>(body: &'a [u8], start: &'a str) -> impl Iterator<Item = &'a [u8]> {
    memmem::find_iter(body, start).filter(|at| opens_line(&body[..*at])).map(move |at| {
        let rest = &body[at + start.len()..];
        &rest[..memchr(b'\n', rest).unwrap_or(rest.len())]
    })
}

/// Whether what comes next is the first on its line.
fn opens_line(before: &[u8]) -> bool {
    before.iter().rev().find(|byte| !matches!(byte, b' ' | b'\t')).is_none_or(|byte| *byte == b'\n')
}

/// Reads what follows a metric's name; `None` where the name goes on, so that the line is another metric's.
fn sample(line: &[u8]) -> Option<Sample<'_>> {
    if line.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':')) {
        return None;
    }
    let line = line.trim_ascii_start();
    let (labels, rest) = match line.strip_prefix(b"{") {
        Some(open) => match labels_end(open) {
            Some(end) => (&open[..end], &open[end + 1..]),
            None => (&line[..0], &line[..0]),
        },
        None => (&line[..0], line),
    };
    Some(Sample { labels, value: number(rest) })
}

/// The number that stands first; behind it may be a time or an exemplar.
fn number(text: &[u8]) -> f64 {
    let word = text.trim_ascii_start().split(u8::is_ascii_whitespace).next().unwrap_or_default();
    std::str::from_utf8(word).ok().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

/// Where the brace closes; one inside quotes does not.
fn labels_end(open: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    open.iter().position(|byte| {
        if escaped {
            escaped = false;
            return false;
        }
        match byte {
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ => {}
        }
        *byte == b'}' && !quoted
    })
}

/// The first label's name and value, and what follows.
fn first_label(labels: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (key, rest) = labels.split_at(memchr(b'=', labels)?);
    let key = &key[key.iter().position(|byte| !matches!(byte, b',' | b' ' | b'\t'))?..];
    let value = rest[1..].trim_ascii_start().strip_prefix(b"\"")?;
    let end = closing_quote(value)?;
    Some((key.trim_ascii_end(), &value[..end], &value[end + 1..]))
}

fn closing_quote(value: &[u8]) -> Option<usize> {
    let mut escaped = false;
    value.iter().position(|byte| {
        let closes = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        closes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(body: &str) -> Answer<'_> {
        Answer { status: 200, body: body.as_bytes() }
    }

    fn values(body: &str, name: &str) -> Vec<f64> {
        samples(&ok(body), name).map(|sample| sample.value).collect()
    }

    #[test]
    fn finds_the_very_metric() {
        let body = "# HELP n the number n\n# TYPE n gauge\nn 1\nn_total 2\nn:x 3\nan 4\n n{a=\"b\"}\t5\nx{n=\"n 9\"} 6\nn 7 1700000000\nn 8";
        assert_eq!(values(body, "n"), [1.0, 5.0, 7.0, 8.0]);
        assert!(values(body, "missing").is_empty());
        assert!(values("", "n").is_empty());
    }

    #[test]
    fn reads_what_writers_write() {
        assert_eq!(
            values("n 1\r\nn{} 2\r\nn { a=\"b\" , } 3e2\nn +Inf\nn{a=\"1\"} 4.0 # {trace=\"x\"} 1\n", "n"),
            [1.0, 2.0, 300.0, f64::INFINITY, 4.0]
        );
    }

    #[test]
    fn what_has_the_name_but_no_number_is_no_number() {
        for line in
            ["n", "n ", "n{", "n{a=\"b\"", "n{a=\"b} 1", "n{a=\"b\"}", "n x", "n NaN", "n 0x1p3", "n=3", "n \u{fffd}"]
        {
            assert!(matches!(values(line, "n")[..], [value] if value.is_nan()), "{line:?}");
        }
    }

    #[test]
    fn labels_may_hold_anything() {
        let body = r#"n{a="x}y",b="q\"=,{",c = "\\",d=""} 3"#;
        let sample = samples(&ok(body), "n").next().unwrap();
        assert_eq!(sample.count(), Some(3));
        for (name, value) in
            [("a", Some("x}y")), ("b", Some(r#"q\"=,{"#)), ("c", Some(r"\\")), ("d", Some("")), ("e", None)]
        {
            assert_eq!(sample.label(name), value.map(str::as_bytes), "{name}");
        }
        let broken = samples(&ok("n{a,b=\"1\",c=2} 1"), "n").next().unwrap();
        assert_eq!((broken.label("b"), broken.label("c")), (None, None));
    }

    #[test]
    fn sums_know_when_they_do_not_know() {
        assert_eq!(sum(&ok("n{e=\"0\"} 3\nn{e=\"1\"} 4\n"), "n"), Some(7));
        assert_eq!(sum(&ok("n{e=\"0\"} 3\nn{e=\"1\"} NaN\n"), "n"), None);
        assert_eq!(sum(&ok("n{e=\"0\"} 3\nn{e=\"1\"} -1\n"), "n"), None);
        assert_eq!(sum(&ok("n{e=\"0\"} 3\nn{e=\"1"), "n"), None);
        assert_eq!(sum(&ok("m 3\n"), "n"), None);
        assert_eq!(sum(&Answer { status: 503, body: b"n 3\n" }, "n"), None);
    }

    #[test]
    fn a_label_picks_its_samples() {
        let body = ok("n{t=\"a\",v=\"1\"} 1\nn{v=\"1\",t=\"b\"} 2\nn{t=\"ab\"} 3\nn{t=\"a\"} 4\n");
        let picked = |value| samples_with(&body, "n", "t", value).map(|sample| sample.value).collect::<Vec<_>>();
        assert_eq!((picked("a"), picked("b"), picked("c")), (vec![1.0, 4.0], vec![2.0], vec![]));
        let broken = ok("n{t=\"a\"} 1\nn{t=\"");
        assert!(samples_with(&broken, "n", "t", "a").any(|sample| sample.count().is_none()));
    }

    #[test]
    fn groups_count_once() {
        let twice = "n{dp=\"0\",tp=\"0\"} 3\nn{dp=\"0\",tp=\"1\"} 3\nn{dp=\"1\",tp=\"0\"} 4\nn{dp=\"1\",tp=\"1\"} 5\n";
        assert_eq!(sum_of_groups(&ok(twice), "n", "dp"), Some(8));
        assert_eq!(sum_of_groups(&ok("n{tp=\"0\"} 3\nn{tp=\"1\"} 3\n"), "n", "dp"), Some(3));
        assert_eq!(sum_of_groups(&ok("n{dp=\"0\"} 3\nn{dp=\"1\"} x\n"), "n", "dp"), None);
        assert_eq!(sum_of_groups(&ok("m 3\n"), "n", "dp"), None);
        let many: String = (0..=GROUPS_MAX).map(|rank| format!("n{{dp=\"{rank}\"}} 1\n")).collect();
        assert_eq!(sum_of_groups(&ok(&many), "n", "dp"), None);
    }

    #[test]
    fn the_fullest_counts() {
        assert_eq!(largest_fraction(&ok("k{e=\"0\"} 0.41\nk{e=\"1\"} 0.97\nk{e=\"2\"} 0\n"), "k"), Some(0.97));
        assert_eq!(largest_fraction(&ok("k 41\n"), "k"), None);
        assert_eq!(largest_fraction(&ok("k 0.4\nk NaN\n"), "k"), None);
    }

    #[test]
    fn a_long_run_of_blanks_or_names_is_read_in_one_go() {
        let blanks = format!("{}n 1\n", " ".repeat(1 << 20));
        assert_eq!(sum(&ok(&blanks), "n"), Some(1));
        assert_eq!(sum(&ok(&"n".repeat(1 << 20)), "n"), None);
        assert_eq!(sum(&ok(&"n 1\n".repeat(1 << 18)), "n"), Some(1 << 18));
    }
}
