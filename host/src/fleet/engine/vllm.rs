//! vLLM: `/health` (503 once its engine is dead), the list of models, and the load among its metrics.
//!
//! There may be several engines behind one server, and labels for each and each model: requests are added up, of the
//! caches the fullest counts. With `--disable-log-stats` the metrics are there without any of vLLM's: unknown.
//! `/load` is not asked: it says 0 unless a flag is set.
//!
//! A request that waits for its grammar to be compiled, its adapter or its cache to come is waiting too, as `deferred`:
//! that is no lack of room, so that only those count that wait for `capacity`, where it tells them apart.

use super::{Answer, Health, METRICS, Question, Report, openai, plausible, prometheus};

pub(super) const QUESTIONS: &[Question] = &[
    Question { path: "/health", wanted: |_| true, read: |answer, report| report.health = Health::of(answer) },
    Question { path: openai::MODELS, wanted: Report::may_serve, read: read_models },
    Question { path: METRICS, wanted: Report::may_serve, read: read_load },
];

pub(super) const NO_LOAD: &str = "it runs with --disable-log-stats, or is a NIM (engine = \"nim\")";

const RUNNING: &str = "vllm:num_requests_running";

const WAITING: &str = "vllm:num_requests_waiting";

/// The same requests again, by why they wait; young.
const WAITING_BY_REASON: &str = "vllm:num_requests_waiting_by_reason";

/// The name since 0.9, and the one before.
pub(super) const KV_CACHE: [&str; 2] = ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"];

const SLEEP_STATE: &str = "vllm:engine_sleep_state";

fn read_models(answer: &Answer<'_>, report: &mut Report) {
    report.models = openai::loaded_models(answer);
}

pub(super) fn read_load(answer: &Answer<'_>, report: &mut Report) {
    report.running = prometheus::sum(answer, RUNNING);
    report.waiting = prometheus::sum(answer, WAITING).map(|all| waiting_for_room(answer).unwrap_or(all).min(all));
    report.kv_cache_used = KV_CACHE.iter().find_map(|name| prometheus::largest_fraction(answer, name));
    if is_asleep(answer) {
        report.health = Health::NotReady("sleeping".to_owned());
    }
}

fn waiting_for_room(answer: &Answer<'_>) -> Option<u32> {
    let of_capacity = prometheus::samples_with(answer, WAITING_BY_REASON, "reason", "capacity");
    plausible::total(of_capacity.map(|sample| sample.count()))
}

/// Whether it was put to sleep (`POST /sleep`): its memory is given away and requests would hang, while `/health`
/// stays green. Engines sleep together; of several API processes only one may know that they woke.
fn is_asleep(answer: &Answer<'_>) -> bool {
    let awake = prometheus::samples(answer, SLEEP_STATE).filter(|state| state.label("sleep_state") == Some(b"awake"));
    let mut awake = awake.map(|state| state.count() == Some(0)).peekable();
    awake.peek().is_some() && awake.all(|asleep| asleep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Engine;
    use crate::fleet::engine::tests::{ask, natives};

    const MODELS: &[u8] = include_bytes!("golden/vllm_models.json");
    const IDLE: &[u8] = include_bytes!("golden/vllm_metrics_idle.txt");
    const FULL: &[u8] = include_bytes!("golden/vllm_metrics_full.txt");

    fn load(metrics: &str) -> Report {
        let mut report = Report::default();
        read_load(&Answer { status: 200, body: metrics.as_bytes() }, &mut report);
        report
    }

    #[test]
    fn reads_a_true_vllm() {
        let report = ask(Engine::Vllm, &[("/health", 200, b""), ("/v1/models", 200, MODELS), ("/metrics", 200, IDLE)]);
        assert_eq!(report.health, Health::Ready);
        assert_eq!((report.running, report.waiting, report.limit), (Some(0), Some(0), None));
        assert_eq!(report.kv_cache_used, Some(0.0));
        assert_eq!(natives(&report), ["tiny-a"]);
        let model = &report.models.as_ref().unwrap()[0];
        assert_eq!((model.alias, model.loaded, model.vision), (false, Some(true), None));
        let details = serde_json::json!({"created": 1_795_345_817, "owned_by": "vllm", "max_model_len": 4096});
        assert_eq!(serde_json::Value::Object(model.details.clone()), details);
    }

    /// Six streams at `--max-num-seqs 4`: four run, two wait, and say so twice.
    #[test]
    fn reads_a_full_vllm() {
        let report = ask(Engine::Vllm, &[("/health", 200, b""), ("/metrics", 200, FULL)]);
        assert_eq!((report.running, report.waiting), (Some(4), Some(2)));
        assert_eq!(report.kv_cache_used, Some(0.003_418_386_033_451_348_3));
        assert_eq!(report.models, None);
    }

    /// vLLM sets the first to the sum of the others (`v1/metrics/loggers.py`).
    #[test]
    fn who_waits_for_anything_but_room_is_no_line() {
        let waiting = |by_reason: &str| {
            load(&format!("vllm:num_requests_running 9\nvllm:num_requests_waiting 5\n{by_reason}")).waiting
        };
        let engine = |engine: u8, reason: &str, count: &str| {
            format!("{WAITING_BY_REASON}{{engine=\"{engine}\",model_name=\"m\",reason=\"{reason}\"}} {count}\n")
        };
        let told = |count: &str| [engine(0, "capacity", count), engine(0, "deferred", "5.0")].concat();
        assert_eq!(waiting(&told("0.0")), Some(0));
        assert_eq!(waiting(&[told("1.0"), engine(1, "capacity", "2.0")].concat()), Some(3));
        for odd in ["NaN", "-1", "1e99"] {
            assert_eq!(waiting(&told(odd)), Some(5), "{odd}");
        }
        assert_eq!(waiting(&engine(0, "deferred", "5.0")), Some(5), "the other reason is missing");
        assert_eq!(waiting(&told("7.0")), Some(5), "a part is not more than the whole");
        assert_eq!(load(&told("2.0")).waiting, None, "a reason alone is no report");
    }

    #[test]
    fn a_dead_engine_is_asked_nothing_more() {
        let report = ask(Engine::Vllm, &[("/health", 503, b""), ("/v1/models", 200, MODELS), ("/metrics", 200, FULL)]);
        assert_eq!(report, Report { health: Health::NotReady("answered 503".into()), ..Report::default() });
    }

    #[test]
    fn adds_up_engines_and_models_and_takes_the_fullest_cache() {
        let report = load(
            r#"vllm:num_requests_running{engine="0",model_name="a"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 5.0
vllm:num_requests_running{engine="0",model_name="b"} 1.0
vllm:num_requests_waiting{engine="0",model_name="a"} 0.0
vllm:num_requests_waiting{engine="1",model_name="a"} 2.0
vllm:num_requests_waiting{engine="0",model_name="b"} 0.0
vllm:num_requests_waiting_by_reason{engine="1",model_name="a",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a"} 0.75
vllm:kv_cache_usage_perc{engine="0",model_name="b"} 0.5
"#,
        );
        assert_eq!((report.running, report.waiting, report.kv_cache_used), (Some(9), Some(2), Some(0.75)));
    }

    #[test]
    fn reads_the_names_of_before() {
        let report = load(
            "vllm:num_requests_running 2\nvllm:num_requests_swapped 9\nvllm:gpu_cache_usage_perc 0.5\nvllm:cpu_cache_usage_perc 0.9\n",
        );
        assert_eq!((report.running, report.waiting, report.kv_cache_used), (Some(2), None, Some(0.5)));
        assert_eq!(load("vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.6\n").kv_cache_used, Some(0.6));
    }

    #[test]
    fn no_load_is_not_an_idle_engine() {
        for metrics in [
            "",
            "# HELP vllm:num_requests_running x\n",
            "python_info 1.0\n",
            "num_requests_running 3\n",
            "<html></html>",
        ] {
            let report = load(metrics);
            assert_eq!((report.running, report.waiting, report.kv_cache_used), (None, None, None), "{metrics:?}");
        }
        for value in ["NaN", "-1", "+Inf", "3000000000", "1e99", "2.5", "many", ""] {
            let report = load(&format!(
                "vllm:num_requests_running {value}\nvllm:num_requests_waiting {value}\nvllm:kv_cache_usage_perc {value}\n"
            ));
            assert_eq!((report.running, report.waiting, report.kv_cache_used), (None, None, None), "{value:?}");
        }
    }

    #[test]
    fn a_sleeping_engine_is_not_ready() {
        let state = |awake: [u8; 2]| {
            load(&format!(
                "vllm:engine_sleep_state{{engine=\"0\",sleep_state=\"awake\"}} {}.0\nvllm:engine_sleep_state{{engine=\"0\",sleep_state=\"weights_offloaded\"}} 0.0\nvllm:engine_sleep_state{{engine=\"1\",sleep_state=\"awake\"}} {}.0\n",
                awake[0], awake[1]
            ))
            .health
        };
        assert_eq!(state([0, 0]), Health::NotReady("sleeping".into()));
        assert_eq!((state([1, 0]), state([1, 1])), (Health::Unknown, Health::Unknown));
        assert_eq!(load("vllm:engine_sleep_state{sleep_state=\"awake\"} NaN\n").health, Health::Unknown);
    }
}
