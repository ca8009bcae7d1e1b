//! What a run reports: records on disk, tables for the terminal, and a self-contained HTML page.
//!
//! `schema` holds the records; everything else only reads or writes them.

mod schema;

mod acts;
mod answers;
mod chart;
mod comparable;
pub(crate) mod comparison;
mod details;
mod dry_run;
mod error;
mod experts;
pub(crate) mod format;
mod idle;
mod micro_batch;
mod page;
mod palette;
mod reader;
mod routing;
#[cfg(test)]
pub(crate) mod sample;
mod scatter;
mod scores;
mod series;
pub(crate) mod standing;
mod states;
mod statistics;
pub(crate) mod table;
mod template;
mod tensorboard;
mod training;
mod writer;

pub use acts::{GuardAct, GuardDone, GuardRecord};
pub(crate) use comparable::BASE_FILES;
pub(crate) use comparison::{ComparedRun, PlainTable, render_comparison};
pub use details::{
    BaseReport, BaseWay, ExampleAnswer, ExampleKind, ExampleReport, ExpertReport, ExpertSimilarity,
    SentenceRouting, TestScore, TokenWeights,
};
pub use dry_run::{DryRun, SiteSize, StageCost, TaskSize, dry_run_table};
pub use error::ReportError;
pub use format::thousands;
pub(crate) use idle::IDLE_SHARE;
pub use idle::idle_summary;
pub use micro_batch::MicroBatch;
pub use page::{Page, render};
pub use reader::read_json;
pub(crate) use reader::read_json_if_there;
pub use schema::{
    EvalReport, KeptState, ParameterCounts, PredictionReport, Predictions, Record, RoutingReport,
    RunSummary, SCHEMA_VERSION, SiteRouting, SplitSizes, StepRecord, TaskScore, ValidationRecord,
    ValidationScore, ValidationScores,
};
pub use states::StateMetric;
pub(crate) use states::kept_states;
pub(crate) use statistics::{CONFIDENCE, RESAMPLES};
pub use statistics::{Gain, Spread, Verdict};
pub use table::{summary_table, task_table, total_table};
pub(crate) use writer::StepWriter;
pub(crate) use writer::truncate_after;
pub use writer::{peak_memory_bytes, read_records, read_steps};
