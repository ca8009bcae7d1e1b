//! Reading the finished runs of a comparison.

use std::path::Path;

use super::error::CompareError;
use super::plan::Plan;
use super::run_folder;
use crate::data::{Label, Record, Task};
use crate::report::{
    BaseReport, EvalReport, PredictionReport, Predictions, RoutingReport, RunSummary, read_json,
};
use crate::store::{EVAL, PREDICTIONS, ROUTING, SUMMARY, read_base};

/// One finished run.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) eval: EvalReport,
    pub(super) routing: RoutingReport,
    pub(super) summary: RunSummary,
    /// What the base model alone is worth, if that was measured.
    pub(super) base: Option<BaseReport>,
    /// Whether each test record was right, by task in the plan's order.
    pub(super) right: Vec<Vec<bool>>,
}

/// The finished runs by recipe and seed.
pub(super) fn read_all(
    plan: &Plan,
    out: &Path,
    tasks: &[Task],
) -> Result<Vec<Vec<Outcome>>, CompareError> {
    let runs_of = |recipe: &str| {
        (0..plan.seeds)
            .map(|seed| read(&run_folder(out, recipe, seed), tasks))
            .collect()
    };
    plan.recipes.iter().map(|r| runs_of(&r.name)).collect()
}

fn read(folder: &Path, tasks: &[Task]) -> Result<Outcome, CompareError> {
    let eval: EvalReport = read_json(&folder.join(EVAL))?;
    let path = folder.join(PREDICTIONS);
    let predictions: PredictionReport = read_json(&path)?;
    let right = tasks
        .iter()
        .map(|task| right(task, &eval, &predictions, &path))
        .collect::<Result<_, _>>()?;
    Ok(Outcome {
        eval,
        routing: read_json(&folder.join(ROUTING))?,
        summary: read_json(&folder.join(SUMMARY))?,
        base: read_base(folder)?,
        right,
    })
}

/// Which test records of a task were right, if that gives the accuracy that the run wrote.
fn right(
    task: &Task,
    eval: &EvalReport,
    predictions: &PredictionReport,
    path: &Path,
) -> Result<Vec<bool>, CompareError> {
    let name = &task.meta.name;
    let refuse = |problem: String| CompareError::folder(path, format!("task {name}: {problem}"));
    let answers = predictions.tasks.get(name);
    let answers = answers.ok_or_else(|| refuse("not there".into()))?;
    let score = eval.tasks.get(name);
    let score = score.ok_or_else(|| refuse("not in eval.json".into()))?;
    let right = are_right(task, answers).ok_or_else(|| refuse(no_right_answers()))?;
    if right.len() != task.test.len() {
        let (found, expected) = (right.len(), task.test.len());
        return Err(refuse(format!(
            "{found} predictions, expected one for each of {expected} test records"
        )));
    }
    let hits = right.iter().filter(|&&is_right| is_right).count();
    let accuracy = hits as f64 / right.len().max(1) as f64;
    let written = score.accuracy.ok_or_else(|| refuse(no_right_answers()))?;
    if (accuracy - written).abs() > 1e-9 {
        return Err(refuse(format!(
            "accuracy {accuracy} on today's test records, {written} in eval.json: the data have \
             changed"
        )));
    }
    Ok(right)
}

fn no_right_answers() -> String {
    "its answers are not simply right or wrong, so runs cannot be compared by them".into()
}

/// Which answers are right; `None` where an answer is a number or none was written.
fn are_right(task: &Task, answers: &Predictions) -> Option<Vec<bool>> {
    match answers {
        Predictions::Classes(classes) => {
            let pairs = classes.iter().zip(&task.test);
            Some(
                pairs
                    .map(|(&class, record)| record.label == Label::Index(class))
                    .collect(),
            )
        }
        Predictions::Texts(texts) if !texts.is_empty() => {
            let metric = task.meta.metric.as_ref()?;
            let is_right = |(text, record): (&String, &Record)| {
                let (text, right) = (std::slice::from_ref(text), [record.output.clone()]);
                metric.score_texts(text, &right) > 0.5
            };
            Some(texts.iter().zip(&task.test).map(is_right).collect())
        }
        Predictions::Texts(_) | Predictions::Numbers(_) => None,
    }
}
