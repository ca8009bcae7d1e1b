//! Evaluation: what a trained model is worth on a test split.

pub mod metrics;

pub use metrics::{Metric, MetricError};
