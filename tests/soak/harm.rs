//! What goes wrong: servers that fail, stop, die and come back; configurations and plugins, good and bad.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::asking::{DEADLY, POISONED};
use super::guests::*;
use super::support::*;

/// Slots of each server.
const SLOTS: u32 = 4;
/// Quick polls, short patience and a short line, so that much happens in a short time.
const TOP: &str = "workers = 2\n[capacity]\npoll_interval = \"200ms\"\nstale_after = \"1s\"\nslow_start = \"500ms\"\n\
                   [timeouts]\nfirst_byte = \"1s\"\nbetween_chunks = \"1s\"\n[queue]\nsize = 8\ntimeout = \"2s\"\n";
/// What goes to servers, and to nobody else.
pub const BACKENDS_KEY: &str = "sk-canary-of-the-backends";
/// The longest back-off of a server that failed again and again, and its trial.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(150);
/// How long it is watched without a request; it is asked and asks others all the while, five times a second.
const REST: Duration = Duration::from_secs(3);
const KEY_FILE: &str = "key";
/// From the last client's end to a proxy that holds nothing; promised are 100 ms, on a machine that has nothing else to do.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(5);
/// The plugin whose place a file takes.
const POLICY: &str = "round-robin";

const FAULTS: [&str; 32] = [
    "refuse",
    "close-before-answer",
    "reset",
    "hang",
    "garbage",
    "status=500",
    "status=503,retry_after=1",
    "status=429",
    "status=429,retry_after=soon",
    "status=503,retry_after=0,count=7",
    "error-event",
    "error-mid-stream=2",
    "close-after-bytes=200",
    "reset-after-chunks=2",
    "stall-after-chunks=2",
    "slow-health=10s",
    "bad-metrics=html",
    "bad-metrics=nan",
    "bad-metrics=endless",
    "bad-metrics=empty",
    "bad-metrics=high",
    "bad-metrics=zero",
    "bad-metrics=huge",
    "loading",
    "early=413",
    "early=500",
    "twice",
    "stray-body=204",
    "stray-body=304",
    "redirect",
    "other-model",
    POISONED,
];

/// The proxy, its servers, and what was done to them.
pub struct Fleet {
    pub proxy: Proxy,
    servers: [Simulated; 3],
    rng: Rng,
    done: BTreeMap<&'static str, usize>,
    /// Holds the file of the key for servers.
    secrets: Folder,
}

impl Fleet {
    pub async fn start(seed: u64) -> Self {
        let servers = [
            Simulated::start("a", SLOTS).await,
            Simulated::start("b", SLOTS).await,
            Simulated::start("c", SLOTS).await,
        ];
        let secrets = Folder::new();
        secrets.write(KEY_FILE, BACKENDS_KEY);
        let proxy = Proxy::start(&config_of(&secrets, servers.iter())).await;
        Self { proxy, servers, rng: Rng::with_seed(seed), done: BTreeMap::new(), secrets }
    }

    /// The next thing goes wrong, or is mended, and stays so for a moment.
    pub async fn harm(&mut self) {
        let which = self.rng.usize(..self.servers.len());
        let what = match self.rng.u8(..16) {
            0..=3 => {
                let fault = FAULTS[self.rng.usize(..FAULTS.len())];
                self.servers[which].fails(fault).await;
                "faults"
            }
            4..=7 => {
                self.servers[which].heals().await;
                "mends"
            }
            8 | 9 => {
                self.is_not_over_filled(which).await;
                let is_murder = self.rng.bool();
                if is_murder {
                    // By a request, if one with that in it comes.
                    self.servers[which].fails(DEADLY).await;
                    self.pause().await;
                }
                self.servers[which].kill();
                self.pause().await;
                self.servers[which] = self.servers[which].again().await;
                "kills"
            }
            10 => {
                self.servers[which].signal("STOP");
                sleep(Duration::from_millis(self.rng.u64(200..2_500))).await;
                self.servers[which].signal("CONT");
                "stops"
            }
            11 | 12 => self.reload(),
            13 => {
                self.proxy.signal("HUP");
                "hang-ups"
            }
            _ => self.exchange_plugin(),
        };
        *self.done.entry(what).or_default() += 1;
        self.pause().await;
    }

    async fn pause(&mut self) {
        sleep(Duration::from_millis(self.rng.u64(50..700))).await;
    }

    /// Some of the servers, with some of their slots; or nonsense.
    fn reload(&mut self) -> &'static str {
        if self.rng.u8(..4) == 0 {
            self.proxy.write_config("nonsense = 1\n");
            return "bad configurations";
        }
        let taken = self.rng.u8(1..8);
        let servers = self.servers.iter().enumerate().filter(|(at, _)| (taken >> at) & 1 == 1);
        let slots = self.rng.u32(2..=SLOTS);
        let config = config_of(&self.secrets, servers.map(|(_, server)| server));
        self.proxy.write_config(&config.replace(&format!("slots = {SLOTS}"), &format!("slots = {slots}")));
        "configurations"
    }

    /// A file in the place of the policy: a good one, one that is none, or one that goes wrong at work. Or none any more.
    fn exchange_plugin(&mut self) -> &'static str {
        let (what, content) = match self.rng.u8(..8) {
            0 => {
                // It may not be there.
                _ = std::fs::remove_file(self.proxy.plugins_dir().join(POLICY).with_extension("wasm"));
                return "plugins deleted";
            }
            1 => ("plugins", LEAST_BUSY.to_vec()),
            2 => ("plugins", ROUND_ROBIN.to_vec()),
            3 => ("plugins", last_row()),
            4 => ("bad plugins", wrong_at_work(FOREVER)),
            5 => ("bad plugins", wrong_at_work("unreachable")),
            6 => ("bad plugins", ROUND_ROBIN[..self.rng.usize(..ROUND_ROBIN.len())].to_vec()),
            _ => ("bad plugins", b"no plugin at all".to_vec()),
        };
        self.proxy.write_plugin(POLICY, &content);
        what
    }

    /// Everything is as it was in the beginning.
    pub async fn mend(&mut self) {
        for server in &self.servers {
            server.heals().await;
        }
        self.proxy.write_config(&config_of(&self.secrets, self.servers.iter()));
        let is_whole =
            async || self.proxy.backends().await.iter().filter(|row| row["state"] != "draining").count() == 3;
        eventually("all servers are in the fleet", is_whole).await;
    }

    /// Nobody asks any more: nothing is held.
    pub async fn holds_nothing(&self) {
        let asked_last = Instant::now();
        self.proxy.falls_idle().await;
        assert!(asked_last.elapsed() < GIVEN_BACK_WITHIN, "all is given back after {:?}", asked_last.elapsed());
    }

    /// No server had more than its slots, and whoever comes is served.
    pub async fn is_well(&self) {
        for (which, server) in self.servers.iter().enumerate() {
            self.is_not_over_filled(which).await;
            eventually("the server is idle too", async || server.count("running").await == 0).await;
        }
        let is_served = async || self.proxy.client.chat().await.status == 200;
        eventually("a chat is answered", is_served).await;
        self.proxy.falls_idle().await;
        let metrics = self.proxy.metrics().await;
        assert_eq!(metrics.value("vision_proxy_queue_waiting", &[]), Some(0.0));
        assert_eq!(metrics.value("vision_proxy_backend_in_flight", &[]), Some(0.0));
    }

    /// Returns when each server has answered again: until then one that was out of use is on trial, and has one slot. More are
    /// asked at once than one has slots, for a policy may prefer one.
    async fn are_all_in_use(&self) {
        let mut before = Vec::new();
        for server in &self.servers {
            before.push(server.count("finished").await);
        }
        let have_answered = async || {
            let all = self.servers.len() * SLOTS as usize;
            in_parallel(all, |_| {
                let client = self.proxy.another_client();
                async move { client.chat().await }
            })
            .await;
            for (server, before) in self.servers.iter().zip(&before) {
                if server.count("finished").await == *before {
                    return false;
                }
            }
            true
        };
        wait::patiently(LONGEST_BACK_OFF, "all servers are in use again", have_answered).await;
    }

    /// What the proxy shows is what servers see, while so many streams as all slots are open and when they were left.
    pub async fn shows_what_servers_see(&self) {
        self.are_all_in_use().await;
        let mut open = Vec::new();
        let endless = json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 1_000_000, "ignore_eos": true})
        .to_string();
        let all_slots = self.servers.len() * SLOTS as usize;
        // Who has just come back has not all of its slots at once.
        let are_taken = async || {
            let response = soon("a head", self.proxy.client.post(CHAT, endless.clone()).send()).await.expect("a head");
            open.extend((response.status() == 200).then_some(response));
            open.len() == all_slots
        };
        eventually("all slots are taken", are_taken).await;
        for held in [u64::from(SLOTS), 0] {
            for server in &self.servers {
                let agree = async || {
                    let told = self.proxy.backend(server.name).await["in_flight"].as_u64();
                    (told, server.count("running").await) == (Some(held), held)
                };
                eventually("the proxy shows what servers see", agree).await;
            }
            open.clear();
        }
    }

    /// Each request is counted once, however it ended; none is left open. `asked` is how many clients began, `left` of them
    /// those that went away, some before the proxy saw them.
    pub async fn counts_each_request_once(&self, asked: usize, left: usize) {
        let metrics = self.proxy.metrics().await;
        let count = |name: &str, labels: &[(&str, &str)]| metrics.value(name, labels).unwrap_or_default();
        let requests = count("vision_proxy_requests_total", &[]);
        let (fewest, most) = ((asked - left) as f64, asked as f64);
        assert!((fewest..=most).contains(&requests), "{requests} counted of {fewest} to {most}");
        assert_eq!(requests, count("vision_proxy_request_seconds_count", &[]));
        let answered = count("vision_proxy_attempts_total", &[("reason", "answered")]);
        assert_eq!(answered, count("vision_proxy_first_token_seconds_count", &[]));
        let decisions = self.proxy.admin_json("/api/decisions").await;
        let decisions = decisions["decisions"].as_array().expect("a list of decisions");
        assert!(!decisions.is_empty());
        for decision in decisions {
            assert!(decision["outcome"] != "under_way", "without an end: {decision}");
        }
    }

    /// Without a request it does next to nothing: no task spins.
    pub async fn rests(&self) {
        let before = self.proxy.processor_time();
        sleep(REST).await;
        let used = self.proxy.processor_time() - before;
        assert!(used < REST / 5, "{used:?} of processor time in {REST:?} without a request");
    }

    /// Nothing of what is secret stands in the log or on a page of the admin listener.
    pub async fn told_nobody(&self, secrets: &[&str]) {
        let mut told = vec![("the log", self.proxy.output())];
        for page in ["/metrics", "/api/fleet", "/api/decisions", "/api/config", "/api/plugins"] {
            told.push((page, self.proxy.admin.get(page).await.ok().text().to_owned()));
        }
        for (place, text) in told {
            let found = secrets.iter().find(|secret| text.contains(**secret));
            assert!(found.is_none(), "{found:?} stands in {place}");
        }
    }

    /// A slot is given again as soon as its client has gone, which the server hears on another connection a moment later:
    /// until then one request too many may wait there for each slot. The suite shows that there is none where nobody leaves.
    async fn is_not_over_filled(&self, which: usize) {
        let server = &self.servers[which];
        let most = server.count("max_waiting").await;
        assert!(most <= u64::from(SLOTS), "{} was over-filled: {most} waited", server.name);
        eventually("nobody waits in a server", async || server.count("waiting").await == 0).await;
    }

    /// Returns when no more descriptors than these are open: connections to servers that closed them are gone.
    pub async fn gives_back(&self, descriptors: usize) {
        eventually("descriptors are given back", async || self.proxy.descriptors() <= descriptors).await;
    }

    /// What was done, for the last line.
    pub fn told(&self) -> String {
        let parts: Vec<_> = self.done.iter().map(|(what, times)| format!("{times} {what}")).collect();
        parts.join(", ")
    }
}

fn config_of<'a>(secrets: &Folder, servers: impl Iterator<Item = &'a Simulated>) -> String {
    let key = secrets.path().join(KEY_FILE);
    let entry = |server: &Simulated| format!("{}api_key = {{ file = \"{}\" }}\n", server.entry(), key.display());
    TOP.to_owned() + &servers.map(entry).collect::<String>()
}
