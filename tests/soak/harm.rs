//! What goes wrong: servers that fail, stop, die and come back; configurations and plugins, good and bad.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;

use super::guests::*;
use super::support::*;

/// Slots of each server.
const SLOTS: u32 = 4;
/// Quick polls, short patience and a short line, so that much happens in a short time.
const TOP: &str = "workers = 2\n[capacity]\npoll_interval = \"200ms\"\nstale_after = \"1s\"\nslow_start = \"500ms\"\n\
                   [timeouts]\nfirst_byte = \"1s\"\nbetween_chunks = \"1s\"\n[queue]\nsize = 8\ntimeout = \"2s\"\n";
/// The plugin whose place a file takes.
const POLICY: &str = "round-robin";

const FAULTS: [&str; 21] = [
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
    "loading",
];

/// The proxy, its servers, and what was done to them.
pub struct Fleet {
    pub proxy: Proxy,
    servers: [Simulated; 3],
    rng: Rng,
    done: BTreeMap<&'static str, usize>,
}

impl Fleet {
    pub async fn start(seed: u64) -> Self {
        let servers = [
            Simulated::start("a", SLOTS).await,
            Simulated::start("b", SLOTS).await,
            Simulated::start("c", SLOTS).await,
        ];
        let proxy = Proxy::start(&config_of(servers.iter())).await;
        Self { proxy, servers, rng: Rng::with_seed(seed), done: BTreeMap::new() }
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
        let config = config_of(servers.map(|(_, server)| server));
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
        self.proxy.write_config(&config_of(self.servers.iter()));
        let is_whole =
            async || self.proxy.backends().await.iter().filter(|row| row["state"] != "draining").count() == 3;
        eventually("all servers are in the fleet", is_whole).await;
    }

    /// Nobody asks any more: nothing is held, no server had more than its slots, and whoever comes is served.
    pub async fn is_well(&self) {
        self.proxy.falls_idle().await;
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

fn config_of<'a>(servers: impl Iterator<Item = &'a Simulated>) -> String {
    TOP.to_owned() + &servers.map(Simulated::entry).collect::<String>()
}
