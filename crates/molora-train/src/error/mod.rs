//! What can go wrong in a run.

mod growth;
mod problem;

use std::path::PathBuf;

use molora_adapters::AdapterError;
use molora_models::{GenerateError, ModelError};

use crate::collective::CollectiveError;
use crate::data::{ChatError, DataError};
use crate::hub::HubError;
use crate::report::ReportError;

pub use growth::GrowthProblem;
pub use problem::RunProblem;

/// A failure of a run, each as one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// No recipe or file of that name.
    #[error("no recipe `{name}`; there are: {known}{hint}")]
    NoSuchRecipe {
        /// What was asked for.
        name: String,
        /// All recipes.
        known: String,
        /// A near name, if there is one.
        hint: String,
    },
    /// A recipe or the configuration of a run cannot be read.
    #[error("{place}: {problem}")]
    RecipeText {
        /// File and line, or the override.
        place: String,
        /// What was found and expected.
        problem: String,
    },
    /// A recipe's values are out of range or do not go together.
    #[error("recipe `{name}`: {}", problems.join("; "))]
    Recipe {
        /// The recipe.
        name: String,
        /// All problems, each with the path of its field.
        problems: Vec<String>,
    },
    /// Options of a merge that are out of range or do not go together.
    #[error("combine --how {how}: {problem}")]
    Combine {
        /// Name of the method.
        how: &'static str,
        /// What was found and expected.
        problem: String,
    },
    /// A problem with a model or an adapter.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A problem with a model on the Hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A base model that is neither here nor on the Hub.
    #[error("{name}: no such folder here, and as a model on the Hub: {source}")]
    NoModel {
        /// What was asked for.
        name: String,
        /// Why the Hub does not give it.
        source: Box<HubError>,
    },
    /// A problem with a chat template.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// A prompt that nothing can be generated from.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A problem with tasks.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A problem with a report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A problem with a task number.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A file or folder cannot be read or written; the text names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A run folder cannot be used as asked.
    #[error("{}: {problem}", path.display())]
    Run {
        /// The folder or file.
        path: PathBuf,
        /// What was found and expected.
        problem: RunProblem,
    },
    /// An instruction that experts would be compared by is missing.
    #[error(
        "task {task} has no instruction in its task.json, expected a sentence that its expert is \
         compared by"
    )]
    NoInstruction {
        /// The task.
        task: String,
    },
    /// A query without text.
    #[error("the query is empty")]
    EmptyQuery,
    /// A device that was not compiled in or does not answer.
    #[error("device {device}: {problem}")]
    Device {
        /// What was asked for.
        device: String,
        /// Why it cannot be had.
        problem: String,
    },
    /// The ranks of a run cannot exchange data.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The loss stopped being a number.
    #[error("step {step}: the {what} is {value}; {advice}")]
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// Which number.
        what: String,
        /// What it is.
        value: f64,
        /// Where the last good state is.
        advice: String,
    },
    /// A guard stopped the run, whose state is kept.
    #[error(
        "{text}; molora train --resume {} goes on from there",
        run.display()
    )]
    Guard {
        /// What it saw.
        text: String,
        /// The run folder.
        run: PathBuf,
    },
    /// Scores of which none can be chosen.
    #[error(
        "task {task}, record {record} of the {split} split: the {what} is {value}, expected finite \
         numbers; the model's weights or what was added to them are broken"
    )]
    ScoreNotFinite {
        /// The task.
        task: String,
        /// The record within the split, from 1.
        record: usize,
        /// Name of the split.
        split: &'static str,
        /// Which number.
        what: &'static str,
        /// What it is.
        value: f64,
    },
    /// The user cancelled what cannot be resumed.
    #[error("stopped; nothing was written")]
    Stopped,
    /// The user cancelled.
    #[error("stopped after step {step}; continue with: molora train --resume {}", run.display())]
    Interrupted {
        /// The last finished step.
        step: usize,
        /// The run folder.
        run: PathBuf,
    },
    /// The user cancelled while an expert was added.
    #[error(
        "stopped after step {step}; {} is as it was; go on with the same command", run.display()
    )]
    GrowthInterrupted {
        /// The last finished step.
        step: usize,
        /// The run folder.
        run: PathBuf,
    },
}

impl TrainError {
    pub(crate) fn run(path: &std::path::Path, problem: impl Into<RunProblem>) -> Self {
        Self::Run {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    /// That something looks at all training records, of a run whose data are streamed.
    pub(crate) fn streamed(what: &str) -> Self {
        Self::run(std::path::Path::new(what), RunProblem::Streamed)
    }

    pub(crate) fn json(path: &std::path::Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::run(&path, RunProblem::from(error))
    }

    pub(crate) fn optimizer<E: ToString>(path: &std::path::Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |error| Self::run(&path, RunProblem::Optimizer(error.to_string()))
    }
}
