//! SGLang's metrics, `/v1/loads` and model description.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::super::Simulation;
use super::{CONTEXT_TOKENS, Report};

pub(super) fn model_info(simulation: &Simulation) -> Value {
    let model = simulation.own_model();
    json!({"model_path": model, "tokenizer_path": model, "is_generation": true, "preferred_sampling_params": null,
        "weight_version": "default", "has_image_understanding": simulation.vision, "has_audio_understanding": false,
        "max_context_length": CONTEXT_TOKENS})
}

pub(super) fn metrics(simulation: &Simulation) -> String {
    let load = simulation.slots.load();
    let labels =
        format!("engine_type=\"unified\",model_name=\"{}\",pp_rank=\"0\",tp_rank=\"0\"", simulation.own_model());
    let mut report = Report::new("sglang:", labels);
    report.sample("gauge", "num_running_reqs", "The number of running requests.", format!("{}.0", load.running));
    report.sample("gauge", "num_used_tokens", "The number of used tokens.", format!("{}.0", load.kv_used));
    report.sample("gauge", "token_usage", "The token usage.", format!("{:?}", load.kv_usage()));
    report.sample(
        "gauge",
        "num_queue_reqs",
        "The number of requests in the waiting queue.",
        format!("{}.0", load.waiting),
    );
    report.sample("gauge", "cache_hit_rate", "The prefix cache hit rate.", "0.0");
    report.sample("gauge", "max_total_num_tokens", "Maximum total number of tokens.", format!("{}.0", load.kv_tokens));
    let counts = load.counts;
    report.sample("counter", "prompt_tokens_total", "Number of prefill tokens processed.", counts.prompt_tokens);
    report.sample(
        "counter",
        "generation_tokens_total",
        "Number of generation tokens processed.",
        counts.decoded_tokens,
    );
    report.sample("counter", "num_requests_total", "Number of requests processed.", counts.finished);
    report.text
}

pub(super) fn loads(simulation: &Simulation) -> Value {
    let load = simulation.slots.load();
    let running = u32::try_from(load.running).unwrap_or(u32::MAX);
    let slots = u32::try_from(load.slots.max(1)).unwrap_or(u32::MAX);
    json!({
        "timestamp": humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
        "version": "0.5.16", "accelerator": "simulated", "num_accelerators": 1, "dp_rank_count": 1,
        "loads": [{
            "dp_rank": 0, "num_running_reqs": load.running, "num_waiting_reqs": load.waiting,
            "num_total_reqs": load.running + load.waiting, "num_used_tokens": load.kv_used,
            "max_total_num_tokens": load.kv_tokens, "token_usage": load.kv_usage(), "gen_throughput": 0.0,
            "cache_hit_rate": 0.0, "utilization": f64::from(running) / f64::from(slots),
            "max_running_requests": load.slots,
        }],
    })
}
