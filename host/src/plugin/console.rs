//! What guests print and log, on its way to the proxy's log.
//!
//! Invariants:
//! - A version writes at most 20 lines a second and 4 KiB a line, however many instances it has. What is dropped
//!   is counted, and the next line says so.
//! - One call hands over at most 64 KiB, whatever becomes of them; a guest that goes on is stopped. Fuel does not
//!   see what the host does for a guest.
//! - Nothing waits for a newline beyond the call that printed it.
//! - No control character of a guest reaches the log.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::bindings::host::Level;

const LINE_MAX_BYTES: usize = 4 << 10;
const LINES_A_SECOND: u32 = 20;
const CALL_MAX_BYTES: usize = 64 << 10;
/// What a call of `log` or a write costs at least: an empty one is work, too.
const WRITE_MIN_BYTES: usize = 64;
/// Lines of a call that a fault repeats: a panic message of Rust has two.
const REMEMBERED_LINES: usize = 3;
/// Of each: enough for a message, little enough for `/api/plugins`.
const REMEMBERED_BYTES: usize = 256;

/// The way into the log that all instances of a version share.
pub(super) struct Log {
    plugin: String,
    window: Mutex<Window>,
}

/// Lines in the running second.
struct Window {
    since: Instant,
    lines: u32,
    dropped: u64,
}

impl Log {
    pub fn new(plugin: &str) -> Self {
        Self { plugin: plugin.to_owned(), window: Mutex::new(Window { since: Instant::now(), lines: 0, dropped: 0 }) }
    }

    fn write(&self, level: Level, line: &str) {
        let Some(dropped) = self.admit(Instant::now()) else { return };
        let plugin = self.plugin.as_str();
        if dropped > 0 {
            tracing::warn!(plugin, dropped, "lines of this plugin were dropped: at most {LINES_A_SECOND} a second");
        }
        match level {
            Level::Debug => tracing::debug!(plugin, "{line}"),
            Level::Info => tracing::info!(plugin, "{line}"),
            Level::Warn => tracing::warn!(plugin, "{line}"),
            Level::Error => tracing::error!(plugin, "{line}"),
        }
    }

    /// Whether one more line may be written now: then with how many were dropped since the last.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(window.since) >= Duration::from_secs(1) {
            window.since = now;
            window.lines = 0;
        }
        if window.lines == LINES_A_SECOND {
            window.dropped += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.dropped))
    }
}

/// One instance's stdout and stderr, which are one, and its `log`.
pub(super) struct Console {
    log: Arc<Log>,
    /// The line being printed, up to its limit.
    line: Vec<u8>,
    left_bytes: usize,
    /// The last lines of this call.
    said: Vec<String>,
}

impl Console {
    pub fn new(log: Arc<Log>) -> Self {
        Self { log, line: Vec::new(), left_bytes: CALL_MAX_BYTES, said: Vec::new() }
    }

    /// Before a call: a new budget, nothing said.
    pub fn begin(&mut self) {
        self.left_bytes = CALL_MAX_BYTES;
        self.said.clear();
    }

    /// After a call: writes what still waits for its newline.
    pub fn end(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
    }

    /// Takes what a guest prints.
    pub fn print(&mut self, bytes: &[u8]) -> wasmtime::Result<()> {
        self.pay(bytes.len())?;
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LINE_MAX_BYTES - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                self.end_line();
            }
        }
        Ok(())
    }

    /// Takes a line for the log.
    pub fn log(&mut self, level: Level, message: &str) -> wasmtime::Result<()> {
        self.pay(message.len())?;
        let line = legible(message.as_bytes());
        self.log.write(level, &line);
        self.remember(line);
        Ok(())
    }

    /// The last lines of this call as one; where it panicked, from there.
    pub fn said(&self) -> Option<String> {
        let panic = self.said.iter().rposition(|line| line.contains("panicked at"));
        let said = &self.said[panic.unwrap_or(0)..];
        (!said.is_empty()).then(|| said.join(" "))
    }

    fn pay(&mut self, bytes: usize) -> wasmtime::Result<()> {
        match self.left_bytes.checked_sub(bytes.max(WRITE_MIN_BYTES)) {
            Some(left) => self.left_bytes = left,
            None => wasmtime::bail!("it wrote more than {CALL_MAX_BYTES} bytes to the log in one call"),
        }
        Ok(())
    }

    fn end_line(&mut self) {
        let line = legible(&self.line);
        self.line.clear();
        if !line.trim().is_empty() {
            self.log.write(Level::Info, &line);
            self.remember(line);
        }
    }

    fn remember(&mut self, mut line: String) {
        // Rust ends its panic message with advice that helps nobody here.
        if line.starts_with("note: run with `RUST_BACKTRACE") {
            return;
        }
        if self.said.len() == REMEMBERED_LINES {
            self.said.remove(0);
        }
        line.truncate(line.floor_char_boundary(REMEMBERED_BYTES));
        self.said.push(line);
    }
}

/// The longest reason that is told of anything: enough for a sentence and what it speaks of, little enough for `/api/plugins`.
const TOLD_MAX_BYTES: usize = 1 << 10;

/// A reason in which words of a guest may be: legible, and cut.
pub(super) fn told(text: &str) -> String {
    let mut line = legible(text.as_bytes());
    if line.len() > TOLD_MAX_BYTES {
        line.truncate(line.floor_char_boundary(TOLD_MAX_BYTES));
        line.push('…');
    }
    line
}

/// Whether a character could forge lines, drive a terminal, or have text read in another order than it is written.
fn is_trick(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A line of what a guest says: cut, and without control characters, which could forge lines or drive a terminal.
pub(super) fn legible(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LINE_MAX_BYTES)]);
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\t' => line.push(' '),
            _ if is_trick(char) => _ = write!(line, "{}", char.escape_default()),
            _ => line.push(char),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> Console {
        Console::new(Arc::new(Log::new("p")))
    }

    #[test]
    fn twenty_lines_a_second_and_the_rest_is_counted() {
        let log = Log::new("p");
        let start = Instant::now();
        let admitted = (0..50).filter(|_| log.admit(start).is_some()).count();
        assert_eq!(admitted, 20);
        let later = start + Duration::from_secs(1);
        assert_eq!(log.admit(later), Some(30), "the next second tells how many were dropped");
        assert_eq!(log.admit(later), Some(0), "and tells it once");
    }

    #[test]
    fn lines_are_cut_joined_and_made_legible() {
        let mut console = console();
        console.print(b"one ").unwrap();
        console.print(b"line\nsecond\x1b[31m\n\n").unwrap();
        console.print(b"open").unwrap();
        console.end();
        assert_eq!(console.said().unwrap(), "one line second\\u{1b}[31m open");
        console.begin();
        assert_eq!(console.said(), None);
        console.print(&[b'x'; 5000]).unwrap();
        console.print(b"yyy\nz").unwrap();
        console.end();
        assert_eq!(console.said().unwrap(), format!("{} z", "x".repeat(REMEMBERED_BYTES)));
    }

    #[test]
    fn of_a_panic_only_the_panic_is_repeated() {
        let mut console = console();
        console.print(b"weighing\nthread 'x' panicked at src/lib.rs:7:1:\nout of cheese\n").unwrap();
        console.print(b"note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n").unwrap();
        assert_eq!(console.said().unwrap(), "thread 'x' panicked at src/lib.rs:7:1: out of cheese");
    }

    #[test]
    fn a_call_hands_over_a_bounded_number_of_bytes_and_of_writes() {
        let mut console = console();
        console.begin();
        let writes = (0..10_000).take_while(|_| console.print(b"").is_ok()).count();
        assert_eq!(writes, CALL_MAX_BYTES / WRITE_MIN_BYTES);
        console.begin();
        assert!(console.log(Level::Info, &"x".repeat(CALL_MAX_BYTES + 1)).is_err());
    }
}
