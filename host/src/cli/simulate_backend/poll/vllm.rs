//! vLLM's models and metrics: the families that say something of load, with the help texts of 0.32.

use serde_json::{Value, json};

use super::super::Simulation;
use super::{CONTEXT_TOKENS, Report};

/// vLLM's usual size of a KV block.
const BLOCK_TOKENS: u64 = 16;

pub(super) fn models(simulation: &Simulation) -> Value {
    let born = simulation.born;
    let model = |name: &String| {
        json!({"id": name, "object": "model", "created": born, "owned_by": "vllm", "root": simulation.own_model(),
            "parent": null, "max_model_len": CONTEXT_TOKENS, "permission": [{"id": "modelperm-simulated",
            "object": "model_permission", "created": born, "allow_create_engine": false, "allow_sampling": true,
            "allow_logprobs": true, "allow_search_indices": false, "allow_view": true, "allow_fine_tuning": false,
            "organization": "*", "group": null, "is_blocking": false}]})
    };
    json!({"object": "list", "data": simulation.models.iter().map(model).collect::<Vec<_>>()})
}

pub(super) fn metrics(simulation: &Simulation) -> String {
    let load = simulation.slots.load();
    let counts = load.counts;
    let model = simulation.own_model();
    let labels = format!("engine=\"0\",model_name=\"{model}\"");
    let mut report = Report::new("vllm:", labels.clone());
    let float = |count: usize| format!("{count}.0");
    report.sample(
        "gauge",
        "num_requests_running",
        "Number of requests in model execution batches.",
        float(load.running),
    );
    report.sample("gauge", "num_requests_waiting", "Number of requests waiting to be processed.", float(load.waiting));
    // The same requests again, by reason: a reader that adds them counts twice.
    let by_reason = "num_requests_waiting_by_reason";
    report.head("gauge", by_reason, "Number of waiting requests by reason.");
    report.line(by_reason, &format!("{labels},reason=\"capacity\""), float(load.waiting));
    report.line(by_reason, &format!("{labels},reason=\"deferred\""), "0.0");
    let usage = format!("{:?}", load.kv_usage());
    report.sample("gauge", "kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", usage);
    let counters = [
        ("num_preemptions_total", "Cumulative number of preemption from the engine.", 0),
        ("prompt_tokens_total", "Number of prefill tokens processed.", counts.prompt_tokens),
        ("generation_tokens_total", "Number of generation tokens processed.", counts.decoded_tokens),
    ];
    for (name, help, value) in counters {
        report.sample("counter", name, help, format!("{value}.0"));
    }
    let success = "request_success_total";
    report.head("counter", success, "Count of successfully processed requests.");
    // What clients gave up is counted nowhere, as in vLLM.
    for (reason, count) in [("stop", counts.finished - counts.cut), ("length", counts.cut), ("abort", 0), ("error", 0)]
    {
        let labels = format!("engine=\"0\",finished_reason=\"{reason}\",model_name=\"{model}\"");
        report.line(success, &labels, format!("{count}.0"));
    }
    let rejections = "admission_rejections_total";
    report.head("counter", rejections, "Number of admission attempts rejected by a queue limit, by reason.");
    let labels = format!("model_name=\"{model}\",reason=\"max_num_queued_reqs\"");
    report.line(rejections, &labels, format!("{}.0", counts.refused));
    let cache = "cache_config_info";
    report.head("gauge", cache, "Information of the LLMEngine CacheConfig");
    let blocks = load.kv_tokens / BLOCK_TOKENS;
    let labels = format!("block_size=\"{BLOCK_TOKENS}\",cache_dtype=\"auto\",engine=\"0\",num_gpu_blocks=\"{blocks}\"");
    report.line(cache, &labels, "1.0");
    report.text
}
