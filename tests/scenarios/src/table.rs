//! The table, in Markdown, a row as soon as it is known.

use crate::contender::Contender;
use crate::measure::Measured;

pub fn head() {
    println!(
        "| scenario | | offered /s | goodput /s | TTFT p50 | p99 | over-fill | waited inside | idle while waiting \
         | failed | cut |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
}

pub fn row(scenario: &str, contender: Contender, measured: &Measured) {
    println!(
        "| {scenario} | {} | {:.1} | {:.1} | {} ms | {} ms | {} | {} | {:.2} % | {} | {} |",
        contender.name(),
        measured.offered,
        measured.goodput,
        measured.ttft_p50_us / 1000,
        measured.ttft_p99_us / 1000,
        measured.overfilled,
        measured.waited_inside,
        measured.idle * 100.0,
        measured.failed,
        measured.cut,
    );
}
