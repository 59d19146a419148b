//! A gate: whoever comes to it waits until the test lets one or all of them through.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use super::soon;

/// Clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    arrivals: Arc<watch::Sender<usize>>,
    passes: Arc<Semaphore>,
}

impl Gate {
    pub fn closed() -> Self {
        Self { arrivals: Arc::new(watch::Sender::new(0)), passes: Arc::new(Semaphore::new(0)) }
    }

    /// Waits until `count` have come to it, those included that passed since.
    pub async fn reached_by(&self, count: usize) {
        let mut arrivals = self.arrivals.subscribe();
        let what = format!("{count} arrivals at a gate");
        soon(&what, arrivals.wait_for(|seen| *seen >= count)).await.expect("the gate holds its sender");
    }

    /// How many have come to it.
    pub fn arrivals(&self) -> usize {
        *self.arrivals.borrow()
    }

    /// Lets one through: whoever waits longest, or the next to come.
    pub fn release_one(&self) {
        self.passes.add_permits(1);
    }

    /// Lets all through, from now on.
    pub fn open(&self) {
        self.passes.close();
    }

    /// Comes to the gate, and passes when it may. Not bounded: a backend may be held as long as its test lives.
    pub async fn pass(&self) {
        self.arrivals.send_modify(|seen| *seen += 1);
        // An error means closed for permits, which is this gate open for good.
        if let Ok(pass) = self.passes.acquire().await {
            pass.forget();
        }
    }
}
