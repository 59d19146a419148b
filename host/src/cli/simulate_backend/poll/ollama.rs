//! Ollama's lists of models: what it has, what it has loaded, what one of them is. It says nothing of load.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::super::Simulation;
use super::super::refusal::Refusal;
use super::super::whole::Whole;
use super::{CONTEXT_TOKENS, Question};

/// Bytes every simulated model claims.
const SIZE: u64 = 5_137_025_024;
/// Ollama's default for how long an idle model stays loaded.
const STAYS_LOADED: Duration = Duration::from_mins(5);

pub(super) fn tags(simulation: &Simulation) -> Value {
    let modified = rfc3339(UNIX_EPOCH + Duration::from_secs(simulation.born));
    let model = |name: &String| {
        json!({"name": name, "model": name, "modified_at": modified, "size": SIZE, "digest": digest(name),
            "details": details(), "capabilities": capabilities(simulation)})
    };
    json!({"models": simulation.models.iter().map(model).collect::<Vec<_>>()})
}

pub(super) fn loaded(simulation: &Simulation) -> Value {
    let expires = rfc3339(SystemTime::now() + STAYS_LOADED);
    let model = |name: &String| {
        json!({"name": name, "model": name, "size": SIZE, "digest": digest(name), "details": details(),
            "expires_at": expires, "size_vram": SIZE, "context_length": CONTEXT_TOKENS})
    };
    json!({"models": simulation.models.iter().map(model).collect::<Vec<_>>()})
}

pub(super) fn show(simulation: &Simulation, question: &Question<'_>) -> Whole {
    let json: Value = match serde_json::from_slice(question.body) {
        Ok(json) => json,
        Err(error) => {
            return Whole::refused(
                simulation,
                question.path,
                &simulation.models,
                &Refusal::not_json(question.body, &error),
            );
        }
    };
    let asked = json.get("model").or_else(|| json.get("name")).and_then(Value::as_str).unwrap_or_default();
    if let Err(refusal) = simulation.answers_as(Some(asked)) {
        return Whole::refused(simulation, question.path, &simulation.models, &refusal);
    }
    let shown = json!({"modelfile": format!("FROM {asked}"), "parameters": "", "template": "{{ .Prompt }}",
        "details": details(), "model_info": {"general.architecture": "simulated",
        "simulated.context_length": CONTEXT_TOKENS}, "capabilities": capabilities(simulation)});
    Whole::json(simulation, question.path, &shown)
}

fn details() -> Value {
    json!({"parent_model": "", "format": "gguf", "family": "simulated", "families": ["simulated"],
        "parameter_size": "7.2B", "quantization_level": "Q4_0"})
}

fn capabilities(simulation: &Simulation) -> Value {
    if simulation.vision { json!(["completion", "vision"]) } else { json!(["completion"]) }
}

/// Something that looks like the hash of the model and differs from model to model.
fn digest(name: &str) -> String {
    let sum = name.bytes().fold(0x2ae6_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    format!("{sum:064x}")
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
