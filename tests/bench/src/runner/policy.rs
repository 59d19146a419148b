//! The time of one policy call, as `vision-proxy plugin bench` tells it.

use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::time::timeout;

use super::Setting;
use crate::pinned;
use crate::record::Values;

const WITHIN: Duration = Duration::from_secs(60);

/// With both letters that look like a mu.
const UNITS: [(&str, f64); 5] = [("ns", 0.001), ("µs", 1.0), ("μs", 1.0), ("us", 1.0), ("ms", 1000.0)];

pub async fn call_time(setting: &Setting, backends: usize) -> anyhow::Result<Values> {
    let run = Command::new(std::env::current_exe()?)
        .args(["pinned", "--cores", &pinned::listed(&setting.cores.proxy), "--"])
        .arg(&setting.proxy)
        .args(["plugin", "bench", "round-robin", "--backends", &backends.to_string()])
        .kill_on_drop(true)
        .output();
    let output = timeout(WITHIN, run).await.context("`plugin bench` takes too long")??;
    anyhow::ensure!(output.status.success(), "this vision-proxy has no `plugin bench`");
    let text = String::from_utf8_lossy(&output.stdout);
    let call = microseconds(&text, backends).with_context(|| format!("no time in `{text}`"))?;
    Ok(Values::from([("call_us".to_owned(), call)]))
}

/// The last column of the row about so many backends, where the head names its unit; else the first time in the line
/// about them; else in the last line that has one.
fn microseconds(text: &str, backends: usize) -> Option<f64> {
    in_table(text, backends).or_else(|| in_words(text, backends))
}

fn in_table(text: &str, backends: usize) -> Option<f64> {
    let is_head = |line: &&str| line.contains("median") && !line.contains(|c: char| c.is_ascii_digit());
    let unit = text.lines().find(is_head)?.split_ascii_whitespace().next_back()?;
    let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let numbers = |line: &str| -> Vec<f64> {
        line.split_ascii_whitespace().filter_map(|part| part.replace(',', "").parse().ok()).collect()
    };
    let row = text.lines().map(numbers).find(|row| row.first() == Some(&(backends as f64)) && row.len() > 1)?;
    Some(row.last()? * scale)
}

fn in_words(text: &str, backends: usize) -> Option<f64> {
    let about = backends.to_string();
    let is_about = |line: &&str| {
        let plain = line.replace([',', '_', '\''], "");
        plain.split(|c: char| !c.is_ascii_digit()).any(|number| number == about) && time_in(line).is_some()
    };
    text.lines().find(is_about).and_then(time_in).or_else(|| text.lines().rev().find_map(time_in))
}

/// `0.21 µs`, `210ns`, `mean=0.2us`.
fn time_in(line: &str) -> Option<f64> {
    let found = UNITS.iter().filter_map(|(unit, scale)| {
        line.match_indices(unit).find_map(|(at, _)| {
            let before = line[..at].trim_end();
            let digits = before
                .rfind(|c: char| !c.is_ascii_digit() && c != '.')
                .map_or(0, |last| last + before[last..].chars().next().map_or(0, char::len_utf8));
            Some((at, before[digits..].parse::<f64>().ok()? * scale))
        })
    });
    found.min_by_key(|(at, _)| *at).map(|(_, time)| time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_found_however_the_line_is_made() {
        for (text, backends, expected) in [
            ("8 backends: 0.21 µs a call, p99 0.30 µs", 8, Some(0.21)),
            ("backends=64 mean=340ns", 64, Some(0.34)),
            ("     8   0.2 us\n    64   0.4 us\n 1,000   2.9 us\n", 1_000, Some(2.9)),
            ("round-robin\nmedian 0.002 ms", 8, Some(2.0)),
            ("pick  backends  fastest ns  median ns\n            8        273        276\n", 8, Some(0.276)),
            ("no such command", 8, None),
        ] {
            assert_eq!(microseconds(text, backends), expected, "{text}");
        }
    }
}
