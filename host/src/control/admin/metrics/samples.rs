//! How the samples of a family are written: each function is given everything and writes what is its family's.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

use super::Exposed;
use super::gauges::BackendGauges;
use crate::fleet::State;
use crate::metrics::{HistogramTotal, SeriesTotal};
use crate::plugin::Fault;

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Writes the samples of one family; what it is given are the values of that family's labels.
pub struct Writer<'a> {
    pub metric: MetricEncoder<'a>,
    pub labels: &'static [&'static str],
}

impl Writer<'_> {
    fn labels<'v>(&self, values: &[&'v str]) -> Labels<'v> {
        debug_assert_eq!(self.labels.len(), values.len(), "{:?}", self.labels);
        self.labels.iter().copied().zip(values.iter().copied()).collect()
    }

    pub fn count(&mut self, values: &[&str], count: u64) -> fmt::Result {
        let labels = self.labels(values);
        self.metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)
    }

    pub fn number(&mut self, values: &[&str], number: f64) -> fmt::Result {
        let labels = self.labels(values);
        self.metric.encode_family(&labels)?.encode_gauge(&number)
    }

    /// Since the epoch.
    pub fn time(&mut self, at: SystemTime) -> fmt::Result {
        self.number(&[], at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
    }

    fn histogram(&mut self, values: &[&str], total: &HistogramTotal) -> fmt::Result {
        let labels = self.labels(values);
        let HistogramTotal { sum_seconds, count, buckets } = total;
        self.metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(*sum_seconds, *count, buckets, None)
    }

    pub fn histograms(&mut self, all: &Exposed, of: fn(&SeriesTotal) -> &HistogramTotal) -> fmt::Result {
        for ((model, backend), total) in &all.totals {
            if of(total).count > 0 {
                self.histogram(&[model, backend], of(total))?;
            }
        }
        Ok(())
    }

    /// Of the models that are known, all backends together.
    pub fn by_model(&mut self, all: &Exposed, of: fn(&SeriesTotal) -> &HistogramTotal) -> fmt::Result {
        for (model, total) in all.by_model(of).iter().filter(|(model, _)| !model.is_empty()) {
            self.histogram(&[model], total)?;
        }
        Ok(())
    }

    pub fn backends(&mut self, all: &Exposed, of: fn(&BackendGauges) -> Option<f64>) -> fmt::Result {
        for backend in &all.gauges.backends {
            if let Some(value) = of(backend) {
                self.number(&[&backend.name], value)?;
            }
        }
        Ok(())
    }
}

pub fn one_if(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

pub fn requests(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    for ((model, backend), total) in &all.totals {
        for (status, count) in &total.statuses {
            to.count(&[model, backend, status], *count)?;
        }
    }
    Ok(())
}

pub fn attempts(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    for ((model, backend), total) in &all.totals {
        for (end, count) in &total.attempts {
            to.count(&[model, backend, end.name()], *count)?;
        }
    }
    Ok(())
}

pub fn backend_state(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    for backend in &all.gauges.backends {
        for state in State::ALL {
            to.number(&[&backend.name, state.name()], one_if(state == backend.state))?;
        }
    }
    Ok(())
}

pub fn backend_failures(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    all.gauges.backends.iter().try_for_each(|backend| to.count(&[&backend.name], backend.failures))
}

pub fn plugin_calls(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    all.gauges.plugins.iter().try_for_each(|plugin| to.count(&[&plugin.name], plugin.calls))
}

pub fn plugin_times(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    all.gauges.plugins.iter().try_for_each(|plugin| to.histogram(&[&plugin.name], &plugin.timed))
}

/// Every reason of the plugins in use, and whatever was counted of others.
pub fn plugin_faults(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for plugin in &all.gauges.plugins {
        counts.extend(Fault::REASONS.map(|reason| ((plugin.name.as_str(), reason), 0)));
    }
    for (plugin, tally) in &all.gauges.reloads {
        counts.extend(tally.faults.iter().map(|(reason, count)| ((plugin.as_str(), *reason), *count)));
    }
    counts.into_iter().try_for_each(|((plugin, reason), count)| to.count(&[plugin, reason], count))
}

pub fn plugin_reloads(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    for (plugin, tally) in &all.gauges.reloads {
        to.count(&[plugin, "swapped"], tally.swapped)?;
        to.count(&[plugin, "refused"], tally.refused.values().sum())?;
    }
    Ok(())
}

pub fn plugin_refusals(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    for (plugin, tally) in &all.gauges.reloads {
        tally.refused.iter().try_for_each(|(stage, count)| to.count(&[plugin, stage], *count))?;
    }
    Ok(())
}

pub fn config_reloads(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    to.count(&["loaded"], all.gauges.config_loaded)?;
    to.count(&["refused"], all.gauges.config_refused)
}

pub fn tokens(all: &Exposed, to: &mut Writer<'_>) -> fmt::Result {
    let mut by_model: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for ((model, _), total) in &all.totals {
        let (prompt, completion) = by_model.entry(model).or_default();
        *prompt += total.prompt_tokens;
        *completion += total.completion_tokens;
    }
    for (model, (prompt, completion)) in by_model.into_iter().filter(|(_, tokens)| *tokens != (0, 0)) {
        to.count(&[model, "prompt"], prompt)?;
        to.count(&[model, "completion"], completion)?;
    }
    Ok(())
}
