//! What a model answers to records, with nothing to compare it with.

use burn::tensor::Device;
use molora_models::TaskModel;

use super::{EvalScope, Pass};
use crate::TrainError;
use crate::data::{TaskKind, TokenizedTask};
use crate::guide::Guide;

use super::choice::normalized;
use super::routing::RoutingSums;

/// What was answered to a record.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The probability of each label of the task, or of each of the record's choices: they sum to 1.
    /// Choices that are written are compared with each other by the probability of the whole text, or what
    /// the recipe divides its logarithm by.
    Chosen(Vec<f64>),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// The answers to all records of a split of the task with this number, in their order; see
/// [`evaluate`](super::evaluate).
///
/// # Errors
/// As [`evaluate`](super::evaluate).
pub(crate) fn answers(
    model: &TaskModel,
    (number, task): (usize, &TokenizedTask),
    scope: EvalScope<'_>,
    device: &Device,
    guide: Option<&Guide>,
) -> Result<Vec<Answer>, TrainError> {
    let mut pass = Pass {
        model,
        task,
        number,
        known: Some(number),
        num_tasks: scope.num_tasks,
        split: scope.split,
        batch_size: scope.batch_size,
        generates: true,
        collective: scope.collective,
        device,
        guide,
        routing: &mut RoutingSums::new(model),
        progress: &mut |_| Ok(()),
    };
    Ok(match (&task.written, task.kind) {
        (None, TaskKind::Regression) => {
            let (numbers, _) = pass.head_outputs(|row| f64::from(row[0]))?;
            numbers.into_iter().map(Answer::Number).collect()
        }
        (None, _) => {
            let (chosen, _) = pass.head_outputs(|row| {
                let logits: Vec<f64> = row.iter().map(|&logit| logit.into()).collect();
                softmax(&logits)
            })?;
            chosen.into_iter().map(Answer::Chosen).collect()
        }
        (Some(written), TaskKind::Generation) => {
            let texts = pass.answers(written, written.questions(scope.split))?;
            texts.into_iter().map(Answer::Text).collect()
        }
        (Some(written), _) => {
            let questions = written.questions(scope.split);
            let scores = pass.scores(questions)?;
            let by = written.writing.normalize;
            let asked = questions.iter().zip(&scores);
            let chosen = asked.map(|(question, scores)| {
                Answer::Chosen(softmax(&normalized(question, scores, by)))
            });
            chosen.collect()
        }
    })
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials = scores.iter().map(|score| (score - largest).exp());
    let sum: f64 = exponentials.clone().sum();
    exponentials.map(|value| value / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_however_large_the_scores_are() {
        let found = softmax(&[1000.0, 1000.0 + 3.0_f64.ln()]);
        assert!((found[0] - 0.25).abs() < 1e-12 && (found[1] - 0.75).abs() < 1e-12);
        let far = softmax(&[-1e6, 0.0]);
        assert_eq!(far, [0.0, 1.0]);
    }
}
