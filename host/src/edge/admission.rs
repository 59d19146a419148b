//! Which clients are let in: as many as there are descriptors for. All others are turned away with a word.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream as StdStream};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::descriptors::{self, Spare};
use super::door::Attended;
use super::snapshot::Shared;

/// Between two words in the log that clients are turned away.
const REFUSALS_TOLD_EVERY: Duration = Duration::from_secs(10);
/// Without descriptors: how long until the next look.
const SHORT_WHILE: Duration = Duration::from_millis(20);
/// Whoever is turned away learns why, in the shape that most clients read.
const REFUSAL: &str = "{\"error\":{\"message\":\"Too many clients are connected. Try again shortly.\",\
    \"type\":\"overloaded_error\",\"param\":null,\"code\":\"proxy_overloaded\"}}";

/// Who is let in.
#[derive(Debug)]
pub struct Admission {
    /// Clients at once.
    limit: u64,
    spare: Spare,
    told: Option<Instant>,
}

impl Admission {
    pub fn new(limit: u64) -> Self {
        Self { limit, spare: Spare::new(1), told: None }
    }

    pub fn is_open(&self, shared: &Shared) -> bool {
        shared.connections.iter().map(|connections| connections.load(Relaxed)).sum::<u64>() < self.limit
    }

    /// Costs one write, whether or not it is read.
    pub fn refuse(&mut self, mut stream: &StdStream) {
        let length = REFUSAL.len();
        let head = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1";
        let answer = format!("{head}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{REFUSAL}");
        let _ = stream.write(answer.as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        self.tell(&format!("{} are connected, and there are descriptors for no more", self.limit));
    }

    /// There is nothing to accept with. The spare descriptor is: to send away whoever stands at the door, who would
    /// otherwise be there again at once.
    pub async fn without_descriptors(&mut self, door: &Attended, error: &io::Error) {
        self.tell(&format!("cannot accept: {error}"));
        if descriptors::have_run_out(error) && self.spare.lend() {
            // Whoever stood there may have left.
            if let Ok(Ok(stream)) = timeout(SHORT_WHILE, door.accept()).await
                && let Ok(stream) = stream.into_std()
            {
                self.refuse(&stream);
            }
            self.spare.refill();
        } else {
            // What is open goes on, and some of it will close.
            tokio::time::sleep(SHORT_WHILE).await;
        }
    }

    /// At most one line in a while, however many come.
    fn tell(&mut self, why: &str) {
        if self.told.is_none_or(|told| told.elapsed() >= REFUSALS_TOLD_EVERY) {
            self.told = Some(Instant::now());
            tracing::warn!("clients are turned away: {why}");
        }
    }
}
