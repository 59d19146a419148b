//! Waiting with a bound: the only place in the suite that lets time pass.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Longer than anything a test waits for takes on a busy machine, shorter than anybody's patience.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a condition: small beside every time the suite measures.
const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// Awaits `future`, but not longer than [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(value) = timeout(PATIENCE, future).await else { panic!("waited {PATIENCE:?} in vain: {what}") };
    value
}

/// Looks at `condition` until it holds, but not longer than [`PATIENCE`].
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    patiently(PATIENCE, what, condition).await;
}

/// The same for what may take longer.
pub async fn patiently(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + limit;
    while !soon(what, condition()).await {
        assert!(Instant::now() < end, "never came true: {what}");
        sleep(LOOK_AGAIN).await;
    }
}
