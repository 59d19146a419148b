//! LM Studio: the list of models of its OpenAI API, and what its own list adds: which are loaded, which see. It reports
//! no load and has no page for health.
//!
//! It answers a path that it does not know with 200 and an error in JSON. So nothing is taken for granted because the
//! status is good: an answer without a list is no list. Its own list names what is on the disk, the other one what may be
//! asked for, which is less where models are not loaded on demand.

use std::collections::BTreeMap;

use serde_json::Value;

use super::served::{self, ServedModel};
use super::{Answer, Health, Question, Report, openai};

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: openai::MODELS, wanted: |_| true, read: read_models },
    Question { path: "/api/v0/models", wanted: Report::may_serve, read: read_details },
];

/// What signs its list of models.
pub(super) const OWNER: &str = "organization_owner";

fn read_models(answer: &Answer<'_>, report: &mut Report) {
    report.health = Health::of(answer);
    report.models = openai::models(answer, |entry| openai::model(entry).into_iter().collect());
}

fn read_details(answer: &Answer<'_>, report: &mut Report) {
    let own = answer.json().unwrap_or_default();
    let Some(entries) = own["data"].as_array() else { return };
    match &mut report.models {
        Some(models) => {
            let by_name: BTreeMap<&str, &Value> =
                entries.iter().filter_map(|entry| Some((entry["id"].as_str()?, entry))).collect();
            for model in models {
                if let Some(entry) = by_name.get(model.native.as_str()) {
                    describe(model, entry);
                }
            }
        }
        none => *none = served::read_list(&own["data"], |entry| own_model(entry).into_iter().collect()),
    }
}

fn own_model(entry: &Value) -> Option<ServedModel> {
    let mut model = ServedModel::named(&entry["id"])?;
    describe(&mut model, entry);
    Some(model)
}

fn describe(model: &mut ServedModel, entry: &Value) {
    model.loaded = match entry["state"].as_str() {
        Some("loaded") => Some(true),
        Some("not-loaded" | "loading") => Some(false),
        _ => None,
    };
    model.vision = entry["type"].as_str().map(|kind| kind == "vlm");
    model.note_number("max_model_len", &entry["max_context_length"]);
    // Loaded with less than it could take: that is what a request has.
    model.note_number("max_model_len", &entry["loaded_context_length"]);
    model.note_text("family", &entry["arch"]);
    model.note_text("quantization_level", &entry["quantization"]);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::{ask, natives, odd_answers};

    const MODELS: &[u8] = include_bytes!("golden/lm_studio_models.json");
    const DETAILS: &[u8] = include_bytes!("golden/lm_studio_details.json");
    const UNKNOWN_PATH: &[u8] = br#"{"error":"Unexpected endpoint or method. (GET /v1/models)"}"#;

    fn seen(report: &Report) -> Vec<(&str, Option<bool>, Option<bool>)> {
        report.models.iter().flatten().map(|model| (model.native.as_str(), model.loaded, model.vision)).collect()
    }

    #[test]
    fn reads_what_may_be_asked_for_and_what_is_loaded() {
        let report = ask(Engine::LmStudio, &[("/v1/models", 200, MODELS), ("/api/v0/models", 200, DETAILS)]);
        assert_eq!(report.health, Health::Ready);
        assert_eq!((report.running, report.waiting, report.limit, report.kv_cache_used), (None, None, None, None));
        let expected = [
            ("qwen2-vl-7b-instruct", Some(true), Some(true)),
            ("meta-llama-3.1-8b-instruct", Some(false), Some(false)),
            ("text-embedding-nomic-embed-text-v1.5", Some(false), Some(false)),
        ];
        assert_eq!(seen(&report), expected);
        let details = json!({"owned_by": "organization_owner", "max_model_len": 8192, "family": "qwen2_vl", "quantization_level": "4bit"});
        assert_eq!(Value::Object(report.models.unwrap().swap_remove(0).details), details);
    }

    /// A list that names less than the disk holds: the rest cannot be asked for.
    #[test]
    fn what_is_only_on_the_disk_is_not_served() {
        let one = br#"{"data":[{"id":"meta-llama-3.1-8b-instruct","object":"model","owned_by":"organization_owner"}]}"#;
        let report = ask(Engine::LmStudio, &[("/v1/models", 200, one), ("/api/v0/models", 200, DETAILS)]);
        assert_eq!(natives(&report), ["meta-llama-3.1-8b-instruct"]);
    }

    #[test]
    fn a_good_status_is_no_list() {
        let report = ask(Engine::LmStudio, &[("/v1/models", 200, MODELS), ("/api/v0/models", 200, UNKNOWN_PATH)]);
        assert_eq!((natives(&report).len(), seen(&report)[0]), (3, ("qwen2-vl-7b-instruct", None, None)));
        let report = ask(Engine::LmStudio, &[("/v1/models", 200, UNKNOWN_PATH), ("/api/v0/models", 200, DETAILS)]);
        assert_eq!((natives(&report).len(), seen(&report)[0]), (3, ("qwen2-vl-7b-instruct", Some(true), Some(true))));
        let report = ask(Engine::LmStudio, &[("/v1/models", 200, UNKNOWN_PATH), ("/api/v0/models", 200, UNKNOWN_PATH)]);
        assert_eq!(report, Report { health: Health::Ready, ..Report::default() });
    }

    #[test]
    fn odd_answers_are_unknown() {
        for body in odd_answers(&["state"]) {
            let report = ask(
                Engine::LmStudio,
                &[("/v1/models", 200, body.as_bytes()), ("/api/v0/models", 200, body.as_bytes())],
            );
            assert_eq!(report, Report { health: Health::Ready, ..Report::default() }, "{body:?}");
        }
        let odd = br#"{"data":[{"id":"a","state":"new","type":3,"max_context_length":-1},{"id":7}]}"#;
        let report = ask(Engine::LmStudio, &[("/api/v0/models", 200, odd)]);
        assert_eq!(seen(&report), [("a", None, None)]);
        assert!(report.models.unwrap()[0].details.is_empty());
    }
}
