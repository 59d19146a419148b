//! What an engine says of itself when it is asked: health, models, load. One file an engine.
//!
//! Numbers are read from the slots at that moment and are true; that they can still mislead (vLLM's `/load` is 0
//! unless a flag is set) is the engine's own doing and is kept.

mod llama_cpp;
mod ollama;
mod sglang;
mod vllm;

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::{Value, json};

use super::Simulation;
use super::body::Body;
use super::engine::Engine;
use super::fault::BadMetrics;
use super::refusal::Refusal;
use super::routes::Poll;
use super::whole::Whole;

/// A question: the path and query of the request, and its body where there is one.
pub(super) struct Question<'a> {
    pub poll: Poll,
    pub path: &'a str,
    pub query: &'a str,
    pub body: &'a [u8],
}

/// The engine's answer.
pub(super) fn answer(simulation: &Simulation, question: &Question<'_>) -> Whole {
    let json = |value: &Value| Whole::json(simulation, question.path, value);
    match question.poll {
        Poll::Health if simulation.engine == Engine::LlamaCpp => json(&json!({"status": "ok"})),
        Poll::Health => Whole::empty(200),
        Poll::Root => Whole::text("text/plain; charset=utf-8", "Ollama is running"),
        Poll::Version => {
            json(&json!({"version": if simulation.engine == Engine::Ollama { "0.31.1" } else { "0.32.0" }}))
        }
        Poll::Models => json(&models(simulation)),
        Poll::OneModel => one_model(simulation, question.path),
        Poll::ModelInfo => json(&sglang::model_info(simulation)),
        Poll::Metrics => metrics(simulation),
        Poll::ServerLoad => json(&json!({"server_load": 0})),
        Poll::Loads => json(&sglang::loads(simulation)),
        Poll::Slots => llama_cpp::slots(simulation, question),
        Poll::Props => json(&llama_cpp::props(simulation)),
        Poll::Tags => json(&ollama::tags(simulation)),
        Poll::Loaded => json(&ollama::loaded(simulation)),
        Poll::Show => ollama::show(simulation, question),
    }
}

/// A load report that is broken this way.
pub(super) fn broken(simulation: &Simulation, question: &Question<'_>, how: BadMetrics) -> hyper::Response<Body> {
    let whole = match how {
        BadMetrics::Html => Whole::text("text/html", "<!doctype html><html><body><h1>It works!</h1></body></html>"),
        BadMetrics::Empty if question.poll == Poll::Metrics => Whole::text(
            "text/plain; version=1.0.0; charset=utf-8",
            "# TYPE python_gc_objects_collected_total counter\n",
        ),
        BadMetrics::Empty => Whole::json(simulation, question.path, &json!({})),
        BadMetrics::Nan => all_numbers(answer(simulation, question), "NaN"),
        BadMetrics::High => all_numbers(answer(simulation, question), "1000"),
        BadMetrics::Zero => all_numbers(answer(simulation, question), "0"),
        BadMetrics::Huge => all_numbers(answer(simulation, question), "1e300"),
        BadMetrics::Endless => {
            let mut response = Whole::text("text/plain; version=1.0.0; charset=utf-8", "").into_response();
            *response.body_mut() = Body::endless(Bytes::from_static(ENDLESS));
            return response;
        }
    };
    whole.into_response()
}

/// A line like any other, so that only a bound on the whole stops a reader.
const ENDLESS: &[u8] = b"vllm:num_requests_running{engine=\"0\",model_name=\"simulated\"} 0.0\n";

/// Every number replaced: in a text report those behind a space, in JSON those behind a colon.
fn all_numbers(whole: Whole, instead: &str) -> Whole {
    let text = String::from_utf8_lossy(&whole.body);
    let mut broken = String::with_capacity(text.len());
    let mut previous = ' ';
    let mut skipping = false;
    for character in text.chars() {
        let numeric = character.is_ascii_digit() || character == '.';
        if !skipping && numeric && (previous == ':' || previous == ' ') {
            broken.push_str(instead);
            skipping = true;
        }
        skipping = skipping && numeric;
        if !skipping {
            broken.push(character);
        }
        previous = character;
    }
    Whole { body: broken.into(), ..whole }
}

fn metrics(simulation: &Simulation) -> Whole {
    match simulation.engine {
        Engine::LlamaCpp => Whole::text("text/plain; version=0.0.4", llama_cpp::metrics(simulation)),
        Engine::Sglang => Whole::text("text/plain; version=0.0.4; charset=utf-8", sglang::metrics(simulation)),
        _ => Whole::text("text/plain; version=1.0.0; charset=utf-8", vllm::metrics(simulation)),
    }
}

fn models(simulation: &Simulation) -> Value {
    match simulation.engine {
        Engine::Vllm => vllm::models(simulation),
        Engine::LlamaCpp => llama_cpp::models(simulation),
        Engine::Sglang | Engine::Ollama | Engine::OpenAi => {
            let list: Vec<_> = simulation.models.iter().map(|name| model(simulation, name)).collect();
            json!({"object": "list", "data": list})
        }
    }
}

fn one_model(simulation: &Simulation, path: &str) -> Whole {
    let asked = path.trim_start_matches("/v1/models/").replace("%2F", "/").replace("%3A", ":");
    match simulation.models.iter().find(|name| **name == asked) {
        Some(name) => Whole::json(simulation, path, &model(simulation, name)),
        None => Whole::refused(simulation, path, &simulation.models, &Refusal::NoModel(asked)),
    }
}

fn model(simulation: &Simulation, name: &str) -> Value {
    match simulation.engine {
        Engine::Sglang => json!({"id": name, "object": "model", "created": simulation.born, "owned_by": "sglang",
            "root": name, "parent": null, "max_model_len": CONTEXT_TOKENS}),
        Engine::Ollama => json!({"id": name, "object": "model", "created": simulation.born, "owned_by": "library"}),
        _ => json!({"id": name, "object": "model", "created": simulation.born, "owned_by": "simulated"}),
    }
}

/// The context every simulated model claims.
const CONTEXT_TOKENS: u64 = 131_072;

/// A report in Prometheus' text format.
struct Report {
    text: String,
    /// In front of every name.
    prefix: &'static str,
    /// The labels of most samples; may be none.
    labels: String,
}

impl Report {
    fn new(prefix: &'static str, labels: String) -> Self {
        Self { text: String::new(), prefix, labels }
    }

    /// One family of one sample.
    fn sample(&mut self, kind: &str, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(kind, name, help);
        let labels = self.labels.clone();
        self.line(name, &labels, value);
    }

    fn head(&mut self, kind: &str, name: &str, help: &str) {
        let full = format!("{}{name}", self.prefix);
        // Writing to a String cannot fail.
        let _ = write!(self.text, "# HELP {full} {help}\n# TYPE {full} {kind}\n");
    }

    /// One sample with these labels and no others.
    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.text, "{}{name}{braces} {value}", self.prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_nan_in_both_formats() {
        let whole = |text: &'static str| all_numbers(Whole::text("", text), "NaN").body;
        assert_eq!(whole("a{e=\"0\"} 4.0\nb 12\n"), "a{e=\"0\"} NaN\nb NaN\n");
        assert_eq!(whole("{\"a\":4,\"b\":0.25}"), "{\"a\":NaN,\"b\":NaN}");
    }

    #[test]
    fn a_family_has_its_head_and_samples_their_labels() {
        let mut report = Report::new("x:", "m=\"a\"".to_owned());
        report.sample("gauge", "n", "Help.", 1);
        report.line("n", "r=\"b\"", 2);
        report.line("n", "", 3);
        assert_eq!(report.text, "# HELP x:n Help.\n# TYPE x:n gauge\nx:n{m=\"a\"} 1\nx:n{r=\"b\"} 2\nx:n 3\n");
    }
}
