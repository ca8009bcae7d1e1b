//! What the server counts, as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::models::Models;

/// Upper ends of the classes that times to the first token are counted in, in seconds.
const SECONDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// By path and status.
    requests: BTreeMap<(String, u16), u64>,
    /// By model.
    first_token: BTreeMap<String, Times>,
}

#[derive(Debug, Default)]
struct Times {
    /// How many lie below each of [`SECONDS`].
    below: [u64; SECONDS.len()],
    count: u64,
    sum: f64,
}

impl Metrics {
    /// Counts an answer; `path` is one of the server's own.
    pub(crate) fn answered(&self, path: &str, status: u16) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts
            .requests
            .entry((path.to_owned(), status))
            .or_default() += 1;
    }

    /// Counts a text whose first token took so long.
    pub(crate) fn first_token(&self, model: &str, time: Duration) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let times = counts.first_token.entry(model.to_owned()).or_default();
        let seconds = time.as_secs_f64();
        times.count += 1;
        times.sum += seconds;
        for (below, end) in times.below.iter_mut().zip(SECONDS) {
            *below += u64::from(seconds <= end);
        }
    }

    /// Everything, in Prometheus' text format.
    pub(crate) fn text(&self, models: &Models) -> String {
        let mut text = Page::default();
        self.own(&mut text);
        for (name, help, kind, of) in GAUGES {
            text.head(name, help, kind);
            for model in models.texts() {
                let value = of(&model.state());
                text.line(name, &[("model", &model.name)], value);
            }
        }
        let name = "molora_expert_weight_sum";
        let help = "Weights that routers gave to each expert in the steps that were looked at";
        text.head(name, help, "counter");
        for model in models.texts() {
            for (expert, weight) in model.state().expert_weights.iter().enumerate() {
                let expert = model.expert_name(expert);
                text.line(
                    name,
                    &[("model", &model.name), ("expert", &expert)],
                    *weight,
                );
            }
        }
        text.0
    }

    fn own(&self, text: &mut Page) {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "molora_requests_total";
        text.head(name, "Requests by path and status", "counter");
        for ((path, status), count) in &counts.requests {
            let labels = [("path", &path[..]), ("status", &status.to_string())];
            text.line(name, &labels, *count as f64);
        }
        let name = "molora_time_to_first_token_seconds";
        let help = "Time from a request to the first token of each of its texts";
        text.head(name, help, "histogram");
        for (model, times) in &counts.first_token {
            let bucket = format!("{name}_bucket");
            for (below, end) in times.below.iter().zip(SECONDS) {
                let labels = [("model", &model[..]), ("le", &end.to_string())];
                text.line(&bucket, &labels, *below as f64);
            }
            let labels = [("model", &model[..]), ("le", "+Inf")];
            text.line(&bucket, &labels, times.count as f64);
            text.line(&format!("{name}_sum"), &labels[..1], times.sum);
            text.line(&format!("{name}_count"), &labels[..1], times.count as f64);
        }
    }
}

type Gauge = fn(&molora_train::generate::EngineState) -> f64;

/// What every text model says of itself.
const GAUGES: [(&str, &str, &str, Gauge); 5] = [
    (
        "molora_texts_waiting",
        "Texts that nothing was read of yet",
        "gauge",
        |state| state.waiting as f64,
    ),
    (
        "molora_texts_running",
        "Texts that are read or written",
        "gauge",
        |state| state.rows as f64,
    ),
    (
        "molora_cache_tokens",
        "Tokens that the cache of keys and values has room for",
        "gauge",
        |state| state.cache_tokens as f64,
    ),
    (
        "molora_prompt_tokens_total",
        "Tokens of prompts that were read",
        "counter",
        |state| state.prompt_tokens as f64,
    ),
    (
        "molora_generated_tokens_total",
        "Tokens that were written",
        "counter",
        |state| state.new_tokens as f64,
    ),
];

#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let text = format!("# HELP {name} {help}.\n# TYPE {name} {kind}\n");
        self.0.push_str(&text);
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let escaped = |text: &str| {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"");
            text.replace('\n', "\\n")
        };
        let labels = labels.iter();
        let labels: Vec<String> = labels
            .map(|(key, value)| format!("{key}=\"{}\"", escaped(value)))
            .collect();
        let labels = labels.join(",");
        writeln!(self.0, "{name}{{{labels}}} {value}").expect("a String takes all");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_lines_of_prometheus() {
        let metrics = Metrics::default();
        metrics.answered("/v1/models", 200);
        metrics.answered("/v1/models", 200);
        metrics.first_token("a\"b", Duration::from_millis(30));
        let mut text = Page::default();
        metrics.own(&mut text);
        let has = |line: &str| assert!(text.0.lines().any(|found| found == line), "{}", text.0);
        has("molora_requests_total{path=\"/v1/models\",status=\"200\"} 2");
        has("molora_time_to_first_token_seconds_bucket{model=\"a\\\"b\",le=\"0.025\"} 0");
        has("molora_time_to_first_token_seconds_bucket{model=\"a\\\"b\",le=\"0.05\"} 1");
        has("molora_time_to_first_token_seconds_bucket{model=\"a\\\"b\",le=\"+Inf\"} 1");
        has("molora_time_to_first_token_seconds_count{model=\"a\\\"b\"} 1");
    }
}
