//! `trtllm-serve`: `/health`, the list of models, and the load among the metrics of `/prometheus/metrics`.
//!
//! Not `/metrics`: that is JSON, and asking for it takes the statistics away from whoever else reads them. The gauges
//! are those of the last iteration that was collected, and only a request that came to its end sets off collecting: after
//! a client has left they stand still, with whoever waited at that moment. Hence `load_may_be_old`.

use super::{Answer, Health, Question, Report, openai, prometheus};

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: "/health", wanted: |_| true, read: |answer, report| report.health = Health::of(answer) },
    Question { path: openai::MODELS, wanted: Report::may_serve, read: read_models },
    Question { path: "/prometheus/metrics", wanted: Report::may_serve, read: read_load },
];

pub(super) const NO_LOAD: &str = "it needs return_perf_metrics and enable_iter_perf_stats";

fn read_models(answer: &Answer<'_>, report: &mut Report) {
    report.models = openai::loaded_models(answer);
}

fn read_load(answer: &Answer<'_>, report: &mut Report) {
    report.running = prometheus::sum(answer, "trtllm_num_requests_running");
    report.waiting = prometheus::sum(answer, "trtllm_num_requests_waiting");
    report.kv_cache_used = prometheus::largest_fraction(answer, "trtllm_kv_cache_utilization");
    report.load_may_be_old = true;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::{ask, natives, odd_answers};

    const MODELS: &[u8] = include_bytes!("golden/trtllm_models.json");
    const LOAD: &[u8] = include_bytes!("golden/trtllm_metrics.txt");

    #[test]
    fn reads_a_true_trtllm() {
        let report = ask(
            Engine::TrtLlm,
            &[
                ("/health", 200, b""),
                ("/v1/models", 200, MODELS),
                ("/prometheus/metrics", 200, LOAD),
                ("/metrics", 200, br#"[{"numActiveRequests":99}]"#),
            ],
        );
        assert_eq!(report.health, Health::Ready);
        assert_eq!((report.running, report.waiting, report.limit), (Some(5), Some(3), None));
        assert_eq!((report.kv_cache_used, report.load_may_be_old), (Some(0.6), true));
        assert_eq!(natives(&report), ["TinyLlama-1.1B-Chat-v1.0"]);
        assert_eq!(report.models.unwrap()[0].loaded, Some(true));
    }

    #[test]
    fn its_json_statistics_are_never_asked_for() {
        assert!(QUESTIONS.iter().all(|question| question.path != "/metrics"));
    }

    #[test]
    fn odd_numbers_are_unknown() {
        let names = ["trtllm_num_requests_running", "trtllm_num_requests_waiting", "trtllm_kv_cache_utilization"];
        for body in odd_answers(&names) {
            let report = ask(Engine::TrtLlm, &[("/prometheus/metrics", 200, body.as_bytes())]);
            assert_eq!(report, Report { load_may_be_old: true, ..Report::default() }, "{body:?}");
        }
        let off = ask(Engine::TrtLlm, &[("/prometheus/metrics", 404, br#"{"detail":"Not Found"}"#)]);
        assert_eq!((off.running, off.waiting), (None, None));
    }
}
