//! Where log lines go: for people on a terminal, as JSON lines elsewhere; always to standard error.
//!
//! Invariants: no request waits for the log (a line that nobody takes is dropped and counted); no control character
//! reaches it; at no level does a library write there what it moves, which is where headers and bodies would show.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt, FilterFn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt as lines};

use crate::metrics::LOG_LINES_DROPPED;

/// What is logged where `RUST_LOG` says nothing.
const DEFAULT: &str = "info";
/// How our own targets begin.
const OWN: &str = env!("CARGO_CRATE_NAME");
/// The most that others log, whatever `RUST_LOG` says: below it HTTP libraries print the headers they read.
const FOREIGN_LEVEL: Level = Level::INFO;
/// Lines that wait for a slow sink; what comes then is dropped. With lines at their longest, some megabytes.
const WAITING_LINES: usize = 1024;
/// How long the last lines may take at the end of the process.
const LAST_LINES: Duration = Duration::from_millis(500);
/// Longest text of a message: what a plugin may print in a line.
const MESSAGE_LIMIT_BYTES: usize = 4 << 10;
/// Longest text of any other field.
const FIELD_LIMIT_BYTES: usize = 256;

/// The way to the thread that writes.
static SINK: OnceLock<SyncSender<Message>> = OnceLock::new();

enum Message {
    Line(Vec<u8>),
    /// Whoever waits at the other end is told that everything before was written.
    Finish(SyncSender<()>),
}

/// Sets logging up, once a process.
pub fn start() {
    let (give, take) = mpsc::sync_channel(WAITING_LINES);
    if SINK.set(give).is_err() || std::thread::Builder::new().name("log".into()).spawn(|| write(take)).is_err() {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
        // It may be the last that this process does.
        finish();
    }));
    let asked = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let filter = asked.and(FilterFn::new(may_speak).with_max_level_hint(Level::TRACE));
    let registry = tracing_subscriber::registry();
    if io::stderr().is_terminal() {
        registry.with(lines::layer().with_target(false).with_writer(Sink).with_filter(filter)).init();
    } else {
        registry.with(lines::layer().event_format(JsonLine).with_writer(Sink).with_filter(filter)).init();
    }
}

/// Waits for the last lines, but not for a sink that does not take them.
pub fn finish() {
    let Some(sink) = SINK.get() else { return };
    let (told, written) = mpsc::sync_channel(1);
    if sink.try_send(Message::Finish(told)).is_ok() {
        // An error is a sink that hangs: nobody waits for it.
        let _ = written.recv_timeout(LAST_LINES);
    }
}

/// Ours at any level; others only so far as they do not show what they move.
fn may_speak(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with(OWN) || *metadata.level() <= FOREIGN_LEVEL
}

/// Writes what comes, for as long as the process lives. A sink that is broken may be mended: each line is tried.
fn write(lines: Receiver<Message>) {
    let mut stderr = io::stderr();
    for message in lines {
        match message {
            Message::Line(line) => {
                if stderr.write_all(&line).is_err() {
                    LOG_LINES_DROPPED.fetch_add(1, Relaxed);
                }
            }
            Message::Finish(told) => drop(told.send(())),
        }
    }
}

/// Takes whole lines and never waits.
#[derive(Debug, Clone, Copy)]
struct Sink;

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let sent = SINK.get().map(|sink| sink.try_send(Message::Line(line.to_vec())));
        if let None | Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) = sent {
            LOG_LINES_DROPPED.fetch_add(1, Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An event as one line of JSON: when, how grave, what, and its fields.
struct JsonLine;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for JsonLine {
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        let now = crate::clock::datable(SystemTime::now());
        fields.0.insert("timestamp".into(), humantime::format_rfc3339_micros(now).to_string().into());
        fields.0.insert("level".into(), event.metadata().level().as_str().into());
        event.record(&mut fields);
        writeln!(out, "{}", Value::Object(fields.0))
    }
}

/// The fields of an event.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn text(&mut self, field: &Field, text: &str) {
        let limit = if field.name() == "message" { MESSAGE_LIMIT_BYTES } else { FIELD_LIMIT_BYTES };
        self.0.insert(field.name().into(), harmless(text, limit).into());
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, text: &str) {
        self.text(field, text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
}

/// The text, cut, without control characters: JSON would carry them through to a terminal. Lines stay lines.
fn harmless(text: &str, limit_bytes: usize) -> String {
    let kept = text.get(..text.floor_char_boundary(limit_bytes)).unwrap_or_default();
    let mut clean: String = kept
        .chars()
        .map(|char| if char.is_control() && char != '\n' { char::REPLACEMENT_CHARACTER } else { char })
        .collect();
    if kept.len() < text.len() {
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_and_lose_their_control_characters() {
        for (text, clean) in [
            ("plain é\n\"quoted\"", "plain é\n\"quoted\""),
            ("\u{1b}[31mred\u{1b}[0m\r\0", "\u{fffd}[31mred\u{fffd}[0m\u{fffd}\u{fffd}"),
            ("\u{9b}31m\u{7f}", "\u{fffd}31m\u{fffd}"),
            ("123456789012345678901234567890é", "123456789012345678901234567890é"),
            ("1234567890123456789012345678901é", "1234567890123456789012345678901…"),
        ] {
            assert_eq!(harmless(text, 32), clean);
        }
    }
}
