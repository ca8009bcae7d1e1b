//! What a run reports: records on disk, tables for the terminal, and a self-contained HTML page.
//!
//! [`schema`] holds the records; everything else only reads or writes them.

pub mod schema;

mod chart;
mod details;
mod error;
pub(crate) mod format;
mod idle;
mod page;
mod routing;
#[cfg(test)]
pub(crate) mod sample;
mod states;
mod statistics;
pub(crate) mod table;
mod writer;

pub use details::{
    BaseReport, BaseWay, ExampleAnswer, ExampleKind, ExampleReport, ExpertReport, ExpertSimilarity,
    SentenceRouting, TokenWeights,
};
pub use error::ReportError;
pub use format::thousands;
pub use idle::{IDLE_SHARE, idle_summary};
pub use page::render;
pub use schema::{
    EvalReport, KeptState, ParameterCounts, PredictionReport, Predictions, Record, RoutingReport,
    RunSummary, SCHEMA_VERSION, SiteRouting, SplitSizes, StepRecord, TaskScore, ValidationRecord,
    ValidationScore, ValidationScores,
};
pub use states::StateMetric;
pub(crate) use states::kept_states;
pub use statistics::{CONFIDENCE, Gain, RESAMPLES, Spread, Verdict};
pub use table::{summary_table, task_table, total_table};
pub use writer::{StepWriter, peak_memory_bytes, read_records, read_steps, truncate_after};
