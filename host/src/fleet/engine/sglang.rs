//! SGLang: `/health`, the list of models, and the load from `/v1/loads`, else from its metrics.
//!
//! `/v1/loads` needs no flag and also tells the limit, but is young; metrics need `--enable-metrics`. Both give a
//! line for each data-parallel rank, which add up. `/health_generate` is not asked: it costs a token and turns red
//! under a long prefill.

use serde_json::Value;

use super::{Answer, Health, METRICS, Question, Report, openai, plausible, prometheus};

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: "/health", wanted: |_| true, read: |answer, report| report.health = Health::of(answer) },
    Question { path: openai::MODELS, wanted: Report::may_serve, read: read_models },
    Question { path: "/v1/loads?include=core", wanted: Report::may_serve, read: read_loads },
    Question { path: METRICS, wanted: |report| report.may_serve() && report.running.is_none(), read: read_metrics },
];

pub(super) const NO_LOAD: &str =
    "it has no /v1/loads and runs without --enable-metrics, or has not served a request yet";

/// The prefix up to 0.5.3 and in the documents, and the one since.
const RUNNING: [&str; 2] = ["sglang:num_running_reqs", "sglang_num_running_reqs"];
const WAITING: [&str; 2] = ["sglang:num_queue_reqs", "sglang_num_queue_reqs"];
const KV_CACHE: [&str; 2] = ["sglang:token_usage", "sglang_token_usage"];

fn read_models(answer: &Answer<'_>, report: &mut Report) {
    report.models = openai::loaded_models(answer);
}

fn read_loads(answer: &Answer<'_>, report: &mut Report) {
    let loads = answer.json().unwrap_or_default();
    let Some(ranks) = loads["loads"].as_array().filter(|ranks| !ranks.iter().any(is_blank)) else { return };
    report.running = plausible::total(ranks.iter().map(|rank| plausible::json_count(&rank["num_running_reqs"])));
    report.waiting = plausible::total(ranks.iter().map(|rank| plausible::json_count(&rank["num_waiting_reqs"])));
    report.limit = plausible::total(ranks.iter().map(|rank| plausible::json_limit(&rank["max_running_requests"])));
    report.kv_cache_used = plausible::largest(ranks.iter().map(|rank| plausible::json_fraction(&rank["token_usage"])));
}

/// Whether a rank shows the zeros it begins with: until its first step it has not measured anything. That says
/// nothing of health, for a rank that got no request would never take that step.
fn is_blank(rank: &Value) -> bool {
    rank["max_total_num_tokens"].as_f64() == Some(0.0)
}

/// The ranks of tensor and pipeline parallelism, and of priorities, repeat the requests of their data-parallel rank.
pub(super) fn read_metrics(answer: &Answer<'_>, report: &mut Report) {
    let ranks = |name: &&str| prometheus::sum_of_groups(answer, name, "dp_rank");
    report.running = report.running.or(RUNNING.iter().find_map(ranks));
    report.waiting = report.waiting.or(WAITING.iter().find_map(ranks));
    let fullest = KV_CACHE.iter().find_map(|name| prometheus::largest_fraction(answer, name));
    report.kv_cache_used = report.kv_cache_used.or(fullest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::{ask, natives};

    const MODELS: &[u8] = include_bytes!("golden/sglang_models.json");
    const LOADS: &[u8] = include_bytes!("golden/sglang_loads.json");
    const METRICS: &[u8] = include_bytes!("golden/sglang_metrics.txt");

    fn loads(body: &str) -> Report {
        let mut report = Report::default();
        read_loads(&Answer { status: 200, body: body.as_bytes() }, &mut report);
        report
    }

    fn metrics(body: &str) -> Report {
        let mut report = Report::default();
        read_metrics(&Answer { status: 200, body: body.as_bytes() }, &mut report);
        report
    }

    #[test]
    fn reads_loads_and_leaves_metrics_alone() {
        let wrong = b"sglang:num_running_reqs 99\n";
        let report = ask(
            Engine::Sglang,
            &[
                ("/health", 200, b""),
                ("/v1/models", 200, MODELS),
                ("/v1/loads?include=core", 200, LOADS),
                ("/metrics", 200, wrong),
            ],
        );
        assert_eq!(report.health, Health::Ready);
        assert_eq!((report.running, report.waiting, report.limit), (Some(2), Some(4), Some(256)));
        assert_eq!(report.kv_cache_used, Some(0.02));
        assert_eq!(natives(&report), ["meta-llama/Llama-3.1-8B-Instruct"]);
        assert_eq!(report.models.unwrap()[0].details["max_model_len"], 131_072);
    }

    #[test]
    fn metrics_fill_in_what_loads_leave_open() {
        let rank = br#"{"loads":[{"num_waiting_reqs":5,"max_running_requests":64}]}"#;
        let report = ask(Engine::Sglang, &[("/v1/loads?include=core", 200, rank), ("/metrics", 200, METRICS)]);
        assert_eq!((report.running, report.waiting, report.limit), (Some(7), Some(5), Some(64)));
        assert!(!(QUESTIONS[3].wanted)(&report), "loads that tell are enough");
    }

    #[test]
    fn reads_metrics_where_there_are_no_loads() {
        let report = ask(
            Engine::Sglang,
            &[
                ("/health", 200, b""),
                ("/v1/loads?include=core", 404, br#"{"detail":"Not Found"}"#),
                ("/metrics", 200, METRICS),
            ],
        );
        assert_eq!((report.running, report.waiting, report.limit), (Some(7), Some(3), None));
        assert_eq!(report.kv_cache_used, Some(0.28));
    }

    #[test]
    fn neither_flag_nor_loads_is_unknown() {
        let report =
            ask(Engine::Sglang, &[("/health", 200, b""), ("/v1/loads?include=core", 404, b""), ("/metrics", 404, b"")]);
        assert_eq!(report, Report { health: Health::Ready, ..Report::default() });
    }

    #[test]
    fn adds_up_ranks() {
        let report = loads(
            r#"{"loads":[
                {"dp_rank":0,"num_running_reqs":2,"num_waiting_reqs":0,"max_total_num_tokens":9,"token_usage":0.1,"max_running_requests":64},
                {"dp_rank":1,"num_running_reqs":3,"num_waiting_reqs":5,"max_total_num_tokens":9,"token_usage":0.8,"max_running_requests":64},
                {"dp_rank":null,"num_running_reqs":1,"num_waiting_reqs":1,"max_total_num_tokens":9,"token_usage":0.3,"utilization":-1,"max_running_requests":64}]}"#,
        );
        assert_eq!((report.running, report.waiting, report.limit), (Some(6), Some(6), Some(192)));
        assert_eq!(report.kv_cache_used, Some(0.8));
    }

    #[test]
    fn the_zeros_of_the_beginning_are_unknown() {
        let blank = r#"{"num_running_reqs":0,"num_waiting_reqs":0,"max_total_num_tokens":0,"token_usage":0.0,"max_running_requests":0}"#;
        let full = r#"{"num_running_reqs":8,"num_waiting_reqs":1,"max_total_num_tokens":9,"token_usage":0.5,"max_running_requests":8}"#;
        assert_eq!(loads(&format!(r#"{{"loads":[{blank}]}}"#)), Report::default());
        assert_eq!(loads(&format!(r#"{{"loads":[{full},{blank}]}}"#)), Report::default());
    }

    #[test]
    fn a_rank_without_a_number_makes_that_number_unknown() {
        let report = loads(
            r#"{"loads":[{"num_running_reqs":2,"num_waiting_reqs":-1,"token_usage":"0.5","max_running_requests":0}]}"#,
        );
        assert_eq!(report, Report { running: Some(2), ..Report::default() });
        for body in [
            "",
            "<html>",
            "[]",
            r#"{"loads":[]}"#,
            r#"{"loads":{}}"#,
            r#"{"loads":[3]}"#,
            r#"{"server_load":0}"#,
            r#"{"loads":[{"num_run"#,
        ] {
            assert_eq!(loads(body), Report::default(), "{body:?}");
        }
    }

    #[test]
    fn both_prefixes_and_every_repetition() {
        let new = metrics(
            "sglang_num_running_reqs{dp_rank=\"0\"} 2\nsglang_num_queue_reqs{dp_rank=\"0\"} 1\nsglang_token_usage{dp_rank=\"0\"} 0.5\n",
        );
        assert_eq!((new.running, new.waiting, new.kv_cache_used), (Some(2), Some(1), Some(0.5)));
        let repeated = metrics(
            r#"sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 2
sglang:num_running_reqs{dp_rank="0",tp_rank="1"} 2
sglang:num_running_reqs{dp_rank="1",tp_rank="2"} 3
sglang:num_running_reqs{dp_rank="1",tp_rank="3"} 3
sglang:num_queue_reqs{priority="",dp_rank="0"} 4
sglang:num_queue_reqs{priority="1",dp_rank="0"} 3
sglang:num_queue_reqs{priority="2",dp_rank="0"} 1
sglang:token_usage{dp_rank="0"} NaN
"#,
        );
        assert_eq!((repeated.running, repeated.waiting, repeated.kv_cache_used), (Some(5), Some(4), None));
    }
}
