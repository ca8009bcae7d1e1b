//! Timing.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use molora_models::BaseDtype;
use serde_json::json;

/// Samples that are taken at least.
const MIN_SAMPLES: usize = 5;
/// Runs before the first sample: threads wake up, buffers are allocated, kernels are compiled.
const WARM_UP: usize = 2;

/// How long a case is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) seconds: f64,
}

/// A measured case.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Type of the frozen matrices.
    pub(crate) dtype: BaseDtype,
    /// Seconds of each run, ascending.
    pub(crate) samples: Vec<f64>,
    /// Tokens that a run goes through.
    pub(crate) tokens: Option<f64>,
    /// Floating-point operations of a run's matrix products, a multiplication with an addition
    /// counted as two: those that the task needs, not those that an implementation repeats.
    pub(crate) flops: Option<f64>,
    /// Bytes of weights that a run reads, each once for every pass.
    pub(crate) bytes: Option<f64>,
}

impl Measured {
    pub(crate) fn new(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self {
            dtype: BaseDtype::F32,
            samples,
            tokens: None,
            flops: None,
            bytes: None,
        }
    }

    /// The value below which this share of the samples lies.
    fn quantile(&self, share: f64) -> f64 {
        let last = self.samples.len() - 1;
        self.samples[(share * last as f64).round() as usize]
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        let median = self.quantile(0.5);
        json!({
            "dtype": self.dtype.name(),
            "samples": self.samples.len(),
            "median_ms": median * 1e3,
            "best_ms": self.samples[0] * 1e3,
            // The middle half of the samples as a share of the median.
            "spread": (self.quantile(0.75) - self.quantile(0.25)) / median,
            "tokens_per_s": self.tokens.map(|tokens| tokens / median),
            "gflops": self.flops.map(|flops| flops / median / 1e9),
            "gb_per_s": self.bytes.map(|bytes| bytes / median / 1e9),
        })
    }
}

/// Times `run` until `effort` is spent; the device has done its work when a sample ends.
pub(crate) fn time(
    effort: Effort,
    device: &Device,
    mut run: impl FnMut() -> Result<()>,
) -> Result<Measured> {
    let mut sample = || -> Result<f64> {
        let start = Instant::now();
        run()?;
        device.sync().context("the device stopped")?;
        Ok(start.elapsed().as_secs_f64())
    };
    for _ in 0..WARM_UP {
        sample()?;
    }
    let (start, mut samples) = (Instant::now(), Vec::new());
    while samples.len() < MIN_SAMPLES || start.elapsed().as_secs_f64() < effort.seconds {
        samples.push(sample()?);
    }
    Ok(Measured::new(samples))
}
