//! Servers that stop, die and come back: by signals to their processes.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_started_again() {
    let (proxy, [mut failing, sound]) = beside_a_sound_one().await;
    let losses = Losses::default();
    let load = visibly(&proxy, &losses);
    for _ in 0..3 {
        load.answers_more(20).await;
        let before = losses.count();
        failing.kill();
        proxy.waits_until("failing", "down").await;
        load.answers_more(20).await;
        // At most what was already on its way to a client.
        assert!(losses.count() - before <= SLOTS as usize, "{} lost", losses.count() - before);
        failing = failing.again().await;
        eventually("it serves again", async || failing.count("finished").await > 5).await;
    }
    load.ends_well().await;
    all_is_well(&proxy, &[failing, sound]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_and_continued() {
    let (proxy, [failing, sound]) = beside_a_sound_one().await;
    let losses = Losses::default();
    let load = visibly(&proxy, &losses);
    load.answers_more(20).await;
    // Its kernel goes on taking connections, and nothing ever answers.
    failing.signal("STOP");
    proxy.waits_until("failing", "down").await;
    let lost = losses.count();
    let before = sound.count("finished").await;
    eventually("the sound one serves on", async || sound.count("finished").await > before + 30).await;
    assert!(losses.count() <= lost + SLOTS as usize, "{lost}, then {}", losses.count());
    failing.signal("CONT");
    let finished = failing.count("finished").await;
    eventually("it serves again", async || failing.count("finished").await > finished + 5).await;
    load.ends_well().await;
    all_is_well(&proxy, &[failing, sound]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_down_and_back_without_a_stampede() {
    let (proxy, [mut first, mut second]) = beside_a_sound_one().await;
    let losses = Losses::default();
    let load = visibly(&proxy, &losses);
    load.answers_more(20).await;
    first.kill();
    second.kill();
    proxy.waits_until("failing", "down").await;
    proxy.waits_until("sound", "down").await;
    (first, second) = tokio::join!(first.again(), second.again());
    eventually("both serve again", async || first.count("finished").await.min(second.count("finished").await) > 5)
        .await;
    let so_far = losses.count();
    load.answers_more(30).await;
    assert_eq!(losses.count(), so_far, "nothing is lost once they are back");
    load.ends_well().await;
    // Slots held from the first instant, in both.
    all_is_well(&proxy, &[first, second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flapping() {
    let (proxy, servers) = beside_a_sound_one().await;
    let [failing, _] = &servers;
    let load = Load::of(&proxy, CLIENTS);
    for _ in 0..6 {
        failing.fails("refuse").await;
        load.answers_more(15).await;
        // While it refuses, its own control page is the one thing that answers.
        failing.heals().await;
        load.answers_more(15).await;
    }
    load.ends_well().await;
    all_is_well(&proxy, &servers).await;
}
