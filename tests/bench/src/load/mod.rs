//! `load`: the load generator. One thread, hand-written HTTP/1.1, because what it takes is missing on the core that it
//! shares with the backend.
//!
//! It prints `begin` when it begins to count, and one line of JSON when it has counted; between the two lines the
//! runner reads how much time the proxy took. Requests that are under way at the end count for nothing.

mod answer;
mod client;
mod events;
mod plan;
mod tally;

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

pub use plan::{Kind, Plan};
pub use tally::Measured;
use tally::Tally;

/// Streams that are opened first are opened this far apart: 3,000 a second, which every proxy accepts.
const APART: Duration = Duration::from_micros(330);
/// What is not open by then is counted as missing.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// Make load.
#[derive(clap::Args)]
pub struct Args {
    /// A plan, as JSON
    plan: String,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let plan: Plan = serde_json::from_str(&args.plan)?;
    let (seconds, warm, connections) = (plan.seconds, plan.warm_seconds, plan.connections);
    let opens_first = matches!(plan.kind, Kind::Streams { opens_first: true, .. });
    let tally = Rc::new(Tally::default());
    let job = Rc::new(client::Job::new(plan, tally.clone()));
    for number in 0..connections {
        let wait = if opens_first { APART * u32::try_from(number)? } else { Duration::ZERO };
        let job = job.clone();
        tokio::task::spawn_local(async move {
            sleep(wait).await;
            client::run(number, &job).await;
        });
    }
    if opens_first {
        let all_open = async {
            while tally.open_streams() < connections {
                sleep(Duration::from_millis(10)).await;
            }
        };
        // What is missing is in the result.
        let _ = timeout(OPEN_WITHIN, all_open).await;
    }
    sleep(Duration::from_secs_f64(warm)).await;
    println!("begin");
    tally.begin();
    let begun = Instant::now();
    sleep(Duration::from_secs_f64(seconds)).await;
    println!("{}", serde_json::to_string(&tally.end(begun.elapsed()))?);
    Ok(())
}
