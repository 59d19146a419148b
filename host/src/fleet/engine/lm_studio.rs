//! LM Studio: the list of models of its OpenAI API, and what its own list adds: which are loaded, which see, and how many
//! requests those that are loaded take at once. It reports no load and has no page for health.
//!
//! It answers a path that it does not know with 200 and an error in JSON. So nothing is taken for granted because the
//! status is good: an answer without a list is no list. Its own list names what is on the disk, the other one what may be
//! asked for, which is less where models are not loaded on demand. Its own list was another one before 0.4, which is
//! still there, and asked for where the new one is not.

use std::collections::BTreeMap;

use serde_json::Value;

use super::served::{self, ServedModel};
use super::{Answer, Health, Question, Report, openai, plausible};

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: openai::MODELS, wanted: |_| true, read: read_models },
    Question { path: "/api/v1/models", wanted: Report::may_serve, read: read_details },
    Question {
        path: "/api/v0/models",
        wanted: |report| report.may_serve() && lacks_details(report),
        read: read_details_of_before,
    },
];

/// What signs its list of models.
pub(super) const OWNER: &str = "organization_owner";

fn read_models(answer: &Answer<'_>, report: &mut Report) {
    report.health = Health::of(answer);
    report.models = openai::models(answer, |entry| openai::model(entry).into_iter().collect());
}

fn lacks_details(report: &Report) -> bool {
    report.models.iter().flatten().all(|model| model.loaded.is_none())
}

fn read_details(answer: &Answer<'_>, report: &mut Report) {
    let own = answer.json().unwrap_or_default();
    describe_all(report, &own["models"], names, describe);
    report.limit = limit(&own["models"]);
}

fn read_details_of_before(answer: &Answer<'_>, report: &mut Report) {
    let own = answer.json().unwrap_or_default();
    describe_all(report, &own["data"], |entry| vec![&entry["id"]], describe_as_before);
}

/// Says of each model that may be asked for what its own list says of it. Where only that is known, those are the models,
/// each by the first of its names.
fn describe_all(
    report: &mut Report,
    own: &Value,
    names: fn(&Value) -> Vec<&Value>,
    describe: fn(&mut ServedModel, &Value),
) {
    let Some(entries) = own.as_array() else { return };
    let Some(models) = &mut report.models else {
        let own_model = |entry: &Value| {
            let mut model = ServedModel::named(names(entry).first()?)?;
            describe(&mut model, entry);
            Some(model)
        };
        report.models = served::read_list(own, |entry| own_model(entry).into_iter().collect());
        return;
    };
    let named = |entry| names(entry).into_iter().filter_map(Value::as_str).map(move |name| (name, entry));
    let by_name: BTreeMap<&str, &Value> = entries.iter().flat_map(named).collect();
    for model in models {
        if let Some(entry) = by_name.get(model.native.as_str()) {
            describe(model, entry);
        }
    }
}

/// A model's own, and those under which it was loaded.
fn names(entry: &Value) -> Vec<&Value> {
    let of_instances = entry["loaded_instances"].as_array().into_iter().flatten().map(|instance| &instance["id"]);
    std::iter::once(&entry["key"]).chain(of_instances).collect()
}

fn describe(model: &mut ServedModel, entry: &Value) {
    let instances = entry["loaded_instances"].as_array();
    model.loaded = instances.map(|instances| !instances.is_empty());
    model.vision = if is_embedding(entry) { Some(false) } else { entry["capabilities"]["vision"].as_bool() };
    model.note_number("max_model_len", &entry["max_context_length"]);
    // Loaded with less than it could take: that is what a request has.
    let lengths = instances.into_iter().flatten().map(|instance| &instance["config"]["context_length"]);
    if let Some(shortest) = lengths.filter(|length| length.is_u64()).min_by_key(|length| length.as_u64()) {
        model.note_number("max_model_len", shortest);
    }
    model.note_text("family", &entry["architecture"]);
    model.note_text("quantization_level", &entry["quantization"]["name"]);
}

fn describe_as_before(model: &mut ServedModel, entry: &Value) {
    model.loaded = match entry["state"].as_str() {
        Some("loaded") => Some(true),
        Some("not-loaded" | "loading") => Some(false),
        _ => None,
    };
    model.vision = entry["type"].as_str().map(|kind| kind == "vlm");
    model.note_number("max_model_len", &entry["max_context_length"]);
    model.note_number("max_model_len", &entry["loaded_context_length"]);
    model.note_text("family", &entry["arch"]);
    model.note_text("quantization_level", &entry["quantization"]);
}

/// What the one that takes the fewest at once takes, of those that are loaded: each has a line of its own. Unknown where
/// one does not say so.
fn limit(own: &Value) -> Option<u32> {
    let models = own.as_array()?.iter().filter(|entry| !is_embedding(entry));
    let instances = models.filter_map(|entry| entry["loaded_instances"].as_array()).flatten();
    let limits: Option<Vec<u32>> =
        instances.map(|instance| plausible::json_limit(&instance["config"]["parallel"])).collect();
    limits?.into_iter().min()
}

fn is_embedding(entry: &Value) -> bool {
    entry["type"] == "embedding"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::{ask, natives, odd_answers};

    const MODELS: &[u8] = include_bytes!("golden/lm_studio_models.json");
    const DETAILS: &[u8] = include_bytes!("golden/lm_studio_details.json");
    const DETAILS_V1: &[u8] = include_bytes!("golden/lm_studio_details_v1.json");
    const MODELS_V1: &[u8] = br#"{"data":[
        {"id":"google/gemma-3-4b","object":"model","owned_by":"organization_owner"},
        {"id":"gemma-3-270m-it-qat","object":"model","owned_by":"organization_owner"},
        {"id":"text-embedding-nomic-embed-text-v1.5-embedding","object":"model","owned_by":"organization_owner"}
    ],"object":"list"}"#;
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

    #[test]
    fn reads_how_many_a_loaded_model_takes_at_once() {
        let pages: crate::fleet::engine::tests::Answers<'_> = &[
            ("/v1/models", 200, MODELS_V1),
            ("/api/v1/models", 200, DETAILS_V1),
            ("/api/v0/models", 200, br#"{"data":[{"id":"google/gemma-3-4b","state":"not-loaded","type":"llm"}]}"#),
        ];
        let expected = [
            ("google/gemma-3-4b", Some(true), Some(true)),
            ("gemma-3-270m-it-qat", Some(false), Some(false)),
            ("text-embedding-nomic-embed-text-v1.5-embedding", Some(true), Some(false)),
        ];
        let report = ask(Engine::LmStudio, pages);
        assert_eq!((report.running, report.waiting, report.limit), (None, None, Some(4)));
        assert_eq!(seen(&report), expected);
        let details = json!({"owned_by": "organization_owner", "max_model_len": 8192, "family": "gemma3", "quantization_level": "Q4_K_M"});
        assert_eq!(Value::Object(report.models.unwrap().swap_remove(0).details), details);
        assert_eq!(seen(&ask(Engine::LmStudio, &pages[1..])), expected, "without the other list");
    }

    #[test]
    fn the_model_that_takes_the_fewest_tells_the_limit() {
        let with = |entries: &str| {
            let body = format!(r#"{{"models":[{entries}]}}"#);
            ask(Engine::LmStudio, &[("/v1/models", 200, MODELS_V1), ("/api/v1/models", 200, body.as_bytes())])
        };
        let model = |key: &str, config: &str| {
            format!(r#"{{"type":"llm","key":"{key}","loaded_instances":[{{"id":"mine","config":{{{config}}}}}]}}"#)
        };
        let limit = |configs: [&str; 2]| with(&configs.map(|config| model("a", config)).join(",")).limit;
        assert_eq!(limit([r#""parallel":4"#, r#""parallel":2"#]), Some(2));
        for silent in ["", r#""parallel":0"#, r#""parallel":-1"#, r#""parallel":1e300"#, r#""parallel":"4""#] {
            assert_eq!(limit([r#""parallel":4"#, silent]), None, "{silent}");
        }
        assert_eq!(with("").limit, None);
        let renamed = with(&model("a", r#""context_length":64"#).replace("mine", "gemma-3-270m-it-qat"));
        assert_eq!(seen(&renamed)[1], ("gemma-3-270m-it-qat", Some(true), None));
        assert_eq!(renamed.models.unwrap()[1].details["max_model_len"], 64);
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
        let report = ask(
            Engine::LmStudio,
            &[
                ("/v1/models", 200, MODELS),
                ("/api/v1/models", 200, UNKNOWN_PATH),
                ("/api/v0/models", 200, UNKNOWN_PATH),
            ],
        );
        assert_eq!((natives(&report).len(), seen(&report)[0]), (3, ("qwen2-vl-7b-instruct", None, None)));
        let report = ask(
            Engine::LmStudio,
            &[
                ("/v1/models", 200, UNKNOWN_PATH),
                ("/api/v1/models", 200, UNKNOWN_PATH),
                ("/api/v0/models", 200, DETAILS),
            ],
        );
        assert_eq!((natives(&report).len(), seen(&report)[0]), (3, ("qwen2-vl-7b-instruct", Some(true), Some(true))));
        let paths = ["/v1/models", "/api/v1/models", "/api/v0/models"];
        let report = ask(Engine::LmStudio, &paths.map(|path| (path, 200, UNKNOWN_PATH)));
        assert_eq!(report, Report { health: Health::Ready, ..Report::default() });
    }

    #[test]
    fn odd_answers_are_unknown() {
        for body in odd_answers(&["state"]) {
            let paths = ["/v1/models", "/api/v1/models", "/api/v0/models"];
            let report = ask(Engine::LmStudio, &paths.map(|path| (path, 200, body.as_bytes())));
            assert_eq!(report, Report { health: Health::Ready, ..Report::default() }, "{body:?}");
        }
        let odd = br#"{"data":[{"id":"a","state":"new","type":3,"max_context_length":-1},{"id":7}]}"#;
        let report = ask(Engine::LmStudio, &[("/api/v0/models", 200, odd)]);
        assert_eq!(seen(&report), [("a", None, None)]);
        assert!(report.models.unwrap()[0].details.is_empty());
    }
}
