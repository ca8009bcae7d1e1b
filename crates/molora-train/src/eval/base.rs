//! What a base model is worth without adapters: the floor under a run's scores.
//!
//! Where a head predicts the answers, that is a linear probe of the model's pooled states, fitted on the
//! training split with the penalty that does best on the validation split: what a head alone gives. A
//! generative model is prompted as it is.

use burn::tensor::Device;
use molora_models::TaskModel;

use super::frozen::Frozen;
use super::probe::Fitted;
use super::{EvalScope, evaluate, score, score_numbers};
use crate::TrainError;
use crate::data::{Split, TaskKind, TokenizedTask};
use crate::report::{BaseWay, Predictions, TaskScore};

/// A probe is fitted on so many records at most: more of them hardly move it.
pub(crate) const PROBE_RECORDS: usize = 3000;
/// Its penalty is chosen on so many records at most.
pub(crate) const PENALTY_RECORDS: usize = 500;

/// What a base model answers to a task.
#[derive(Debug, Clone)]
pub(crate) struct BaseAnswers {
    pub(crate) way: BaseWay,
    pub(crate) score: TaskScore,
    pub(crate) predictions: Predictions,
}

/// How a base model is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BaseScope<'a> {
    pub(crate) split: Split,
    pub(crate) batch_size: usize,
    pub(crate) device: &'a Device,
}

/// The answers of a model that has neither adapters nor heads to the records of a split. `progress` is
/// called with the number of records done and their number in all, and may end the
/// evaluation.
///
/// # Errors
/// [`TrainError::ScoreNotFinite`] for outputs that allow no prediction; what `progress` says.
pub(crate) fn ask_base(
    model: &TaskModel,
    task: &TokenizedTask,
    scope: BaseScope<'_>,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), TrainError>,
) -> Result<BaseAnswers, TrainError> {
    match task.written {
        Some(_) => plain(model, task, scope, progress),
        None => head(model, task, scope, progress),
    }
}

/// The model as it is.
fn plain(
    model: &TaskModel,
    task: &TokenizedTask,
    scope: BaseScope<'_>,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), TrainError>,
) -> Result<BaseAnswers, TrainError> {
    let asked = EvalScope {
        numbers: &[None],
        ..EvalScope::own(scope.split, scope.batch_size, 1)
    };
    let total = task.split(scope.split).len();
    let mut done = 0;
    let tasks = std::slice::from_ref(task);
    let mut found = evaluate(model, tasks, asked, scope.device, None, |records| {
        done += records;
        progress(done, total)
    })?;
    let score = found.scores.tasks.remove(&task.name);
    let predictions = found.predictions.tasks.remove(&task.name);
    Ok(BaseAnswers {
        way: BaseWay::Plain,
        score: score.expect("the task is scored"),
        predictions: predictions.expect("the task is answered"),
    })
}

/// A probe in the place of a head.
fn head(
    model: &TaskModel,
    task: &TokenizedTask,
    scope: BaseScope<'_>,
    progress: &mut dyn FnMut(usize, usize) -> Result<(), TrainError>,
) -> Result<BaseAnswers, TrainError> {
    let frozen = Frozen {
        model,
        num_tasks: 1,
        batch_size: scope.batch_size,
        device: scope.device,
        place: 0,
        known: None,
    };
    let limits = [
        (Split::Train, PROBE_RECORDS),
        (Split::Validation, PENALTY_RECORDS),
        (scope.split, usize::MAX),
    ];
    let rows = limits.map(|(split, limit)| task.places(split, limit));
    let total = rows.iter().map(Vec::len).sum();
    let mut done = 0;
    let mut pooled = |number: usize| {
        frozen.pooled(
            (task, limits[number].0),
            &rows[number],
            None,
            &mut |count| {
                done += count;
                progress(done, total)
            },
        )
    };
    let (train, validation, scored) = (pooled(0)?, pooled(1)?, pooled(2)?);
    let probe = Fitted::of(task, (&train, &rows[0]), (&validation, &rows[1])).probe;
    let (score, predictions) = match task.kind {
        TaskKind::Regression => {
            let numbers = probe.numbers(&scored);
            let score = score_numbers(task, scope.split, &numbers);
            (score, Predictions::Numbers(numbers))
        }
        _ => {
            let classes = probe.predict(&scored);
            let score = score(task, scope.split, &classes);
            (score, Predictions::Classes(classes))
        }
    };
    Ok(BaseAnswers {
        way: BaseWay::Head,
        score,
        predictions,
    })
}
