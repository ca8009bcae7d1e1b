//! Evaluation: scores by task, and how the routers shared each task among the experts.
//!
//! Answers that a head tells are in `told`; of those that are written, candidates are scored in
//! `choose`, and free texts in `write`.

mod choose;
pub mod metrics;
mod routing;
mod told;
mod write;

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Device;
use molora_models::{ForwardContext, TaskModel, TextInput};

use crate::TrainError;
use crate::data::{Batch, Split, TaskKind, TokenizedTask};
use crate::instructions::Guide;
use crate::report::{
    EvalReport, PredictionReport, Predictions, RoutingReport, SCHEMA_VERSION, TaskScore,
};
use crate::step::inputs;
use routing::Routing;
pub(crate) use told::score;

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

/// Scores every task on a split, and averages the routers' weights over its real tokens.
///
/// The batches depend on the records' lengths alone, so that the same weights give the same scores
/// to the last bit. `guide` tells the routers about whole sequences. `progress` is called with the
/// number of records done.
///
/// # Errors
/// A task number out of range, or scores that no text can be written by.
pub fn evaluate(
    model: &TaskModel,
    tasks: &[TokenizedTask],
    split: Split,
    batch_size: usize,
    device: &Device,
    guide: Option<&Guide>,
    mut progress: impl FnMut(usize),
) -> Result<Evaluation, TrainError> {
    let model = model.valid();
    let (mut scores, mut predictions) = (BTreeMap::new(), BTreeMap::new());
    let mut routing = Routing::new(&model);
    for (number, task) in tasks.iter().enumerate() {
        let mut pass = Pass {
            model: &model,
            task,
            number,
            num_tasks: tasks.len(),
            split,
            batch_size,
            device,
            guide,
            routing: &mut routing,
            progress: &mut progress,
        };
        let (score, predicted) = pass.task()?;
        scores.insert(task.name.clone(), score);
        predictions.insert(task.name.clone(), predicted);
    }
    Ok(Evaluation {
        scores: EvalReport::new(split.name(), scores),
        routing: routing.report(),
        predictions: PredictionReport {
            version: SCHEMA_VERSION,
            split: split.name().into(),
            tasks: predictions,
        },
    })
}

/// The evaluation of one task.
struct Pass<'a> {
    model: &'a TaskModel,
    task: &'a TokenizedTask,
    number: usize,
    num_tasks: usize,
    split: Split,
    batch_size: usize,
    device: &'a Device,
    guide: Option<&'a Guide>,
    routing: &'a mut Routing,
    progress: &'a mut dyn FnMut(usize),
}

impl Pass<'_> {
    fn task(&mut self) -> Result<(TaskScore, Predictions), TrainError> {
        match (&self.task.written, self.task.kind) {
            (None, TaskKind::Regression) => self.numbers(),
            (None, _) => self.classes(),
            (Some(written), TaskKind::Generation) => self.texts(written),
            (Some(written), _) => self.choices(written),
        }
    }

    /// The tensors of some records of the split as they were learned, and the context of their pass.
    fn inputs(&self, rows: &[usize]) -> Result<(Batch, TextInput, ForwardContext), TrainError> {
        let examples = self.task.split(self.split);
        let examples: Vec<_> = rows.iter().map(|&row| &examples[row]).collect();
        let batch = Batch::from_examples(&examples);
        let guide = self.guide;
        let guidance = guide.map(|guide| guide.of(&batch.task_ids, rows, self.device));
        let guidance = guidance.unwrap_or_default();
        let (input, context) = inputs(&batch, self.num_tasks, None, guidance, self.device)?;
        Ok((batch, input, context))
    }
}
