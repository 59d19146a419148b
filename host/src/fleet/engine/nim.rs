//! NVIDIA NIM: `/v1/health/ready`, the list of models, and the load among the metrics of `/v1/metrics`.
//!
//! The metrics are vLLM's without their prefix. Since 2.0 a NIM is a proxy before a vLLM or SGLang, whose names and whose
//! signed list come through as they are, while every other path of theirs, `/metrics` and `/health` included, is not
//! found: read as that engine, it would have no load. A NIM for vision models had its metrics under `/metrics` at first.

use super::{Answer, Health, METRICS, Question, Report, openai, prometheus, sglang, vllm};

/// Where it describes itself.
pub(super) const METADATA: &str = "/v1/metadata";

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: "/v1/health/ready", wanted: |_| true, read: |answer, report| report.health = Health::of(answer) },
    Question { path: openai::MODELS, wanted: Report::may_serve, read: read_models },
    Question { path: "/v1/metrics", wanted: Report::may_serve, read: read_load },
    Question { path: METRICS, wanted: |report| report.may_serve() && has_no_load(report), read: read_load },
];

pub(super) const NO_LOAD: &str = "the engine inside it publishes no metrics";

/// What it says of itself; no other server has two of these.
const METADATA_KEYS: [&str; 4] = ["assetInfo", "licenseInfo", "modelInfo", "selectedModelProfileId"];

/// Whether this is how it describes itself.
pub(super) fn describes_itself(answer: &Answer<'_>) -> bool {
    let metadata = answer.json().unwrap_or_default();
    METADATA_KEYS.iter().filter(|key| !metadata[**key].is_null()).count() >= 2
}

fn has_no_load(report: &Report) -> bool {
    report.running.is_none() && report.waiting.is_none()
}

fn read_models(answer: &Answer<'_>, report: &mut Report) {
    report.models = openai::loaded_models(answer);
}

fn read_load(answer: &Answer<'_>, report: &mut Report) {
    report.limit = prometheus::sum(answer, "num_request_max").filter(|limit| *limit > 0).or(report.limit);
    report.running = prometheus::sum(answer, "num_requests_running");
    report.waiting = prometheus::sum(answer, "num_requests_waiting");
    report.kv_cache_used = prometheus::largest_fraction(answer, "gpu_cache_usage_perc");
    for read in [vllm::read_load, sglang::read_metrics] {
        if has_no_load(report) {
            read(answer, report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::{ask, natives, odd_answers};

    const MODELS: &[u8] = include_bytes!("golden/nim_models.json");
    const METADATA_ANSWER: &[u8] = include_bytes!("golden/nim_metadata.json");
    const LOAD: &[u8] = include_bytes!("golden/nim_metrics.txt");
    const VLLM_LOAD: &[u8] = include_bytes!("golden/vllm_metrics_full.txt");
    const SGLANG_LOAD: &[u8] = include_bytes!("golden/sglang_metrics.txt");
    const READY: &[u8] = br#"{"object":"health.response","message":"Service is ready."}"#;

    #[test]
    fn reads_a_true_nim() {
        let report = ask(
            Engine::Nim,
            &[
                ("/v1/health/ready", 200, READY),
                ("/v1/models", 200, MODELS),
                ("/v1/metrics", 200, LOAD),
                ("/metrics", 200, b"num_requests_running 99\n"),
            ],
        );
        assert_eq!(report.health, Health::Ready);
        assert_eq!((report.running, report.waiting, report.limit), (Some(5), Some(1), Some(2_048)));
        assert_eq!(report.kv_cache_used, Some(0.25));
        assert_eq!(natives(&report), ["meta/llama-3.1-8b-instruct"]);
        assert_eq!(report.models.unwrap()[0].details["max_model_len"], 131_072);
    }

    #[test]
    fn reads_the_engine_inside() {
        let with = |load| ask(Engine::Nim, &[("/v1/health/ready", 200, READY), ("/v1/metrics", 200, load)]);
        let vllm = with(VLLM_LOAD);
        assert_eq!((vllm.running, vllm.waiting, vllm.limit), (Some(4), Some(2), None));
        let sglang = with(SGLANG_LOAD);
        assert_eq!((sglang.running, sglang.waiting, sglang.kv_cache_used), (Some(7), Some(3), Some(0.28)));
        let both = [b"num_request_max{model_name=\"m\"} 1024.0\n", VLLM_LOAD].concat();
        assert_eq!((with(&both).running, with(&both).limit), (Some(4), Some(1_024)));
    }

    #[test]
    fn reads_the_metrics_of_before() {
        let report = ask(Engine::Nim, &[("/v1/metrics", 404, b"Not Found"), ("/metrics", 200, LOAD)]);
        assert_eq!((report.running, report.waiting, report.limit), (Some(5), Some(1), Some(2_048)));
    }

    #[test]
    fn a_loading_nim_is_not_ready() {
        let report = ask(Engine::Nim, &[("/v1/health/ready", 503, b""), ("/v1/models", 200, MODELS)]);
        assert_eq!(report, Report { health: Health::NotReady("answered 503".into()), ..Report::default() });
    }

    #[test]
    fn knows_its_own_description() {
        assert!(describes_itself(&Answer { status: 200, body: METADATA_ANSWER }));
        for (status, body) in [
            (404, METADATA_ANSWER),
            (200, MODELS),
            (200, br#"{"modelInfo":[]}"#.as_slice()),
            (200, br#"{"modelInfo":null,"licenseInfo":null}"#),
            (200, b"[]"),
            (200, b""),
        ] {
            assert!(!describes_itself(&Answer { status, body }), "{status} {body:?}");
        }
    }

    #[test]
    fn odd_numbers_are_unknown() {
        let names = ["num_requests_running", "num_requests_waiting", "num_request_max", "gpu_cache_usage_perc"];
        for body in odd_answers(&names) {
            let report = ask(Engine::Nim, &[("/v1/metrics", 200, body.as_bytes())]);
            assert_eq!(report, Report::default(), "{body:?}");
        }
        assert_eq!(ask(Engine::Nim, &[("/v1/metrics", 200, b"num_request_max 0\n")]), Report::default());
    }
}
