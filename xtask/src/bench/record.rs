//! What was measured, as it is saved.

use serde::{Deserialize, Serialize};

/// A line of `measure`, or of a reference in Python.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measurement {
    /// Precision of the frozen weights.
    pub(crate) dtype: String,
    /// Number of timed runs.
    pub(crate) samples: usize,
    /// Median time of a run.
    pub(crate) median_ms: f64,
    /// Shortest time of a run.
    pub(crate) best_ms: f64,
    /// The middle half of the samples as a share of the median.
    pub(crate) spread: f64,
    /// Tokens that went through per second.
    pub(crate) tokens_per_s: Option<f64>,
    /// Operations of matrix products that the task needs, per second.
    #[serde(default)]
    pub(crate) gflops: Option<f64>,
    /// Gigabytes of weights that are read per second.
    #[serde(default)]
    pub(crate) gb_per_s: Option<f64>,
    /// Peak resident memory of the process.
    pub(crate) peak_memory_mib: Option<f64>,
}

/// A case on a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) suite: String,
    pub(crate) case: String,
    pub(crate) device: String,
    /// The device's best f32 matmul in the same run.
    pub(crate) peak_gflops: f64,
    /// The most that all cores read from memory in the same run, in GB/s; 0 where it was not measured.
    #[serde(default)]
    pub(crate) peak_gb_per_s: f64,
    /// What was measured; empty until it is saved.
    pub(crate) commit: String,
    pub(crate) ours: Measurement,
    /// The reference in Python, which ran in turn.
    pub(crate) python: Option<Measurement>,
    /// llama.cpp in the fastest of its formats of that size, which ran in turn.
    #[serde(default)]
    pub(crate) llama: Option<Measurement>,
}

impl Record {
    /// Whether a newer measurement takes the place of this one.
    pub(crate) fn is_same_case(&self, other: &Self) -> bool {
        let key = |record: &Self| {
            let case = (record.suite.clone(), record.case.clone());
            (case, record.device.clone(), record.ours.dtype.clone())
        };
        key(self) == key(other)
    }

    /// Share of the device's matmul peak.
    pub(crate) fn share_of_peak(&self) -> Option<f64> {
        self.ours.gflops.map(|gflops| gflops / self.peak_gflops)
    }

    /// Share of the memory's measured peak of a measurement of this record.
    pub(crate) fn share_of_memory(&self, measured: &Measurement) -> Option<f64> {
        let is_known = self.peak_gb_per_s > 0.0;
        let rate = measured.gb_per_s.filter(|_| is_known)?;
        Some(rate / self.peak_gb_per_s)
    }

    /// Our time as a share of llama.cpp's.
    pub(crate) fn llama_time_ratio(&self) -> Option<f64> {
        Some(self.ours.median_ms / self.llama.as_ref()?.median_ms)
    }

    /// Our time as a share of the reference's.
    pub(crate) fn time_ratio(&self) -> Option<f64> {
        let python = self.python.as_ref()?;
        Some(self.ours.median_ms / python.median_ms)
    }

    /// Our peak memory as a share of the reference's.
    pub(crate) fn memory_ratio(&self) -> Option<f64> {
        Some(self.ours.peak_memory_mib? / self.python.as_ref()?.peak_memory_mib?)
    }

    /// Our tokens per second as a multiple of the reference's.
    pub(crate) fn throughput_ratio(&self) -> Option<f64> {
        Some(self.ours.tokens_per_s? / self.python.as_ref()?.tokens_per_s?)
    }
}

/// The measurement of several rounds: the median of their medians, with the widest spread and the
/// highest memory; `None` of none.
pub(crate) fn combine(mut rounds: Vec<Measurement>) -> Option<Measurement> {
    rounds.sort_by(|a, b| a.median_ms.total_cmp(&b.median_ms));
    let (low, high) = (
        rounds.get((rounds.len().max(1) - 1) / 2)?,
        &rounds[rounds.len() / 2],
    );
    let median_ms = (low.median_ms + high.median_ms) / 2.0;
    // Rates are of the time: they follow it.
    let rate = |rate: Option<f64>| rate.map(|rate| rate * low.median_ms / median_ms);
    let between = (rounds[rounds.len() - 1].median_ms - rounds[0].median_ms) / median_ms;
    Some(Measurement {
        dtype: low.dtype.clone(),
        samples: rounds.iter().map(|round| round.samples).sum(),
        median_ms,
        best_ms: rounds
            .iter()
            .map(|round| round.best_ms)
            .fold(f64::INFINITY, f64::min),
        spread: rounds
            .iter()
            .map(|round| round.spread)
            .fold(between, f64::max),
        tokens_per_s: rate(low.tokens_per_s),
        gflops: rate(low.gflops),
        gb_per_s: rate(low.gb_per_s),
        peak_memory_mib: rounds
            .iter()
            .filter_map(|round| round.peak_memory_mib)
            .reduce(f64::max),
    })
}

/// The fastest of several references, each in its rounds.
pub(crate) fn fastest(references: Vec<Vec<Measurement>>) -> Option<Measurement> {
    let combined = references.into_iter().filter_map(combine);
    combined.min_by(|a, b| a.median_ms.total_cmp(&b.median_ms))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn measurement(median_ms: f64) -> Measurement {
        Measurement {
            dtype: "f32".into(),
            samples: 5,
            median_ms,
            best_ms: median_ms,
            spread: 0.01,
            tokens_per_s: Some(1e6 / median_ms),
            gflops: Some(1e4 / median_ms),
            gb_per_s: Some(1e3 / median_ms),
            peak_memory_mib: Some(200.0),
        }
    }

    pub(crate) fn record(suite: &str, case: &str, ours: f64, python: Option<f64>) -> Record {
        Record {
            suite: suite.into(),
            case: case.into(),
            device: "flex".into(),
            peak_gflops: 200.0,
            peak_gb_per_s: 40.0,
            commit: String::new(),
            ours: measurement(ours),
            python: python.map(measurement),
            llama: None,
        }
    }

    #[test]
    fn rounds_become_their_median() {
        assert_eq!(combine(Vec::new()), None);
        assert_eq!(combine(vec![measurement(3.0)]), Some(measurement(3.0)));
        let two = combine(vec![measurement(120.0), measurement(80.0)]).expect("rounds");
        assert_eq!((two.median_ms, two.samples), (100.0, 10));
        assert_eq!(two.tokens_per_s, Some(1e4));
        assert!((two.spread - 0.4).abs() < 1e-12, "{}", two.spread);
        let rounds = [9.0, 7.0, 8.0].map(measurement).to_vec();
        assert_eq!(combine(rounds).map(|m| m.median_ms), Some(8.0));
    }

    #[test]
    fn ratios_need_a_reference() {
        let alone = record("step", "lora", 50.0, None);
        assert_eq!(alone.time_ratio(), None);
        assert_eq!(alone.share_of_peak(), Some(1.0));
        let both = record("step", "lora", 50.0, Some(100.0));
        assert_eq!(both.time_ratio(), Some(0.5));
        assert_eq!(both.throughput_ratio(), Some(2.0));
        assert_eq!(both.memory_ratio(), Some(1.0));
    }

    #[test]
    fn the_fastest_format_of_a_size_is_the_reference() {
        let rounds = |times: [f64; 2]| times.map(measurement).to_vec();
        assert_eq!(fastest(vec![Vec::new()]), None);
        let found = fastest(vec![rounds([5.0, 7.0]), rounds([4.0, 6.0])]);
        assert_eq!(found.map(|found| found.median_ms), Some(5.0));
        let mut record = record("decode", "batch-1", 50.0, None);
        assert_eq!(record.llama_time_ratio(), None);
        record.llama = Some(measurement(40.0));
        assert_eq!(record.llama_time_ratio(), Some(1.25));
        assert_eq!(record.share_of_memory(&record.ours), Some(0.5));
        record.peak_gb_per_s = 0.0;
        assert_eq!(record.share_of_memory(&record.ours), None);
    }

    #[test]
    fn lines_of_both_sides_are_read() {
        let ours = r#"{"case":"lora","device":"cpu","dtype":"f32","gflops":67.5,"median_ms":682.25,"best_ms":680.5,
            "peak_memory_mib":null,"samples":5,"spread":0.5,"suite":"step","tokens_per_s":1500.0}"#;
        let ours: Measurement = serde_json::from_str(ours).expect("a line");
        assert_eq!((ours.gflops, ours.peak_memory_mib), (Some(67.5), None));
        let theirs = r#"{"dtype":"f32","samples":5,"median_ms":1.0,"best_ms":0.9,"spread":0.1,
            "tokens_per_s":1.0,"peak_memory_mib":1400.0}"#;
        let theirs: Measurement = serde_json::from_str(theirs).expect("a line");
        assert_eq!(theirs.gflops, None);
    }
}
