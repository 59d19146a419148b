//! One plot: how good each proxy is, nginx being 1. A bar that is longer is better, whatever is measured.

use std::fmt::Write;

use super::numbers::Numbers;

/// What a group of bars shows: cell, number, whether less of it is better, and its label.
const GROUPS: [(&str, &str, bool, &str); 9] = [
    ("chat", "requests_per_s", false, "small chats: requests/s"),
    ("chat", "cpu_us_per_request", true, "small chats: CPU a request (inverse)"),
    ("latency", "added_p50_us", true, "added latency, p50 (inverse)"),
    ("vision-4", "mb_per_s", false, "2 MB vision bodies: MB/s"),
    ("sse", "events_per_s", false, "server-sent events: chunks/s"),
    ("streams-100", "cpu_us_per_event", true, "100 paced streams: CPU a chunk (inverse)"),
    ("streams-1000", "cpu_us_per_event", true, "1,000 paced streams: CPU a chunk (inverse)"),
    ("connections", "requests_per_s", false, "new connections/s"),
    ("memory", "kb_per_stream", true, "9,000 open streams: memory (inverse)"),
];
const BARS: [(&str, &str); 4] =
    [("nginx", "#9aa5b1"), ("haproxy", "#6b8fb8"), ("hyper", "#c9a45c"), ("vision-proxy", "#d1495b")];
const BASE: &str = "nginx";

const WIDTH: f64 = 860.0;
const LEFT: f64 = 310.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 64.0;
const BAR: f64 = 13.0;
const GAP: f64 = 14.0;

struct Bar {
    ratio: f64,
    color: &'static str,
}

pub fn svg(numbers: &Numbers) -> String {
    let groups: Vec<(&str, Vec<Bar>)> = GROUPS
        .iter()
        .map(|&(cell, key, is_inverse, label)| (label, bars(numbers, cell, key, is_inverse)))
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let longest = groups.iter().flat_map(|(_, bars)| bars).map(|bar| bar.ratio).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT) / longest;
    let bars: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
    let height = TOP + bars as f64 * BAR + groups.len() as f64 * GAP + GAP;
    let mut text = head(height);
    let mut y = TOP;
    for (label, bars) in &groups {
        let middle = y + bars.len() as f64 * BAR / 2.0 + 4.0;
        line(
            &mut text,
            format_args!(r#"<text x="{:.0}" y="{middle:.0}" text-anchor="end">{label}</text>"#, LEFT - 10.0),
        );
        for bar in bars {
            let (width, color) = (bar.ratio * scale, bar.color);
            line(
                &mut text,
                format_args!(
                    r#"<rect x="{LEFT:.0}" y="{y:.1}" width="{width:.1}" height="{:.0}" fill="{color}"/>"#,
                    BAR - 2.0
                ),
            );
            let (x, baseline) = (LEFT + width + 5.0, y + BAR - 3.0);
            line(
                &mut text,
                format_args!(r#"<text x="{x:.1}" y="{baseline:.1}" class="small">{:.2}</text>"#, bar.ratio),
            );
            y += BAR;
        }
        y += GAP;
    }
    let (x, end) = (LEFT + scale, height - GAP);
    line(
        &mut text,
        format_args!(
            r##"<line x1="{x:.1}" y1="{:.0}" x2="{x:.1}" y2="{end:.0}" stroke="#57606a" stroke-dasharray="3 3"/>"##,
            TOP - 6.0
        ),
    );
    text + "</svg>\n"
}

fn bars(numbers: &Numbers, cell: &str, key: &str, is_inverse: bool) -> Vec<Bar> {
    let bar = |&(subject, color): &(&str, &'static str)| {
        let ratio = numbers.ratio(cell, subject, key, BASE)?;
        Some(Bar { ratio: if is_inverse { 1.0 / ratio } else { ratio }, color })
    };
    BARS.iter().filter_map(bar).collect()
}

fn head(height: f64) -> String {
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#24292f\">\n\
         <style>.small {{ font-size: 10px }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-weight=\"600\">One core, {BASE} = 1; longer is better</text>\n"
    );
    for (at, (name, color)) in BARS.iter().enumerate() {
        let x = 16.0 + at as f64 * 110.0;
        line(&mut text, format_args!(r#"<rect x="{x:.0}" y="36" width="10" height="10" fill="{color}"/>"#));
        line(&mut text, format_args!(r#"<text x="{:.0}" y="45">{name}</text>"#, x + 15.0));
    }
    text
}

fn line(text: &mut String, shape: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{shape}");
}
