//! Each switch of the simulated server: on for a while under load, then off.

use super::*;

/// What a fault may cost those who ask meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cost {
    /// Nothing: somebody else answers.
    Nothing,
    /// Answers, but none without a visible end.
    Answers,
}

use Cost::{Answers, Nothing};

/// A fault, what it may cost, and whether the server is asked nothing any more after a while of it.
async fn endures(fault: &str, cost: Cost, is_shunned: bool) {
    let (proxy, servers) = beside_a_sound_one().await;
    let [failing, sound] = &servers;
    let load = if cost == Nothing { unharmed(&proxy) } else { visibly(&proxy, &Losses::default()) };
    load.answers_more(20).await;
    failing.fails(fault).await;
    let before = sound.count("finished").await;
    eventually("the sound one serves on", async || sound.count("finished").await > before + 30).await;
    if is_shunned {
        let is_out =
            async || ["down", "busy"].contains(&proxy.backend("failing").await["state"].as_str().unwrap_or(""));
        eventually("the failing one is out of use", is_out).await;
    }
    assert!(failing.count("faults").await > 0, "nothing met the fault");
    failing.heals().await;
    let finished = failing.count("finished").await;
    eventually("it serves again", async || failing.count("finished").await > finished + 5).await;
    load.answers_more(10).await;
    load.ends_well().await;
    all_is_well(&proxy, &servers).await;
}

macro_rules! faults {
    ($($name:ident: $fault:literal, $cost:expr, shunned: $shunned:literal;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            endures($fault, $cost, $shunned).await;
        }
    )*};
}

faults! {
    refusing_connections: "refuse", Nothing, shunned: true;
    closing_before_an_answer: "close-before-answer", Nothing, shunned: true;
    resetting: "reset", Nothing, shunned: true;
    // What may be at work is not run a second time.
    hanging_before_an_answer: "hang", Answers, shunned: true;
    answering_garbage: "garbage", Nothing, shunned: true;
    a_storm_of_fast_errors: "status=500", Nothing, shunned: true;
    pushing_back_for_a_second: "status=503,retry_after=1", Nothing, shunned: true;
    pushing_back_without_a_time: "status=429", Nothing, shunned: true;
    pushing_back_with_nonsense: "status=429,retry_after=soon", Nothing, shunned: true;
    pushing_back_now_and_then: "status=503,retry_after=0,count=7", Nothing, shunned: false;
    streams_that_begin_with_an_error: "error-event", Nothing, shunned: false;
    errors_in_the_middle_of_streams: "error-mid-stream=2", Answers, shunned: false;
    closing_in_the_middle: "close-after-bytes=200", Answers, shunned: false;
    resetting_in_the_middle: "reset-after-chunks=2", Answers, shunned: false;
    hanging_in_the_middle: "stall-after-chunks=2", Answers, shunned: false;
    health_pages_that_are_slow: "slow-health=10s", Nothing, shunned: false;
    load_pages_of_html: "bad-metrics=html", Nothing, shunned: false;
    load_pages_of_nonsense: "bad-metrics=nan", Nothing, shunned: false;
    load_pages_without_end: "bad-metrics=endless", Nothing, shunned: false;
    load_pages_without_a_load: "bad-metrics=empty", Nothing, shunned: false;
    load_pages_that_lie_high: "bad-metrics=high", Nothing, shunned: true;
    load_pages_that_lie_zero: "bad-metrics=zero", Nothing, shunned: false;
    load_pages_of_huge_numbers: "bad-metrics=huge", Nothing, shunned: false;
    // It is the answer to what was sent, whoever did not read it.
    answering_early: "early=413", Answers, shunned: false;
    failing_early: "early=500", Nothing, shunned: true;
    answering_twice: "twice", Nothing, shunned: false;
    bodies_where_none_may_be: "stray-body=204", Answers, shunned: false;
    bodies_where_nothing_is_new: "stray-body=304", Answers, shunned: false;
    redirecting: "redirect=307", Nothing, shunned: true;
    another_model_behind_the_same_address: "other-model", Nothing, shunned: true;
    loading_its_model: "loading", Nothing, shunned: true;
}
