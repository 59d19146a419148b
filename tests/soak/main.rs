//! `make soak`: a proxy before three simulated servers, clients that never pause, and everything that may go wrong going
//! wrong, one thing after another by a seed. In the end every invariant of `docs/reliability.md` is checked.
//!
//! Not among the tests of `cargo test`, for it takes as long as it is told to; `make lint` compiles it. The seed says what
//! happens and in which order, not at which instant: a second run is alike and not the same.

#![allow(clippy::expect_used, reason = "whatever is not as promised ends the soak, which is what it is there for")]

mod asking;
#[allow(dead_code, reason = "the suite uses all of it, the soak a part")]
#[path = "../plugins/guest.rs"]
mod guest;
#[allow(dead_code, reason = "the suite uses all of it, the soak a part")]
#[path = "../plugins/guests.rs"]
mod guests;
mod harm;
#[allow(dead_code, unused_imports, reason = "the suite uses all of it, the soak a part")]
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use clap::Parser;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::{Instant, sleep};

use asking::{Asking, CLIENTS_KEY, PROMPT};
use harm::{BACKENDS_KEY, Fleet};
use support::*;

/// Mixes faults for a while, then checks that every promise was kept.
#[derive(Parser)]
struct Args {
    /// How long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What goes wrong, and in which order
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

/// The admin listener answers within this, whatever happens.
const ADMIN_ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// What memory may grow by once it is warm: pools, caches and the allocator's slack, but no leak that an hour would not show.
const GROWTH_KIB: u64 = 50 << 10;
/// Descriptors that may stay open besides those at the beginning: kept connections, one or two a worker and server.
const KEPT_DESCRIPTORS: usize = 12;

fn main() {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(soak(&args));
}

async fn soak(args: &Args) {
    let (began, lasts) = (Instant::now(), Duration::from_secs(args.seconds));
    let mut fleet = Fleet::start(args.seed).await;
    fleet.proxy.client.chat().await.ok();
    let descriptors = fleet.proxy.descriptors();
    let (stop, stopped) = oneshot::channel();
    let admin = tokio::spawn(watched(fleet.proxy.another_client_of_admin(), stopped));
    let mut asking = Asking::begin(&fleet.proxy, args.seed);
    // Memory is compared once everything has happened a few times: plugins compiled, pools filled.
    let mut warm_kib = None;
    while began.elapsed() < lasts {
        fleet.harm().await;
        asking.goes_on();
        if began.elapsed() > (lasts / 3).min(Duration::from_secs(30)) {
            warm_kib.get_or_insert_with(|| fleet.proxy.resident_kib());
        }
    }
    fleet.mend().await;
    let told = asking.ends_well().await;
    drop(stop);
    let slowest = admin.await.expect("an admin listener that answers");
    fleet.holds_nothing().await;
    let (asked, left) = told.begun_and_left();
    // With the first of all.
    fleet.counts_each_request_once(asked + 1, left).await;
    fleet.is_well().await;
    fleet.shows_what_servers_see().await;
    fleet.told_nobody(&[CLIENTS_KEY, BACKENDS_KEY, PROMPT]).await;
    fleet.rests().await;
    fleet.gives_back(descriptors + KEPT_DESCRIPTORS).await;
    let warm_kib = warm_kib.unwrap_or_else(|| fleet.proxy.resident_kib());
    let kib = fleet.proxy.resident_kib();
    assert!(kib < warm_kib + GROWTH_KIB, "{kib} KiB, after {warm_kib} KiB when it was warm");
    assert!(slowest < ADMIN_ANSWERS_WITHIN, "an admin page took {slowest:?}");
    println!(
        "soak ok: seed {}, {} s: {told}; {}; descriptors {descriptors}, then {}; memory {} MiB warm, then {} MiB; slowest admin page {} ms",
        args.seed,
        began.elapsed().as_secs(),
        fleet.told(),
        fleet.proxy.descriptors(),
        warm_kib >> 10,
        kib >> 10,
        slowest.as_millis()
    );
}

/// Asks the admin listener until `stop` is dropped; how long the slowest page took.
async fn watched(admin: Client, mut stop: oneshot::Receiver<()>) -> Duration {
    let mut slowest = Duration::ZERO;
    while stop.try_recv() == Err(TryRecvError::Empty) {
        for page in ["/api/fleet", "/metrics", "/livez", "/api/decisions"] {
            let asked = Instant::now();
            admin.get(page).await.ok();
            slowest = slowest.max(asked.elapsed());
        }
        sleep(Duration::from_millis(100)).await;
    }
    slowest
}
