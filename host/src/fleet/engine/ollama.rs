//! Ollama: which models it has and which of them are loaded. It reports no load at all, so that all of it is unknown.
//!
//! A name without a tag means `latest`, so that `llama3.2:latest` also answers to `llama3.2`. What a model can do stands in
//! the list since 0.30. A model of the cloud is never loaded here, and need not be.

use std::collections::BTreeMap;

use serde_json::Value;

use super::served::{self, ServedModel};
use super::{Answer, Health, Question, Report, openai};

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: "/api/version", wanted: |_| true, read: |answer, report| report.health = Health::of(answer) },
    Question { path: "/api/tags", wanted: Report::may_serve, read: read_models },
    Question { path: "/api/ps", wanted: |report| report.may_serve() && report.models.is_some(), read: read_loaded },
];

/// What is meant where a name has no tag.
const LATEST: &str = ":latest";

fn read_models(answer: &Answer<'_>, report: &mut Report) {
    report.models = models(answer);
}

fn models(answer: &Answer<'_>) -> Option<Vec<ServedModel>> {
    served::read_list(answer.json()?.get("models")?, |entry| model(entry).map_or_else(Vec::new, names))
}

fn model(entry: &Value) -> Option<ServedModel> {
    let mut model = ServedModel::named(&entry["model"]).or_else(|| ServedModel::named(&entry["name"]))?;
    model.vision = openai::takes(&entry["capabilities"], "vision");
    model.loaded = entry["remote_host"].as_str().is_some_and(|host| !host.is_empty()).then_some(true);
    for detail in ["family", "parameter_size", "quantization_level"] {
        model.note_text(detail, &entry["details"][detail]);
    }
    Some(model)
}

/// A model under all its names.
fn names(model: ServedModel) -> Vec<ServedModel> {
    let untagged = model.native.strip_suffix(LATEST).and_then(|name| model.also_named(name));
    std::iter::once(model).chain(untagged).collect()
}

/// Marks what is loaded; what it does not name is not.
fn read_loaded(answer: &Answer<'_>, report: &mut Report) {
    let running = answer.json().unwrap_or_default();
    let Some(running) = running["models"].as_array() else { return };
    let context_of: BTreeMap<&str, &Value> = running.iter().filter_map(name_and_context).collect();
    for model in report.models.iter_mut().flatten().filter(|model| model.loaded.is_none()) {
        let tagged = if model.alias { format!("{}{LATEST}", model.native) } else { model.native.clone() };
        let context = context_of.get(tagged.as_str());
        model.loaded = Some(context.is_some());
        if let Some(context) = context {
            model.note_number("max_model_len", context);
        }
    }
}

fn name_and_context(entry: &Value) -> Option<(&str, &Value)> {
    let name = entry["model"].as_str().or(entry["name"].as_str())?;
    Some((name, &entry["context_length"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::ask;

    const TAGS: &[u8] = include_bytes!("golden/ollama_tags.json");
    const PS: &[u8] = include_bytes!("golden/ollama_ps.json");
    const VERSION: &[u8] = br#"{"version":"0.5.1"}"#;

    #[test]
    fn reads_what_it_has_and_what_is_loaded() {
        let report =
            ask(Engine::Ollama, &[("/api/version", 200, VERSION), ("/api/tags", 200, TAGS), ("/api/ps", 200, PS)]);
        assert_eq!(report.health, Health::Ready);
        assert_eq!((report.running, report.waiting, report.limit, report.kv_cache_used), (None, None, None, None));
        let models = report.models.unwrap();
        let seen: Vec<_> = models.iter().map(|m| (m.native.as_str(), m.alias, m.loaded, m.vision)).collect();
        assert_eq!(
            seen,
            [
                ("qwen2.5vl:7b", false, Some(false), Some(true)),
                ("mistral:latest", false, Some(true), Some(false)),
                ("mistral", true, Some(true), Some(false)),
                ("hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:latest", false, Some(false), None),
                ("hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF", true, Some(false), None),
            ]
        );
        let details =
            json!({"family": "llama", "parameter_size": "7.2B", "quantization_level": "Q4_0", "max_model_len": 4096});
        assert_eq!(Value::Object(models[1].details.clone()), details);
        assert_eq!(models[2].details, models[1].details);
        assert!(!models[0].details.contains_key("max_model_len"));
    }

    #[test]
    fn without_an_answer_nothing_is_said_to_be_unloaded() {
        for ps in [b"".as_slice(), b"<html>", b"{}", br#"{"models":{}}"#] {
            let report =
                ask(Engine::Ollama, &[("/api/version", 200, VERSION), ("/api/tags", 200, TAGS), ("/api/ps", 200, ps)]);
            assert!(report.models.unwrap().iter().all(|model| model.loaded.is_none()), "{ps:?}");
        }
        let report =
            ask(Engine::Ollama, &[("/api/version", 200, VERSION), ("/api/tags", 500, TAGS), ("/api/ps", 200, PS)]);
        assert_eq!(report, Report { health: Health::Ready, ..Report::default() });
        assert!(!(QUESTIONS[2].wanted)(&report), "there is nothing to mark");
    }

    #[test]
    fn a_model_of_the_cloud_needs_no_loading() {
        let tags = br#"{"models":[
            {"name":"gpt-oss:120b-cloud","model":"gpt-oss:120b-cloud","remote_model":"gpt-oss:120b","remote_host":"https://ollama.com:443","size":384,"details":{"format":"","family":"gptoss"},"capabilities":["completion","tools"]},
            {"name":"mistral:7b","model":"mistral:7b","remote_host":"","size":1,"details":{}}
        ]}"#;
        let report = ask(
            Engine::Ollama,
            &[("/api/version", 200, VERSION), ("/api/tags", 200, tags), ("/api/ps", 200, br#"{"models":[]}"#)],
        );
        let loaded: Vec<_> = report.models.unwrap().iter().map(|model| model.loaded).collect();
        assert_eq!(loaded, [Some(true), Some(false)]);
    }

    #[test]
    fn none_loaded_is_known() {
        let report = ask(
            Engine::Ollama,
            &[("/api/version", 200, VERSION), ("/api/tags", 200, TAGS), ("/api/ps", 200, br#"{"models":[]}"#)],
        );
        assert!(report.models.unwrap().iter().all(|model| model.loaded == Some(false)));
        let report = ask(Engine::Ollama, &[("/api/version", 200, VERSION), ("/api/tags", 200, br#"{"models":[]}"#)]);
        assert_eq!(report.models, Some(vec![]));
    }
}
