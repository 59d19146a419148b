//! LMDeploy: `/health` (with its state in words), the list of models, and the load among its metrics.
//!
//! Asleep it is healthy, but refuses every request. Its gauges are set every ten seconds: hence `load_may_be_old`. What
//! does not fit into a batch waits before the engine, as `lmdeploy:num_api_requests_waiting`; a client that leaves while
//! it waits there is never taken off, so that this is no number to go by: it only says that none in line may not be true.
//! Blocks that it keeps for the prefixes of later requests count as used, though it gives them up when they are needed:
//! where prefixes are found again, its cache is filled for good and says nothing.

use super::{Answer, Health, METRICS, Question, Report, openai, prometheus};

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: "/health", wanted: |_| true, read: read_health },
    Question { path: openai::MODELS, wanted: Report::may_serve, read: read_models },
    Question { path: METRICS, wanted: Report::may_serve, read: read_load },
];

pub(super) const NO_LOAD: &str = "it runs with --disable-metrics";

fn read_health(answer: &Answer<'_>, report: &mut Report) {
    let asleep = answer.json().is_some_and(|said| said["status"] == "sleeping");
    report.health = if asleep { Health::NotReady("sleeping".to_owned()) } else { Health::of(answer) };
}

fn read_models(answer: &Answer<'_>, report: &mut Report) {
    report.models = openai::loaded_models(answer);
}

fn read_load(answer: &Answer<'_>, report: &mut Report) {
    report.running = prometheus::sum(answer, "lmdeploy:num_requests_running");
    report.waiting =
        prometheus::sum(answer, "lmdeploy:num_requests_waiting").filter(|some| *some > 0 || !may_wait_before(answer));
    report.kv_cache_used =
        prometheus::largest_fraction(answer, "lmdeploy:gpu_cache_usage_perc").filter(|_| !keeps_prefixes(answer));
    report.load_may_be_old = true;
}

/// Whether anybody may wait who has not come to the engine yet.
fn may_wait_before(answer: &Answer<'_>) -> bool {
    prometheus::samples(answer, "lmdeploy:num_api_requests_waiting").any(|waiting| waiting.count() != Some(0))
}

fn keeps_prefixes(answer: &Answer<'_>) -> bool {
    prometheus::samples(answer, "lmdeploy:prefix_cache_hit_rate").any(|rate| rate.fraction() != Some(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::{ask, natives, odd_answers};

    const MODELS: &[u8] = include_bytes!("golden/lmdeploy_models.json");
    const LOAD: &[u8] = include_bytes!("golden/lmdeploy_metrics.txt");
    const HEALTHY: &[u8] = br#"{"status":"healthy","message":""}"#;

    #[test]
    fn reads_a_true_lmdeploy() {
        let report =
            ask(Engine::LmDeploy, &[("/health", 200, HEALTHY), ("/v1/models", 200, MODELS), ("/metrics", 200, LOAD)]);
        assert_eq!(report.health, Health::Ready);
        assert_eq!((report.running, report.waiting, report.limit), (Some(4), Some(2), None));
        assert_eq!((report.kv_cache_used, report.load_may_be_old), (Some(0.125), true));
        assert_eq!(natives(&report), ["internlm/internlm3-8b-instruct"]);
        assert_eq!(report.models.unwrap()[0].details["owned_by"], "lmdeploy");
    }

    #[test]
    fn none_waiting_in_the_engine_is_no_word_on_the_line_before_it() {
        let waiting = |inside: u8, before: &str| {
            let before: String =
                before.split(' ').map(|count| format!("lmdeploy:num_api_requests_waiting {count}\n")).collect();
            let body = format!("lmdeploy:num_requests_waiting {inside}\n{before}");
            ask(Engine::LmDeploy, &[("/metrics", 200, body.as_bytes())]).waiting
        };
        assert_eq!((waiting(0, "0"), waiting(2, "0"), waiting(2, "9")), (Some(0), Some(2), Some(2)));
        for before in ["9", "0 1", "-1", "NaN"] {
            assert_eq!(waiting(0, before), None, "{before}");
        }
        let without = ask(Engine::LmDeploy, &[("/metrics", 200, b"lmdeploy:num_requests_waiting 0\n")]);
        assert_eq!(without.waiting, Some(0), "before it told");
    }

    #[test]
    fn a_cache_filled_with_kept_prefixes_is_not_full() {
        let used = |hit_rates: &[&str]| {
            let rates: String = hit_rates
                .iter()
                .map(|rate| format!("lmdeploy:prefix_cache_hit_rate{{engine=\"0\"}} {rate}\n"))
                .collect();
            let body = format!("lmdeploy:gpu_cache_usage_perc{{engine=\"0\"}} 0.99\n{rates}");
            ask(Engine::LmDeploy, &[("/metrics", 200, body.as_bytes())]).kv_cache_used
        };
        assert_eq!((used(&[]), used(&["0.0"])), (Some(0.99), Some(0.99)));
        for rates in [&["0.4"][..], &["0.0", "0.4"], &["NaN"]] {
            assert_eq!(used(rates), None, "{rates:?}");
        }
    }

    #[test]
    fn its_state_is_told_in_words() {
        for (status, body, health) in [
            (200, r#"{"status":"sleeping","message":"Engine is sleeping."}"#, Health::NotReady("sleeping".into())),
            (
                503,
                r#"{"status":"unhealthy","message":"Backend health probe timed out after 10.0s."}"#,
                Health::NotReady("Backend health probe timed out after 10.0s.".into()),
            ),
            // Before it had words.
            (200, "", Health::Ready),
            (404, r#"{"detail":"Not Found"}"#, Health::Ready),
        ] {
            assert_eq!(ask(Engine::LmDeploy, &[("/health", status, body.as_bytes())]).health, health, "{body}");
        }
    }

    #[test]
    fn odd_numbers_are_unknown() {
        let names = ["lmdeploy:num_requests_running", "lmdeploy:num_requests_waiting", "lmdeploy:gpu_cache_usage_perc"];
        for body in odd_answers(&names) {
            let report = ask(Engine::LmDeploy, &[("/metrics", 200, body.as_bytes())]);
            assert_eq!(report, Report { load_may_be_old: true, ..Report::default() }, "{body:?}");
        }
    }
}
