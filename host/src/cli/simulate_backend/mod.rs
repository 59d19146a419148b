//! `vision-proxy simulate-backend`: one simulated inference engine that speaks the true wire format of its engine.
//!
//! For demonstrations and tests. What the real engines answered is recorded in the project's notes; whatever was
//! recorded is repeated here to the letter where a client or a proxy can see it: bodies, headers that matter, when the
//! head of a stream is sent, what a full engine says. The text is not generated but says what was received.
//!
//! The tour: `server` accepts and shapes connections, `exchange` is one request from head to answer, `routes` says what
//! a path means to an engine, `asked` reads the body, `gpu` is what the engine can do, `slots` and `generation` are its room and time,
//! `speech` what it says; `answer`, `poll` and `refusal` put it in the engine's words, `whole` and `body` into a response; `fault`,
//! `instead` and `wire` break it; `control` is `/__simulate/…`, `stats` what it tells, `journal` what it writes down.
//!
//! - Nothing here reaches another room of the proxy, and nothing but the command line and `demo` reaches in.
//! - A request holds its slot as a value: dropping the answer, wherever it stands, stops the work.

mod answer;
mod asked;
mod body;
mod control;
mod engine;
mod exchange;
mod fault;
mod generation;
mod gpu;
mod instead;
mod journal;
mod poll;
mod refusal;
mod routes;
mod server;
mod slots;
mod speech;
mod stats;
mod whole;
mod wire;

use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

pub use engine::Engine;
pub use server::Server;

use fault::{Fault, Faults};
use gpu::{Cache, Pace};
use journal::Journal;
use refusal::Refusal;
use slots::Slots;
use stats::Stats;

/// Simulate one inference server: the wire format, slots and timing of a real engine, and its faults.
///
/// The first line on stdout is `listening on http://ADDR`. Every answer says what was received, so that a test can
/// check that an image arrived. While it runs, `GET /__simulate/stats` and `/__simulate/last` tell what it saw,
/// `POST /__simulate/fault` and `/__simulate/slots` change how it behaves.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where to listen; port 0 takes a free one, named by the first line on stdout
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,

    /// Whose wire format to speak
    #[arg(long, value_enum, default_value_t = Engine::Vllm)]
    pub engine: Engine,

    /// A model it serves; repeat for more. vLLM and llama.cpp treat the further ones as aliases of the first
    #[arg(long = "model", value_name = "NAME", default_value = "simulated-model")]
    pub models: Vec<String>,

    /// Requests that run at once; the next ones wait inside, in order
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub slots: usize,

    /// Requests that may wait inside before the engine says it is busy [default: unlimited, as vLLM]
    #[arg(long, value_name = "N")]
    pub queue: Option<usize>,

    /// Time from a slot to the first token, besides reading the prompt
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = humantime::parse_duration)]
    pub first_token: Duration,

    /// Time between two tokens of a request that runs alone
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = humantime::parse_duration)]
    pub token_interval: Duration,

    /// Tokens of prompts read a second, one prompt after another; an image is 576 [default: read in no time]
    #[arg(long, value_name = "TOKENS_PER_S")]
    pub prefill_rate: Option<NonZeroU32>,

    /// What each further running request adds to the time between two tokens
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub batch_cost: Duration,

    /// Tokens of an answer; a request's own `max_tokens` may cut it shorter, `ignore_eos` makes it that long
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    pub tokens: u64,

    /// Take images [default]
    #[arg(long, conflicts_with = "text_only")]
    pub vision: bool,

    /// Refuse images, the way the engine refuses them with a text model
    #[arg(long)]
    pub text_only: bool,

    /// What it calls itself in its answers [default: the engine's name]
    #[arg(long, value_name = "LABEL")]
    pub name: Option<String>,

    /// Tokens the KV cache holds: a request waits inside until its prompt and its answer fit beside those that run
    /// [default: 4096 a slot, and nobody waits for them]
    #[arg(long, value_name = "N")]
    pub kv_tokens: Option<u64>,

    /// Close connections that were idle for so long [default: 5s for vllm, sglang and llama-cpp as they do, else 60s]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub keep_alive: Option<Duration>,

    /// Write each request's way to stdout: MICROSECONDS entered|began|left REQUEST_ID RUNNING WAITING.
    ///
    /// The time is since 1970, the id is the request's `x-request-id` (`-` without one), and the counts are those right
    /// after.
    #[arg(long)]
    pub journal: bool,

    /// Start with a fault: KIND[=ARG][,count=N][,only=chat|health|all][,retry_after=SECONDS]; repeat for several.
    ///
    /// refuse, close-before-answer, reset, hang, status=CODE, garbage, close-after-bytes=N, reset-after-chunks=N,
    /// stall-after-chunks=N, error-event, error-mid-stream[=TOKENS], slow-health[=TIME],
    /// bad-metrics[=html|nan|endless|empty|high|zero|huge], loading, early[=CODE] (before the request is read), twice
    /// (two answers), stray-body[=CODE] (behind a 204), redirect[=CODE], other-model[=NAME] (in the place of
    /// its own), poison[=TEXT] (closes on a request that holds it), deadly[=TEXT] (the process dies of one)
    #[arg(long = "fault", value_name = "FAULT")]
    pub faults: Vec<Fault>,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        // Before the first line: whoever has read it may end us.
        let stop = asked_to_end()?;
        let server = Server::bind(&args).await?;
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "listening on http://{}", server.address()).context("cannot write to stdout")?;
        stdout.flush().context("cannot write to stdout")?;
        drop(stdout);
        server.serve(stop).await;
        Ok(())
    });
    // What still streams is cut: whoever stops a simulation is not waiting for it.
    runtime.shutdown_background();
    ended
}

/// Resolves on the first SIGTERM or SIGINT; both are caught from the call on, not from the first poll.
fn asked_to_end() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// One simulated engine: what it is (never changes) and how it is (behind locks held for a moment).
struct Simulation {
    engine: Engine,
    /// Never empty; the first is the model's own name where the others are aliases.
    models: Vec<String>,
    label: String,
    vision: bool,
    pace: Pace,
    tokens: u64,
    /// When it came up, in seconds since 1970: the `created` of its models.
    born: u64,
    slots: Arc<Slots>,
    faults: Mutex<Faults>,
    stats: Stats,
}

impl Simulation {
    fn new(args: &Args) -> Self {
        let models = args.models.clone();
        let cache = Cache {
            tokens: args.kv_tokens.unwrap_or(4096 * args.slots.max(1) as u64),
            is_bound: args.kv_tokens.is_some(),
        };
        let pace = Pace {
            first_token: args.first_token,
            token_interval: args.token_interval,
            prefill_rate: args.prefill_rate,
            batch_cost: args.batch_cost,
        };
        Self {
            engine: args.engine,
            models: if models.is_empty() { vec!["simulated-model".to_owned()] } else { models },
            label: args.name.clone().unwrap_or_else(|| args.engine.name().to_owned()),
            vision: !args.text_only,
            pace,
            tokens: args.tokens,
            born: unix_seconds(),
            slots: Slots::new(args.slots, args.queue, cache, Journal { is_kept: args.journal }),
            faults: Mutex::new(Faults::new(args.faults.clone())),
            stats: Stats::default(),
        }
    }

    /// The name under which the engine answers a request for `asked`.
    fn answers_as(&self, asked: Option<&str>) -> Result<String, Refusal> {
        let name = match self.engine {
            // An alias, or nothing at all, is answered under the one name it has.
            Engine::LlamaCpp => return Ok(self.own_model().to_owned()),
            Engine::Vllm if asked.is_none() => return Ok(self.own_model().to_owned()),
            // Nobody looks at the name, it is only repeated.
            Engine::Sglang => return Ok(asked.unwrap_or(self.own_model()).to_owned()),
            _ => asked.unwrap_or_default(),
        };
        let untagged = |name: &str| name.trim_end_matches(":latest").to_owned();
        let serves = |model: &String| match self.engine {
            Engine::Ollama => untagged(model) == untagged(name),
            _ => model == name,
        };
        match self.models.iter().any(serves) {
            true if self.engine == Engine::Vllm => Ok(self.own_model().to_owned()),
            true => Ok(name.to_owned()),
            false => Err(Refusal::NoModel(name.to_owned())),
        }
    }

    /// The name the engine calls its (first) model by.
    fn own_model(&self) -> &str {
        self.models.first().map_or("simulated-model", String::as_str)
    }
}

/// Locks, also after a thread panicked while holding it: counts may then be off by one, which a test would see.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn simulation(line: &str) -> Simulation {
        Simulation::new(&Line::parse_from(["x"].into_iter().chain(line.split(' '))).args)
    }

    #[test]
    fn each_engine_answers_under_its_own_idea_of_a_name() {
        let named = |engine: &str, asked| {
            simulation(&format!("--engine {engine} --model a:1 --model b")).answers_as(asked).ok()
        };
        assert_eq!(named("vllm", Some("b")).as_deref(), Some("a:1"));
        assert_eq!(named("vllm", Some("c")), None);
        assert_eq!(named("llama-cpp", Some("c")).as_deref(), Some("a:1"));
        assert_eq!(named("sglang", Some("c")).as_deref(), Some("c"));
        assert_eq!(named("ollama", Some("b:latest")).as_deref(), Some("b:latest"));
        assert_eq!(named("ollama", Some("a")), None);
        assert_eq!(named("openai", Some("b")).as_deref(), Some("b"));
    }

    #[test]
    fn the_command_line_means_what_it_says() {
        let simulation = simulation("--text-only --name gpu-a --slots 2 --first-token 1s --fault hang,count=2");
        assert!(!simulation.vision);
        assert_eq!((simulation.label.as_str(), simulation.pace.first_token), ("gpu-a", Duration::from_secs(1)));
        assert_eq!(simulation.slots.load().kv_tokens, 8192);
        assert!(hold(&simulation.faults).take(fault::Target::Generation).is_some());
    }
}
