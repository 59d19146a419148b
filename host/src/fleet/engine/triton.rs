//! Triton, by its OpenAI frontend: readiness, the list of models, and the load among Triton's own metrics, which the
//! frontend shows under `/metrics`.
//!
//! Not `nv_inference_exec_count`, which only ever grows. What waits in Triton's queues and what waits inside the engine
//! behind it are different requests. An engine that batches by itself (vLLM) takes all there are from the queues: that
//! none wait in those says nothing, unless it tells of its own line. Neither readiness page is everywhere: the frontend
//! has `/health/ready`, the KServe API `/v2/health/ready`, and each says "not ready" with 400. The gauges of TensorRT-LLM
//! keep the numbers of the last iteration when nothing runs any more, a request that waited then included. Hence
//! `load_may_be_old`.

use super::prometheus::{Sample, samples, samples_with};
use super::{Answer, Health, METRICS, Question, Report, openai, plausible, reason, vllm};

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: "/health/ready", wanted: |_| true, read: read_frontend_ready },
    Question { path: "/v2/health/ready", wanted: |report| report.health == Health::Unknown, read: read_server_ready },
    Question { path: openai::MODELS, wanted: Report::may_serve, read: read_models },
    Question { path: METRICS, wanted: Report::may_serve, read: read_load },
];

pub(super) const NO_LOAD: &str =
    "its metrics are off or at another port, mostly 8002 (metrics_url), or the engine inside it tells no load";

/// What signs its list of models.
pub(super) const OWNER: &str = "Triton Inference Server";

const PENDING: &str = "nv_inference_pending_request_count";
const TRTLLM_REQUESTS: &str = "nv_trt_llm_request_metrics";
const TRTLLM_CACHE: &str = "nv_trt_llm_kv_cache_block_metrics";

fn read_frontend_ready(answer: &Answer<'_>, report: &mut Report) {
    report.health = match answer.status {
        // The frontend gives its reason; any other 400 is the KServe API, which does not know the path.
        400 if says_why(answer) => Health::NotReady(reason(answer)),
        400..500 => Health::Unknown,
        _ => Health::of(answer),
    };
}

fn says_why(answer: &Answer<'_>) -> bool {
    serde_json::from_slice(answer.body).is_ok_and(|body: serde_json::Value| body["detail"].is_string())
}

fn read_server_ready(answer: &Answer<'_>, report: &mut Report) {
    report.health = if answer.status == 400 { Health::NotReady(reason(answer)) } else { Health::of(answer) };
}

fn read_models(answer: &Answer<'_>, report: &mut Report) {
    report.models = openai::loaded_models(answer);
}

fn read_load(answer: &Answer<'_>, report: &mut Report) {
    let of_trtllm = |kind| count(samples_with(answer, TRTLLM_REQUESTS, "request_type", kind));
    let of_vllm = |name| count(samples(answer, name));
    let cache_of_trtllm = fraction(samples_with(answer, TRTLLM_CACHE, "kv_cache_block_type", "fraction"));
    let cache_of_vllm = vllm::KV_CACHE.iter().find_map(|name| fraction(samples(answer, name)));
    let running = [of_trtllm("scheduled"), of_vllm("vllm:num_requests_running")];
    let inside = [of_trtllm("waiting"), of_vllm("vllm:num_requests_waiting")];
    let is_told = inside.iter().any(Option::is_some);
    let waiting = inside.into_iter().chain([count(samples(answer, PENDING))]).flatten();
    report.load_may_be_old = of_trtllm("scheduled").is_some();
    report.running = plausible::total(running.into_iter().flatten());
    report.waiting = plausible::total(waiting).filter(|some| *some > 0 || is_told);
    report.kv_cache_used = plausible::largest([cache_of_trtllm, cache_of_vllm].into_iter().flatten());
}

/// All samples together; `None` where there are none at all, so that this engine is not the one behind it.
fn count<'a>(samples: impl Iterator<Item = Sample<'a>>) -> Option<Option<u32>> {
    let mut samples = samples.peekable();
    samples.peek().is_some().then(|| plausible::total(samples.map(|sample| sample.count())))
}

/// The largest sample, likewise.
fn fraction<'a>(samples: impl Iterator<Item = Sample<'a>>) -> Option<Option<f64>> {
    let mut samples = samples.peekable();
    samples.peek().is_some().then(|| plausible::largest(samples.map(|sample| sample.fraction())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::{Answers, ask, natives, odd_answers};

    const MODELS: &[u8] = include_bytes!("golden/triton_models.json");
    const LOAD: &[u8] = include_bytes!("golden/triton_metrics.txt");

    fn load(metrics: &str) -> Report {
        ask(Engine::Triton, &[("/metrics", 200, metrics.as_bytes())])
    }

    #[test]
    fn reads_a_true_triton_with_tensorrt_llm() {
        let report =
            ask(Engine::Triton, &[("/health/ready", 200, b""), ("/v1/models", 200, MODELS), ("/metrics", 200, LOAD)]);
        assert_eq!(report.health, Health::Ready);
        assert_eq!((report.running, report.waiting, report.limit), (Some(4), Some(3), None));
        assert_eq!((report.kv_cache_used, report.load_may_be_old), (Some(0.4875), true));
        assert_eq!(natives(&report), ["llama-3.1-8b-instruct"]);
    }

    #[test]
    fn reads_what_waits_before_any_other_engine() {
        let report = load(
            "nv_inference_exec_count{model=\"m\",version=\"1\"} 9000\n\
             nv_inference_pending_request_count{model=\"m\",version=\"1\"} 95\n",
        );
        assert_eq!((report.running, report.waiting, report.load_may_be_old), (None, Some(95), false));
        let vllm = load(
            "nv_inference_pending_request_count{model=\"m\",version=\"1\"} 1\n\
             vllm:num_requests_running{model=\"m\",version=\"1\"} 3\n\
             vllm:num_requests_waiting{model=\"m\",version=\"1\"} 2\n\
             vllm:gpu_cache_usage_perc{model=\"m\",version=\"1\"} 0.5\n",
        );
        assert_eq!((vllm.running, vllm.waiting, vllm.kv_cache_used), (Some(3), Some(3), Some(0.5)));
        assert_eq!(load("vllm:kv_cache_usage_perc{model=\"m\"} 0.25\n").kv_cache_used, Some(0.25));
    }

    /// Its vLLM backend takes every request at once and publishes counters only.
    #[test]
    fn empty_queues_before_a_silent_engine_are_no_word_on_its_line() {
        let queues = format!("{PENDING}{{model=\"m\",version=\"1\"}} 0\n");
        let counters = "vllm:prompt_tokens_total{model=\"m\",version=\"1\"} 18\n";
        for inside in ["", counters] {
            assert_eq!(load(&format!("{queues}{inside}")), Report::default(), "{inside}");
        }
        for inside in
            [format!("{TRTLLM_REQUESTS}{{request_type=\"waiting\"}} 0\n"), "vllm:num_requests_waiting 0\n".to_owned()]
        {
            assert_eq!(load(&format!("{queues}{inside}")).waiting, Some(0), "{inside}");
        }
    }

    #[test]
    fn either_readiness_page_tells() {
        let not_ready = br#"{"detail":"Attached inference engine is not ready for inference requests."}"#.as_slice();
        let why = Health::NotReady("Attached inference engine is not ready for inference requests.".into());
        let cases: &[(Answers<'_>, Health)] = &[
            (&[("/health/ready", 200, b"")], Health::Ready),
            (&[("/health/ready", 400, not_ready), ("/v2/health/ready", 200, b"")], why),
            (&[("/health/ready", 500, b"")], Health::NotReady("answered 500".into())),
            (&[("/health/ready", 404, b""), ("/v2/health/ready", 200, b"")], Health::Ready),
            (&[("/health/ready", 400, b""), ("/v2/health/ready", 200, b"")], Health::Ready),
            (&[("/health/ready", 400, b""), ("/v2/health/ready", 400, b"")], Health::NotReady("answered 400".into())),
            (&[("/health/ready", 401, b""), ("/v2/health/ready", 401, b"")], Health::Ready),
        ];
        for (answers, health) in cases {
            assert_eq!(ask(Engine::Triton, answers).health, *health, "{answers:?}");
        }
    }

    #[test]
    fn odd_numbers_are_unknown() {
        let names = [PENDING, "vllm:num_requests_running", "vllm:gpu_cache_usage_perc"];
        for body in odd_answers(&names) {
            assert_eq!(load(&body), Report::default(), "{body:?}");
        }
        for value in ["NaN", "-1", "1e99", "x"] {
            let report = load(&format!(
                "{TRTLLM_REQUESTS}{{request_type=\"scheduled\"}} {value}\n{TRTLLM_REQUESTS}{{request_type=\"waiting\"}} {value}\n\
                 {TRTLLM_CACHE}{{kv_cache_block_type=\"fraction\"}} {value}\n{PENDING} 1\n"
            ));
            assert_eq!((report.running, report.waiting, report.kv_cache_used), (None, None, None), "{value}");
        }
    }
}
