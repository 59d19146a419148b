//! `GET /metrics`: what workers counted, added up, and the gauges of fleet, queue and plugins.
//!
//! `FAMILIES` is the whole list; the documentation is compared with it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::View;
use crate::fleet::State;
use crate::metrics::{HistogramTotal, SeriesTotal};
use crate::plugin::Fault;

pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<'a> = Vec<(&'static str, &'a str)>;
type Totals = BTreeMap<(Arc<str>, Arc<str>), SeriesTotal>;

/// The exposition in OpenMetrics text.
pub fn exposition(view: &View) -> String {
    let snapshot = Exposed { totals: view.shared.metrics.totals(), gauges: Gauges::of(view) };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut out = String::with_capacity(16 * 1024);
    // Writing to a string does not fail.
    let _ = text::encode(&mut out, &registry);
    out
}

/// Everything of one scrape.
#[derive(Debug)]
struct Exposed {
    totals: Totals,
    gauges: Gauges,
}

/// What is read rather than counted.
#[derive(Debug)]
struct Gauges {
    backends: Vec<BackendGauges>,
    queue_waiting: usize,
    plugins: Vec<PluginGauges>,
    plugin_faults: BTreeMap<(String, &'static str), u64>,
    plugin_reloads: BTreeMap<String, (u64, u64)>,
    config_reloads: (u64, u64),
}

#[derive(Debug)]
struct BackendGauges {
    name: Arc<str>,
    state: State,
    in_flight: u32,
    slots: u32,
    waiting: Option<u32>,
    kv_cache_used: Option<f64>,
}

#[derive(Debug)]
struct PluginGauges {
    name: String,
    calls_timed: u64,
    seconds_timed: f64,
}

impl Gauges {
    fn of(view: &View) -> Self {
        let snapshot = view.shared.snapshot.load();
        let reloads = view.status.reloads().clone();
        let backends = snapshot.fleet.iter().map(|member| {
            let backend = &member.backend;
            let (_, waiting, _, _) = backend.reported();
            BackendGauges {
                name: Arc::clone(&backend.name),
                state: backend.state(),
                in_flight: backend.in_flight(),
                slots: backend.slots(),
                waiting: (waiting != crate::fleet::UNKNOWN).then_some(waiting),
                kv_cache_used: backend.known().kv_cache_used,
            }
        });
        let plugins = [snapshot.policy.version(), snapshot.translator.version()].map(|version| {
            let timing = version.counters.timing();
            PluginGauges {
                name: version.name.clone(),
                calls_timed: timing.calls,
                seconds_timed: timing.total.as_secs_f64(),
            }
        });
        Self {
            backends: backends.collect(),
            queue_waiting: view.shared.queue.waiting(),
            plugins: plugins.into(),
            plugin_faults: reloads.faults,
            plugin_reloads: reloads.plugins,
            config_reloads: (reloads.config_generation, reloads.config_refused),
        }
    }
}

/// One family: its name without `vision_proxy_`, what it means, and how it is written.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    write: fn(&Exposed, &mut Writer<'_>) -> fmt::Result,
}

const fn counter(
    name: &'static str,
    help: &'static str,
    write: fn(&Exposed, &mut Writer<'_>) -> fmt::Result,
) -> Family {
    Family { name, help, kind: MetricType::Counter, write }
}

const fn gauge(name: &'static str, help: &'static str, write: fn(&Exposed, &mut Writer<'_>) -> fmt::Result) -> Family {
    Family { name, help, kind: MetricType::Gauge, write }
}

const fn histogram(
    name: &'static str,
    help: &'static str,
    write: fn(&Exposed, &mut Writer<'_>) -> fmt::Result,
) -> Family {
    Family { name, help, kind: MetricType::Histogram, write }
}

/// Every family. Counters get `_total` from the encoder.
const FAMILIES: &[Family] = &[
    counter("vision_proxy_requests", "Requests answered, by the status the client read (499: it left first)", requests),
    histogram(
        "vision_proxy_request_seconds",
        "Whole requests, from the head's arrival to the last byte sent",
        |all, to| to.histograms(all, |total| &total.request_seconds),
    ),
    histogram(
        "vision_proxy_first_token_seconds",
        "From the head's arrival to the first byte of the answer's body",
        |all, to| to.histograms(all, |total| &total.first_token_seconds),
    ),
    histogram(
        "vision_proxy_overhead_seconds",
        "Time the proxy itself added, without waiting in line and for backends",
        |all, to| to.histograms(all, |total| &total.overhead_seconds),
    ),
    histogram("vision_proxy_queue_seconds", "Time requests waited in line", |all, to| {
        to.histograms(all, |total| &total.queue_seconds)
    }),
    counter("vision_proxy_attempts", "Attempts on backends, by how they ended", attempts),
    gauge("vision_proxy_queue_waiting", "Requests that wait in line now", |all, to| {
        to.number(&[], all.gauges.queue_waiting as f64)
    }),
    gauge("vision_proxy_backend_state", "1 for the state a backend is in", backend_state),
    gauge("vision_proxy_backend_in_flight", "Requests of this proxy at the backend now", |all, to| {
        to.backends(all, |backend| Some(f64::from(backend.in_flight)))
    }),
    gauge("vision_proxy_backend_slots", "Requests the backend may hold now", |all, to| {
        to.backends(all, |backend| Some(f64::from(backend.slots)))
    }),
    gauge("vision_proxy_backend_reported_waiting", "Requests that wait inside the engine, as it says", |all, to| {
        to.backends(all, |backend| backend.waiting.map(f64::from))
    }),
    gauge("vision_proxy_backend_kv_cache_used", "KV-cache in use, 0 to 1, as the engine says", |all, to| {
        to.backends(all, |backend| backend.kv_cache_used)
    }),
    histogram("vision_proxy_plugin_call_seconds", "Plugin calls; a sample of them is timed", plugin_calls),
    counter("vision_proxy_plugin_faults", "Plugin calls that failed and were answered by the host", plugin_faults),
    counter("vision_proxy_plugin_reloads", "Plugin files swapped in or refused", plugin_reloads),
    counter("vision_proxy_config_reloads", "Configurations loaded or refused, the first included", config_reloads),
    counter("vision_proxy_tokens", "Tokens, as the answers' usage counts them", tokens),
];

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in FAMILIES {
            let metric = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            (family.write)(self, &mut Writer(metric))?;
        }
        Ok(())
    }
}

/// Writes the samples of one family.
struct Writer<'a>(MetricEncoder<'a>);

impl Writer<'_> {
    fn count(&mut self, labels: &[(&'static str, &str)], count: u64) -> fmt::Result {
        self.0.encode_family(&labels.to_vec())?.encode_counter::<NoLabelSet, _, u64>(&count, None)
    }

    fn number(&mut self, labels: &[(&'static str, &str)], value: f64) -> fmt::Result {
        self.0.encode_family(&labels.to_vec())?.encode_gauge(&value)
    }

    fn histogram(&mut self, labels: &Labels<'_>, total: &HistogramTotal) -> fmt::Result {
        self.0.encode_family(labels)?.encode_histogram::<NoLabelSet>(
            total.sum_seconds,
            total.count,
            &total.buckets,
            None,
        )
    }

    fn histograms(&mut self, all: &Exposed, of: fn(&SeriesTotal) -> &HistogramTotal) -> fmt::Result {
        for ((model, backend), total) in &all.totals {
            if of(total).count > 0 {
                self.histogram(&vec![("model", model), ("backend", backend)], of(total))?;
            }
        }
        Ok(())
    }

    fn backends(&mut self, all: &Exposed, of: fn(&BackendGauges) -> Option<f64>) -> fmt::Result {
        for backend in &all.gauges.backends {
            if let Some(value) = of(backend) {
                self.number(&[("backend", &backend.name)], value)?;
            }
        }
        Ok(())
    }
}

fn requests(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    for ((model, backend), total) in &all.totals {
        for (status, count) in &total.statuses {
            to.count(&[("model", model), ("backend", backend), ("status", status)], *count)?;
        }
    }
    Ok(())
}

fn attempts(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    for ((model, backend), total) in &all.totals {
        for (end, count) in &total.attempts {
            to.count(&[("model", model), ("backend", backend), ("reason", end.name())], *count)?;
        }
    }
    Ok(())
}

fn backend_state(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    for backend in &all.gauges.backends {
        for state in State::ALL {
            let value = if state == backend.state { 1.0 } else { 0.0 };
            to.number(&[("backend", &backend.name), ("state", state.name())], value)?;
        }
    }
    Ok(())
}

fn plugin_calls(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    for plugin in &all.gauges.plugins {
        let total = HistogramTotal {
            sum_seconds: plugin.seconds_timed,
            count: plugin.calls_timed,
            buckets: vec![(f64::INFINITY, plugin.calls_timed)],
        };
        to.histogram(&vec![("plugin", &plugin.name)], &total)?;
    }
    Ok(())
}

/// Every reason of the plugins in use, and whatever was counted of others.
fn plugin_faults(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    let mut counts = all.gauges.plugin_faults.clone();
    for plugin in &all.gauges.plugins {
        for reason in Fault::REASONS {
            counts.entry((plugin.name.clone(), reason)).or_default();
        }
    }
    for ((plugin, reason), count) in &counts {
        to.count(&[("plugin", plugin), ("reason", reason)], *count)?;
    }
    Ok(())
}

fn plugin_reloads(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    for (plugin, (swapped, refused)) in &all.gauges.plugin_reloads {
        to.count(&[("plugin", plugin), ("result", "swapped")], *swapped)?;
        to.count(&[("plugin", plugin), ("result", "refused")], *refused)?;
    }
    Ok(())
}

fn config_reloads(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    let (loaded, refused) = all.gauges.config_reloads;
    to.count(&[("result", "loaded")], loaded)?;
    to.count(&[("result", "refused")], refused)
}

fn tokens(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    let mut by_model: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for ((model, _), total) in &all.totals {
        let (prompt, completion) = by_model.entry(model).or_default();
        *prompt += total.prompt_tokens;
        *completion += total.completion_tokens;
    }
    for (model, (prompt, completion)) in by_model.into_iter().filter(|(_, tokens)| *tokens != (0, 0)) {
        to.count(&[("model", model), ("kind", "prompt")], prompt)?;
        to.count(&[("model", model), ("kind", "completion")], completion)?;
    }
    Ok(())
}
