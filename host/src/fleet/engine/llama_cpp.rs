//! llama.cpp's server: health, models with their aliases, slots, and what waits for one.
//!
//! Measured: while it loads, every path answers 503. `/slots` wakes a server that sleeps (`--sleep-idle-seconds`) and,
//! asked regularly, never lets it fall asleep; `/health`, `/v1/models`, `/props` and `/metrics` do neither. So slots
//! are asked for only where metrics are off, and never of a sleeper.
//!
//! A router (several models, a process each) has no load of its own: it answers these paths with 400, and with that of one
//! model where a query names it, which loads the model unless the query forbids it ("Routing requests" in its README). Its
//! models share one GPU, so that it takes no more at once than the one with the fewest slots: none is over-filled, whichever
//! is asked for.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::served::ServedModel;
use super::{Answer, Health, METRICS, Question, Report, openai, plausible, prometheus};

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: "/health", wanted: |_| true, read: |answer, report| report.health = Health::of(answer) },
    Question { path: openai::MODELS, wanted: Report::may_serve, read: read_models },
    Question { path: "/props", wanted: Report::may_serve, read: read_props },
    Question { path: METRICS, wanted: lacks_load, read: read_metrics },
    Question { path: "/slots", wanted: lacks_load, read: read_slots },
];

/// What a router is asked of each model: properties, metrics, slots.
pub(super) const OF_EACH_MODEL: &[Question] = QUESTIONS.split_at(2).1;

pub(super) const NO_LOAD: &str = "it runs with --no-slots and without --metrics, or is a router with very many models";

/// A router with more models loaded is not asked for the load of any: they would take the time of all other questions.
const MOST_ROUTED: usize = 16;

fn lacks_load(report: &Report) -> bool {
    report.may_serve() && report.running.is_none() && report.routed.is_none()
}

/// Whether this is how a llama.cpp that still loads answers any question.
pub(super) fn is_loading(answer: &Answer<'_>) -> bool {
    let body: Value = serde_json::from_slice(answer.body).unwrap_or_default();
    body["error"]["message"] == "Loading model" && body["error"]["type"] == "unavailable_error"
}

fn read_models(answer: &Answer<'_>, report: &mut Report) {
    report.models =
        openai::models(answer, |entry| openai::model(entry).map_or_else(Vec::new, |model| names(model, entry)));
}

/// A model under its name and its aliases, which it answers to alike.
fn names(mut model: ServedModel, entry: &Value) -> Vec<ServedModel> {
    model.loaded = is_loaded(&entry["status"]);
    model.note_number("max_model_len", &entry["meta"]["n_ctx"]);
    let aliases = entry["aliases"].as_array().map(Vec::as_slice).unwrap_or_default();
    let aliases: Vec<_> = aliases.iter().filter_map(|alias| model.also_named(alias.as_str()?)).collect();
    std::iter::once(model).chain(aliases).collect()
}

/// A router says of each model how far it is; a server with one model has it loaded, or would not list it.
fn is_loaded(status: &Value) -> Option<bool> {
    if status.is_null() {
        return Some(true);
    }
    match status["value"].as_str()? {
        "loaded" => Some(true),
        "unloaded" | "loading" | "sleeping" | "downloading" => Some(false),
        _ => None,
    }
}

fn read_props(answer: &Answer<'_>, report: &mut Report) {
    let props = answer.json().unwrap_or_default();
    if props["role"] == "router" {
        report.routed = loaded_models(report);
        return;
    }
    report.limit = plausible::json_limit(&props["total_slots"]);
    let asleep = props["is_sleeping"] == true;
    if asleep {
        // It falls asleep only when nothing runs and nothing waits.
        (report.running, report.waiting) = (Some(0), Some(0));
    }
    for model in report.models.iter_mut().flatten() {
        model.vision = model.vision.or(props["modalities"]["vision"].as_bool());
        model.loaded = model.loaded.map(|loaded| loaded && !asleep);
    }
}

/// The queries by which a router tells of the models that it has loaded; `None` where nobody knows which.
fn loaded_models(report: &Report) -> Option<Vec<String>> {
    let models = report.models.as_ref()?.iter().filter(|model| !model.alias && model.loaded == Some(true));
    let query =
        |model: &ServedModel| format!("?model={}&autoload=false", utf8_percent_encode(&model.native, NON_ALPHANUMERIC));
    let queries: Vec<_> = models.map(query).collect();
    (queries.len() <= MOST_ROUTED).then_some(queries)
}

fn read_metrics(answer: &Answer<'_>, report: &mut Report) {
    report.running = prometheus::sum(answer, "llamacpp:requests_processing");
    report.waiting = prometheus::sum(answer, "llamacpp:requests_deferred");
}

fn read_slots(answer: &Answer<'_>, report: &mut Report) {
    let slots = answer.json().unwrap_or_default();
    let slots = slots.as_array().map(Vec::as_slice).unwrap_or_default();
    report.running = plausible::total(slots.iter().map(|slot| slot["is_processing"].as_bool().map(u32::from)));
    if report.running.is_some() {
        report.limit = u32::try_from(slots.len()).ok();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::{ask, natives};

    const MODELS: &[u8] = include_bytes!("golden/llama_models.json");
    const VISION: &[u8] = include_bytes!("golden/llama_models_vision.json");
    const ROUTER: &[u8] = include_bytes!("golden/llama_models_router.json");
    const PROPS: &[u8] = include_bytes!("golden/llama_props.json");
    const SLEEPING: &[u8] = include_bytes!("golden/llama_props_sleeping.json");
    const METRICS_FULL: &[u8] = include_bytes!("golden/llama_metrics_full.txt");
    const METRICS_OFF: &[u8] = include_bytes!("golden/llama_metrics_off.json");
    const SLOTS_PART: &[u8] = include_bytes!("golden/llama_slots_2_of_3.json");
    const SLOTS_OFF: &[u8] = include_bytes!("golden/llama_slots_off.json");
    const LOADING: &[u8] = include_bytes!("golden/llama_loading.json");
    const HEALTH: &[u8] = br#"{"status":"ok"}"#;

    fn slots(body: &str) -> Report {
        let mut report = Report::default();
        read_slots(&Answer { status: 200, body: body.as_bytes() }, &mut report);
        report
    }

    /// Five streams at three slots: three run, two wait.
    #[test]
    fn reads_a_full_server_by_its_metrics() {
        let report = ask(
            Engine::LlamaCpp,
            &[
                ("/health", 200, HEALTH),
                ("/v1/models", 200, VISION),
                ("/props", 200, PROPS),
                ("/metrics", 200, METRICS_FULL),
                ("/slots", 200, b"[]"),
            ],
        );
        assert_eq!(report.health, Health::Ready);
        assert_eq!((report.running, report.waiting, report.limit), (Some(3), Some(2), Some(3)));
        assert_eq!(report.kv_cache_used, None);
        assert_eq!(natives(&report), ["qwen-vl", "tiny"]);
        let models = report.models.unwrap();
        assert_eq!((models[0].alias, models[0].loaded, models[0].vision), (false, Some(true), Some(true)));
        assert_eq!((models[1].alias, models[1].loaded, models[1].vision), (true, Some(true), Some(true)));
        assert_eq!(
            (&models[0].details["max_model_len"], &models[0].details["owned_by"]),
            (&22_016.into(), &"llamacpp".into())
        );
    }

    #[test]
    fn reads_slots_where_metrics_are_off() {
        let report = ask(
            Engine::LlamaCpp,
            &[
                ("/health", 200, HEALTH),
                ("/v1/models", 200, MODELS),
                ("/props", 200, PROPS),
                ("/metrics", 501, METRICS_OFF),
                ("/slots", 200, SLOTS_PART),
            ],
        );
        assert_eq!((report.running, report.waiting, report.limit), (Some(2), None, Some(3)));
        let models = report.models.unwrap();
        assert_eq!((models.len(), models[0].native.as_str(), models[0].vision), (1, "llama-tiny", Some(false)));
    }

    #[test]
    fn with_all_switched_off_the_limit_is_left() {
        let answers: &[(&str, u16, &[u8])] = &[
            ("/health", 200, HEALTH),
            ("/props", 200, PROPS),
            ("/metrics", 501, METRICS_OFF),
            ("/slots", 501, SLOTS_OFF),
        ];
        assert_eq!(
            ask(Engine::LlamaCpp, answers),
            Report { health: Health::Ready, limit: Some(3), ..Report::default() }
        );
    }

    #[test]
    fn a_loading_server_is_not_ready_and_known() {
        let report =
            ask(Engine::LlamaCpp, &[("/health", 503, LOADING), ("/v1/models", 503, LOADING), ("/props", 503, LOADING)]);
        assert_eq!(report, Report { health: Health::NotReady("Loading model".into()), ..Report::default() });
        assert!(is_loading(&Answer { status: 503, body: LOADING }));
        assert!(!is_loading(&Answer {
            status: 503,
            body: br#"{"error":{"message":"no slot available","type":"unavailable_error"}}"#
        }));
    }

    #[test]
    fn a_sleeper_is_idle_and_not_woken() {
        let report = ask(
            Engine::LlamaCpp,
            &[
                ("/health", 200, HEALTH),
                ("/v1/models", 200, VISION),
                ("/props", 200, SLEEPING),
                ("/metrics", 501, METRICS_OFF),
                ("/slots", 200, SLOTS_PART),
            ],
        );
        assert_eq!((report.running, report.waiting, report.limit), (Some(0), Some(0), Some(3)));
        assert!(report.models.unwrap().iter().all(|model| model.loaded == Some(false)));
    }

    #[test]
    fn a_router_tells_what_is_loaded() {
        let no_model = br#"{"error":{"code":400,"message":"model name is missing from the request","type":"invalid_request_error"}}"#;
        let report = ask(Engine::LlamaCpp, &[
            ("/health", 200, HEALTH),
            ("/v1/models", 200, ROUTER),
            ("/props", 200, br#"{"role":"router","max_instances":4,"models_autoload":true,"model_alias":"llama-server","model_path":"none"}"#),
            ("/metrics", 400, no_model),
            ("/slots", 400, no_model),
            ("/props?model=ggml%2Dorg%2Fgemma%2D3%2D4b%2Dit%2DGGUF%3AQ4%5FK%5FM&autoload=false", 200, PROPS),
            ("/metrics?model=ggml%2Dorg%2Fgemma%2D3%2D4b%2Dit%2DGGUF%3AQ4%5FK%5FM&autoload=false", 200, METRICS_FULL),
        ]);
        assert_eq!((report.running, report.waiting, report.limit), (Some(3), Some(2), Some(3)));
        let seen: Vec<_> =
            report.models.as_ref().unwrap().iter().map(|m| (m.native.as_str(), m.loaded, m.vision)).collect();
        assert_eq!(
            seen,
            [
                ("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", Some(true), Some(true)),
                ("gemma", Some(true), Some(true)),
                ("qwen3-8b", Some(false), None),
                ("smollm", Some(false), None),
                ("new-state", None, None),
            ]
        );
    }

    /// What a router with these models, all loaded, and their slots is found to be.
    fn router(models: &[(&str, &[u8], u16, &[u8])]) -> Report {
        let entry = |(name, ..): &(&str, _, _, _)| json!({"id": name, "object": "model", "owned_by": "llamacpp", "status": {"value": "loaded"}});
        let list = json!({"data": models.iter().map(entry).collect::<Vec<_>>()}).to_string();
        let of = |path: &str, name: &str| format!("{path}?model={name}&autoload=false");
        let paths: Vec<_> = models.iter().map(|(name, ..)| [of("/props", name), of("/slots", name)]).collect();
        let mut answers: Vec<(&str, u16, &[u8])> = vec![
            ("/health", 200, HEALTH),
            ("/v1/models", 200, list.as_bytes()),
            ("/props", 200, br#"{"role":"router"}"#),
        ];
        for ([props, slots], (_, told, status, told_slots)) in paths.iter().zip(models) {
            answers.extend([(props.as_str(), 200, *told), (slots.as_str(), *status, *told_slots)]);
        }
        ask(Engine::LlamaCpp, &answers)
    }

    #[test]
    fn a_routers_load_is_that_of_all_its_models_and_its_slots_those_of_the_smallest() {
        let two = br#"{"total_slots":2}"#;
        let busy = br#"[{"is_processing":true},{"is_processing":true}]"#;
        let load = |report: &Report| (report.running, report.waiting, report.limit);
        assert_eq!(load(&router(&[])), (Some(0), Some(0), None), "nothing is loaded, so that nothing runs");
        assert_eq!(load(&router(&[("a", PROPS, 200, SLOTS_PART)])), (Some(2), None, Some(3)));
        assert_eq!(load(&router(&[("a", PROPS, 200, SLOTS_PART), ("b", two, 200, busy)])), (Some(4), None, Some(2)));
        let unlisted = ask(Engine::LlamaCpp, &[("/health", 200, HEALTH), ("/props", 200, br#"{"role":"router"}"#)]);
        assert_eq!(load(&unlisted), (None, None, None), "nobody knows what is loaded");
        let half = router(&[("a", PROPS, 200, SLOTS_PART), ("b", two, 501, SLOTS_OFF)]);
        assert_eq!(load(&half), (None, None, Some(2)), "half the load is not the load");
        assert_eq!(load(&router(&[("a", SLEEPING, 200, SLOTS_PART)])), (Some(0), Some(0), Some(3)), "not woken");
        let names: Vec<_> = (0..=MOST_ROUTED).map(|number| format!("m{number}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), PROPS, 200, SLOTS_PART)).collect();
        assert_eq!(load(&router(&many)), (None, None, None));
    }

    #[test]
    fn odd_slots_are_unknown() {
        assert_eq!(
            slots(r#"[{"is_processing":true},{"is_processing":false}]"#),
            Report { running: Some(1), limit: Some(2), ..Report::default() }
        );
        for body in [
            "",
            "[]",
            "{}",
            "<html>",
            r#"[{"id":0,"state":1}]"#,
            r#"[{"is_processing":true},{}]"#,
            r#"[{"is_processing":1}]"#,
            r#"[{"is_proc"#,
        ] {
            assert_eq!(slots(body), Report::default(), "{body:?}");
        }
    }

    #[test]
    fn odd_props_are_unknown() {
        for total in ["0", "-1", "\"4\"", "1e12", "null", "2.5"] {
            let mut report = Report::default();
            read_props(&Answer { status: 200, body: format!(r#"{{"total_slots":{total}}}"#).as_bytes() }, &mut report);
            assert_eq!(report, Report::default(), "{total}");
        }
    }
}
