//! Evaluation: scores by task, and how the routers shared each task among the experts.

mod classify;
pub mod metrics;

pub(crate) use classify::score;
pub use classify::{Evaluation, evaluate};
