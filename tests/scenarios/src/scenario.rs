//! The scenarios: which fleet, which load, which trouble.
//!
//! Times are those of a GPU server made about five times shorter, so that a fleet fills and empties often enough in a
//! few seconds to be measured: answers take half a second to two where real ones take five to ten.

/// One simulated GPU server.
#[derive(Debug, Clone, Copy)]
pub struct Gpu {
    pub engine: &'static str,
    pub slots: usize,
    /// Milliseconds from one token to the next of a request that runs alone.
    pub interval_ms: u32,
    /// Tokens of prompts it reads a second.
    pub prefill_rate: u32,
    /// Tokens its KV-cache holds, where that is less than its slots can fill.
    pub kv_tokens: Option<u64>,
}

/// What each further running request adds to the time between two tokens.
pub const BATCH_COST_MICROS: u32 = 500;
/// From a read prompt to the first token.
pub const FIRST_TOKEN_MS: u32 = 20;

/// What comes in, open-loop: nobody waits for an answer before asking again.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Of what the fleet can serve at most.
    pub share: f64,
    /// Of the requests, how many come in bursts, every [`BURST_EVERY_S`] seconds.
    pub in_bursts: f64,
    /// Of the requests, how many bring one to three images.
    pub with_images: f64,
    pub prompt_tokens: (u32, u32),
    /// Tokens of an answer. One request in ten wants [`LONG`] times the most.
    pub tokens: (u32, u32),
}

pub const LONG: u32 = 2;
pub const BURST_EVERY_S: f64 = 1.5;
/// A burst comes within so long: more at once than this machine can pass on would measure the machine.
pub const BURST_S: f64 = 0.1;
pub const IMAGE_TOKENS: u32 = 576;

/// What happens to the fleet meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    None,
    /// The same proxy twice before the same fleet, each with half of the requests.
    SecondReplica,
    /// The first server is kept full by somebody who does not go through the proxy.
    DirectLoad,
    /// The first server takes requests and never answers, for a third of the time.
    Hang,
    /// The first server is killed, and comes back after a third of the time.
    Restart,
}

impl Trouble {
    /// So many times as long as other rows it takes: a server that returns gets its slots back over a time that must be
    /// short beside the row, as it is beside the time between two such troubles.
    pub fn lengthens(self) -> f64 {
        if matches!(self, Self::Hang | Self::Restart) { 3.0 } else { 1.0 }
    }
}

/// What this proxy must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// No request to a server whose slots are all taken, and under 1 % of idle time while a request waits.
    NoneIdle,
    /// The first half of that: the second is missed, and `docs/capacity.md` says why.
    NotOverfilled,
    /// It has to find out how many slots there are, and shows how well it does.
    Learnt,
}

pub struct Scenario {
    pub name: &'static str,
    pub gpus: Vec<Gpu>,
    pub load: Load,
    pub trouble: Trouble,
    pub goal: Goal,
    /// Part of the short suite.
    pub is_quick: bool,
}

impl Scenario {
    fn new(name: &'static str, gpus: Vec<Gpu>, load: Load, trouble: Trouble) -> Self {
        Self { name, gpus, load, trouble, goal: Goal::NoneIdle, is_quick: false }
    }

    fn must(self, goal: Goal) -> Self {
        Self { goal, ..self }
    }

    /// Whether contenders are told how many slots each server has.
    pub fn is_told(&self) -> bool {
        self.goal != Goal::Learnt
    }

    fn quick(self) -> Self {
        Self { is_quick: true, ..self }
    }
}

const LARGE: Gpu = Gpu { engine: "vllm", slots: 16, interval_ms: 16, prefill_rate: 40_000, kv_tokens: None };
const MIDDLE: Gpu = Gpu { engine: "sglang", slots: 8, interval_ms: 20, ..LARGE };
const SMALL: Gpu = Gpu { engine: "llama-cpp", slots: 4, interval_ms: 30, prefill_rate: 15_000, ..LARGE };
const DESK: Gpu = Gpu { engine: "ollama", slots: 2, interval_ms: 40, prefill_rate: 8_000, ..LARGE };
/// Speaks seldom, so that fifty of them fit on one machine.
const SLOW: Gpu = Gpu { interval_ms: 50, slots: 6, ..LARGE };

const STEADY: Load = Load { share: 0.7, in_bursts: 0.0, with_images: 0.0, prompt_tokens: (50, 800), tokens: (10, 40) };
const BURSTS: Load = Load { share: 0.8, in_bursts: 0.5, ..STEADY };

fn mixed() -> Vec<Gpu> {
    vec![LARGE, MIDDLE, MIDDLE, SMALL, SMALL, DESK, DESK]
}

/// All of them, in the order they run.
pub fn all() -> Vec<Scenario> {
    let four = vec![Gpu { engine: "vllm", ..MIDDLE }; 4];
    let fifty = (0..50).map(|index| match index % 3 {
        0 => SLOW,
        1 => Gpu { engine: "sglang", slots: 4, ..SLOW },
        _ => Gpu { engine: "llama-cpp", slots: 2, ..SLOW },
    });
    vec![
        Scenario::new("two alike, bursts", four.iter().take(2).copied().collect(), BURSTS, Trouble::None).quick(),
        Scenario::new("seven mixed, steady", mixed(), STEADY, Trouble::None),
        Scenario::new("seven mixed, bursts", mixed(), BURSTS, Trouble::None).quick(),
        Scenario::new("seven mixed, overload", mixed(), Load { share: 1.15, ..BURSTS }, Trouble::None),
        Scenario::new("vision mix, bursts", mixed(), Load { with_images: 0.4, share: 0.7, ..BURSTS }, Trouble::None)
            .must(Goal::NotOverfilled)
            .quick(),
        Scenario::new(
            "little KV-cache",
            four.iter().map(|gpu| Gpu { kv_tokens: Some(2400), ..*gpu }).collect(),
            Load { share: 0.5, ..BURSTS },
            Trouble::None,
        )
        .must(Goal::NotOverfilled),
        Scenario::new("fifty, bursts", fifty.collect(), BURSTS, Trouble::None),
        Scenario::new("second replica, alike", four.clone(), BURSTS, Trouble::SecondReplica).quick(),
        // Ollama reports no load: nobody can know there what another replica does.
        Scenario::new("second replica, mixed", mixed(), BURSTS, Trouble::SecondReplica).must(Goal::NotOverfilled),
        Scenario::new("one full of others", four.clone(), Load { share: 0.55, ..BURSTS }, Trouble::DirectLoad).quick(),
        Scenario::new("one hung", four.clone(), Load { share: 0.55, ..BURSTS }, Trouble::Hang).quick(),
        Scenario::new("one restarting", four.clone(), Load { share: 0.55, ..BURSTS }, Trouble::Restart).quick(),
        Scenario::new("four alike, untold", four, BURSTS, Trouble::None).must(Goal::Learnt).quick(),
        Scenario::new("seven mixed, untold", mixed(), BURSTS, Trouble::None).must(Goal::Learnt),
        Scenario::new("four desks, untold", vec![DESK; 4], BURSTS, Trouble::None).must(Goal::Learnt),
    ]
}
