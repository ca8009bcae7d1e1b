//! Evaluation: scores by task, and how the routers shared each task among the experts.
//!
//! Answers of a head are in `head`; of generated ones, candidates are scored in `choice`, and free texts
//! in `generation`.

mod answer;
pub(crate) mod base;
mod choice;
pub(crate) mod frozen;
mod generation;
mod head;
pub(crate) mod oracle;
pub(crate) mod probe;
mod probe_batch;
mod routing;
mod test_sets;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Device;
use molora_models::{ForwardContext, RouteTrace, TaskModel, TextInput};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TrainError;
use crate::collective::{Collective, Local, gather_values, share};
use crate::data::{Batch, Split, TaskKind, TokenizedTask, eval_batches};
use crate::guide::Guide;
use crate::model::inputs_for;
use crate::report::{
    EvalReport, PredictionReport, Predictions, RoutingReport, SCHEMA_VERSION, TaskScore,
};
pub use answer::Answer;
pub(crate) use answer::answers;
pub(crate) use head::{score, score_numbers};
pub(crate) use probe_batch::Probed;
pub use probe_batch::{ProbeOutput, ProbeRecord, ProbeRow};
pub(crate) use routing::layer_of;
use routing::{RoutingSums, site_sums};

/// What the evaluation of a split found.
#[derive(Debug)]
pub struct Evaluation {
    /// Scores of all tasks.
    pub scores: EvalReport,
    /// How the routers shared the tasks.
    pub routing: RoutingReport,
    /// What was answered to every record.
    pub predictions: PredictionReport,
}

/// What is scored, and how.
#[derive(Debug, Clone, Copy)]
pub struct EvalScope<'a> {
    /// The split.
    pub split: Split,
    /// Rows per batch.
    pub batch_size: usize,
    /// Number of tasks that the model was trained on.
    pub num_tasks: usize,
    /// The model's number of each task, `None` for one that it was not trained on; empty where the
    /// tasks are the model's own in its order.
    pub numbers: &'a [Option<usize>],
    /// Places of the tasks that are scored; all if empty.
    pub only: &'a [usize],
    /// Whether answers that are texts are written; if not, they are scored by their probability.
    pub generates: bool,
    /// The ranks that each answer a share of the batches.
    pub collective: &'a dyn Collective,
}

impl EvalScope<'_> {
    /// All of a model's own tasks, by one process.
    pub fn own(split: Split, batch_size: usize, num_tasks: usize) -> Self {
        Self {
            split,
            batch_size,
            num_tasks,
            numbers: &[],
            only: &[],
            generates: true,
            collective: &Local,
        }
    }
}

/// Scores every task on a split, and averages the routers' weights over its real tokens.
///
/// The batches depend on the records' lengths alone, so that the same weights give the same scores
/// to the last bit. `guide` tells the routers about whole sequences. `progress` is called after
/// every batch with the number of its records, and may end the evaluation.
///
/// # Errors
/// A task number out of range, scores that no text can be written by, or what `progress` says.
pub fn evaluate(
    model: &TaskModel,
    tasks: &[TokenizedTask],
    scope: EvalScope<'_>,
    device: &Device,
    guide: Option<&Guide>,
    mut progress: impl FnMut(usize) -> Result<(), TrainError>,
) -> Result<Evaluation, TrainError> {
    let model = model.valid();
    let (mut scores, mut predictions) = (BTreeMap::new(), BTreeMap::new());
    let mut routing = RoutingSums::new(&model);
    for (number, task) in tasks.iter().enumerate() {
        if !scope.only.is_empty() && !scope.only.contains(&number) {
            continue;
        }
        let mut pass = Pass {
            model: &model,
            task,
            number,
            known: scope.numbers.get(number).copied().unwrap_or(Some(number)),
            num_tasks: scope.num_tasks,
            split: scope.split,
            batch_size: scope.batch_size,
            generates: scope.generates,
            collective: scope.collective,
            device,
            guide,
            routing: &mut routing,
            progress: &mut progress,
        };
        let (mut score, predicted) = pass.task()?;
        if scope.split == Split::Test {
            score.tests = test_sets::test_scores(task, &predicted);
        }
        scores.insert(task.name.clone(), score);
        predictions.insert(task.name.clone(), predicted);
    }
    Ok(Evaluation {
        scores: EvalReport::new(scope.split.name(), scores),
        routing: routing.report(),
        predictions: PredictionReport {
            version: SCHEMA_VERSION,
            split: scope.split.name().into(),
            tasks: predictions,
        },
    })
}

/// Refuses numbers of a record, a row of a split, that allow no prediction.
pub(crate) fn check_finite(
    task: &str,
    (split, row): (Split, usize),
    what: &'static str,
    numbers: impl IntoIterator<Item = f64>,
) -> Result<(), TrainError> {
    let broken = numbers.into_iter().find(|number| !number.is_finite());
    match broken {
        None => Ok(()),
        Some(value) => Err(TrainError::ScoreNotFinite {
            task: task.into(),
            record: row + 1,
            split: split.name(),
            what,
            value,
        }),
    }
}

/// The evaluation of one task.
struct Pass<'a> {
    model: &'a TaskModel,
    task: &'a TokenizedTask,
    /// The task's place among those that are scored.
    number: usize,
    /// The model's own number of the task, if it was trained on it.
    known: Option<usize>,
    num_tasks: usize,
    split: Split,
    batch_size: usize,
    generates: bool,
    collective: &'a dyn Collective,
    device: &'a Device,
    guide: Option<&'a Guide>,
    routing: &'a mut RoutingSums,
    progress: &'a mut dyn FnMut(usize) -> Result<(), TrainError>,
}

impl Pass<'_> {
    fn task(&mut self) -> Result<(TaskScore, Predictions), TrainError> {
        match (&self.task.written, self.task.kind) {
            (None, _) if self.known.is_none() => Err(self.no_head()),
            (None, TaskKind::Regression) => self.numbers(),
            (None, _) => self.classes(),
            (Some(written), TaskKind::Generation) => self.texts(written),
            (Some(written), _) => self.choices(written),
        }
    }

    fn no_head(&self) -> TrainError {
        TrainError::Recipe {
            name: "evaluation".into(),
            problems: vec![format!(
                "task {} is {}, which only a head of its own can tell; choose others with --tasks",
                self.task.name, self.task.kind
            )],
        }
    }

    /// Refuses numbers of a record that allow no prediction.
    fn check_finite(
        &self,
        row: usize,
        what: &'static str,
        numbers: impl IntoIterator<Item = f64>,
    ) -> Result<(), TrainError> {
        check_finite(&self.task.name, (self.split, row), what, numbers)
    }

    /// What `answer` finds in each batch of records of these lengths, with the batch's rows; every rank does its share.
    /// What it says of the routers is added to their sums. `counts` says whether the records are done by that.
    fn each_batch<T: Serialize + DeserializeOwned>(
        &mut self,
        lengths: &[usize],
        counts: bool,
        answer: impl Fn(&Self, &[usize]) -> Result<(T, Vec<RouteTrace>), TrainError>,
    ) -> Result<Vec<(Vec<usize>, T)>, TrainError> {
        let batches = eval_batches(lengths, self.batch_size);
        let (rank, ranks) = (self.collective.rank(), self.collective.world_size());
        let (mut own, mut done) = (Vec::new(), 0);
        for rows in &batches[share(batches.len(), rank, ranks)] {
            let (found, routes) = answer(self, rows)?;
            own.push((found, site_sums(&routes)));
            if counts {
                (self.progress)(rows.len())?;
            }
            done += rows.len();
        }
        let all = gather_values(self.collective, own)?.into_iter().flatten();
        if counts && done < lengths.len() {
            (self.progress)(lengths.len() - done)?;
        }
        let mut found = Vec::new();
        for (rows, (answer, sums)) in batches.into_iter().zip(all) {
            self.routing.add(&self.task.name, &sums);
            found.push((rows, answer));
        }
        Ok(found)
    }

    /// The tensors of some records of the split as they were learned, and the context of their pass.
    fn inputs(&self, rows: &[usize]) -> Result<(Batch, TextInput, ForwardContext), TrainError> {
        let examples = self.task.split(self.split);
        let examples: Vec<_> = rows.iter().map(|&row| &examples[row]).collect();
        let batch = Batch::from_examples(&examples);
        let guide = self.guide;
        let guidance = guide.map(|guide| guide.of(&batch.task_ids, rows, self.split, self.device));
        let guidance = guidance.unwrap_or_default();
        let tasks = vec![self.known; batch.rows];
        let (count, device) = (self.num_tasks, self.device);
        let (input, context) = inputs_for(&batch, &tasks, count, None, guidance, device)?;
        Ok((batch, input, context))
    }
}
