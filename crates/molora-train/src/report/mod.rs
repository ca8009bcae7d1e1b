//! What a run reports: records on disk, tables for the terminal, and a self-contained HTML page.
//!
//! [`schema`] holds the records; everything else only reads or writes them.

pub mod schema;

pub use schema::{
    EvalReport, ParameterCounts, RoutingReport, RunSummary, SCHEMA_VERSION, SiteRouting,
    StepRecord, TaskScore,
};
