//! Text Generation Inference: `/health`, `/info` (its one model, and how many requests it admits), and the load among
//! its metrics.
//!
//! Its health check runs on the model, so that it turns red under a full queue: with requests waiting that is busy, not
//! down. A gauge is absent until the first request has set it: unknown. Its cache is as full as the batch at work may
//! make it, for that much is kept for it, and by that it admits the next request.

use serde_json::Value;

use super::served::ServedModel;
use super::{Answer, Health, METRICS, Question, Report, plausible, prometheus};

/// Where it describes itself.
pub(super) const INFO: &str = "/info";

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: "/health", wanted: |_| true, read: |answer, report| report.health = Health::of(answer) },
    Question { path: INFO, wanted: may_be_busy, read: read_info },
    Question { path: METRICS, wanted: may_be_busy, read: read_load },
];

pub(super) const NO_LOAD: &str =
    "it has not served a request yet, or its backend is not the one that has these metrics";

/// What it says where its check failed, whatever the cause.
const UNHEALTHY: &str = "unhealthy";

/// Kinds of models, as the hub calls them, that take images.
const VISION_TASKS: [&str; 3] = ["image-text-to-text", "image-to-text", "visual-question-answering"];

/// Whether this is how it describes itself.
pub(super) fn describes_itself(answer: &Answer<'_>) -> bool {
    answer.json().is_some_and(|info| info["router"] == "text-generation-router")
}

/// Whether this is its list of models: the only one signs itself, and was made at the beginning of time.
pub(super) fn lists_itself(answer: &Answer<'_>) -> bool {
    let list = answer.json().unwrap_or_default();
    let Some([only]) = list["data"].as_array().map(Vec::as_slice) else { return false };
    only["id"].is_string() && only["owned_by"] == only["id"] && only["created"] == 0
}

fn says_unhealthy(report: &Report) -> bool {
    matches!(&report.health, Health::NotReady(why) if why == UNHEALTHY)
}

fn may_be_busy(report: &Report) -> bool {
    report.may_serve() || says_unhealthy(report)
}

fn read_info(answer: &Answer<'_>, report: &mut Report) {
    let info = answer.json().unwrap_or_default();
    report.limit = plausible::json_limit(&info["max_concurrent_requests"]);
    report.models = model(&info).map(|model| vec![model]);
}

fn model(info: &Value) -> Option<ServedModel> {
    let mut model = ServedModel::named(&info["model_id"])?;
    model.loaded = Some(true);
    // Any other task is no proof: a model that sees may be tagged as one that writes.
    model.vision = VISION_TASKS.iter().any(|task| info["model_pipeline_tag"] == *task).then_some(true);
    model.note_number("max_model_len", &info["max_total_tokens"]);
    Some(model)
}

fn read_load(answer: &Answer<'_>, report: &mut Report) {
    report.running = prometheus::sum(answer, "tgi_batch_current_size");
    report.waiting = prometheus::sum(answer, "tgi_queue_size");
    report.kv_cache_used = kv_cache_used(answer);
    if says_unhealthy(report) && report.waiting.is_some_and(|waiting| waiting > 0) {
        report.health = Health::Ready;
    }
}

/// The tokens that the batch may come to have, of as many as fit; which those are it tells since 2.4.
fn kv_cache_used(answer: &Answer<'_>) -> Option<f64> {
    let tokens = |name| prometheus::sum(answer, name).map(f64::from);
    let (of_batch, at_most) = (tokens("tgi_batch_current_max_tokens")?, tokens("tgi_batch_max_total_tokens")?);
    plausible::fraction(of_batch / at_most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::{ask, natives, odd_answers};

    const INFO_ANSWER: &[u8] = include_bytes!("golden/tgi_info.json");
    const MODELS: &[u8] = include_bytes!("golden/tgi_models.json");
    const LOAD: &[u8] = include_bytes!("golden/tgi_metrics.txt");
    const RED: &[u8] = br#"{"error":"unhealthy","error_type":"healthcheck"}"#;

    #[test]
    fn reads_a_true_tgi() {
        let report = ask(Engine::Tgi, &[("/health", 200, b""), ("/info", 200, INFO_ANSWER), ("/metrics", 200, LOAD)]);
        assert_eq!(report.health, Health::Ready);
        assert_eq!((report.running, report.waiting, report.limit), (Some(4), Some(3), Some(128)));
        assert_eq!(report.kv_cache_used, Some(0.25));
        assert_eq!(natives(&report), ["meta-llama/Llama-3.2-11B-Vision-Instruct"]);
        let model = &report.models.unwrap()[0];
        assert_eq!((model.loaded, model.vision), (Some(true), Some(true)));
        assert_eq!(model.details["max_model_len"], 8_192);
    }

    #[test]
    fn red_under_a_queue_is_busy_and_red_without_one_is_down() {
        let busy = ask(Engine::Tgi, &[("/health", 503, RED), ("/info", 200, INFO_ANSWER), ("/metrics", 200, LOAD)]);
        assert_eq!((busy.health, busy.waiting, busy.limit), (Health::Ready, Some(3), Some(128)));
        for metrics in [b"tgi_queue_size 0\n".as_slice(), b"", b"tgi_queue_size NaN\n", b"<html>"] {
            let down = ask(Engine::Tgi, &[("/health", 503, RED), ("/metrics", 200, metrics)]);
            assert_eq!(down.health, Health::NotReady("unhealthy".into()), "{metrics:?}");
        }
    }

    #[test]
    fn before_its_first_request_the_load_is_unknown() {
        let report = ask(Engine::Tgi, &[("/health", 200, b""), ("/info", 200, INFO_ANSWER), ("/metrics", 200, b"")]);
        assert_eq!((report.running, report.waiting, report.limit), (None, None, Some(128)));
    }

    #[test]
    fn a_cache_of_unknown_size_is_not_full() {
        let used = |metrics: &str| ask(Engine::Tgi, &[("/metrics", 200, metrics.as_bytes())]).kv_cache_used;
        let batch = "tgi_batch_current_max_tokens 4096\n";
        for at_most in [
            "",
            "tgi_batch_max_total_tokens 0\n",
            "tgi_batch_max_total_tokens NaN\n",
            "tgi_batch_max_total_tokens 16\n",
        ] {
            assert_eq!(used(&format!("{batch}{at_most}")), None, "{at_most:?}");
        }
        assert_eq!(used("tgi_batch_max_total_tokens 16384\n"), None, "nothing was at work yet");
        assert_eq!(used(&format!("{batch}tgi_batch_max_total_tokens 4096\n")), Some(1.0));
    }

    #[test]
    fn knows_its_own_answers() {
        let ok = |body| Answer { status: 200, body };
        assert!(describes_itself(&ok(INFO_ANSWER)) && !describes_itself(&ok(MODELS)));
        assert!(lists_itself(&ok(MODELS)) && !lists_itself(&ok(INFO_ANSWER)));
        for list in [
            r#"{"data":[{"id":"a","owned_by":"a","created":7}]}"#,
            r#"{"data":[{"id":"a","owned_by":"a","created":0},{"id":"b","owned_by":"b","created":0}]}"#,
            r#"{"data":[{"created":0}]}"#,
        ] {
            assert!(!lists_itself(&ok(list.as_bytes())), "{list}");
        }
    }

    #[test]
    fn odd_numbers_are_unknown() {
        let names =
            ["tgi_batch_current_size", "tgi_queue_size", "tgi_batch_current_max_tokens", "tgi_batch_max_total_tokens"];
        for body in odd_answers(&names) {
            let report = ask(Engine::Tgi, &[("/info", 200, body.as_bytes()), ("/metrics", 200, body.as_bytes())]);
            assert_eq!(report, Report::default(), "{body:?}");
        }
        for limit in ["0", "-1", "1e12", "\"128\"", "null", "2.5"] {
            let info = format!(r#"{{"max_concurrent_requests":{limit}}}"#);
            assert_eq!(ask(Engine::Tgi, &[("/info", 200, info.as_bytes())]), Report::default(), "{limit}");
        }
    }
}
