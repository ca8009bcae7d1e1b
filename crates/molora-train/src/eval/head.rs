//! Answers of a head: classes and numbers.

use crate::TrainError;
use crate::data::metrics::{accuracy, pearson, rmse};
use crate::data::{Split, Target, TokenizedTask};
use crate::report::{Predictions, TaskScore};

use super::Pass;

impl Pass<'_> {
    /// The class of the largest logit for every record, scored.
    pub(super) fn classes(&mut self) -> Result<(TaskScore, Predictions), TrainError> {
        let (classes, loss) = self.head_outputs(|row| {
            let best = row.iter().enumerate().max_by(|a, b| {
                // Of equally large logits the first.
                a.1.total_cmp(b.1).then(b.0.cmp(&a.0))
            });
            best.map_or(0, |(class, _)| class)
        })?;
        let mut score = score(self.task, self.split, &classes);
        score.loss = Some(loss);
        Ok((score, Predictions::Classes(classes)))
    }

    /// The number for every record, scored.
    pub(super) fn numbers(&mut self) -> Result<(TaskScore, Predictions), TrainError> {
        let (numbers, loss) = self.head_outputs(|row| f64::from(row[0]))?;
        let mut score = score_numbers(self.task, self.split, &numbers);
        score.loss = Some(loss);
        Ok((score, Predictions::Numbers(numbers)))
    }

    /// What `answer` makes of the head's outputs for every record, and their mean loss.
    pub(super) fn head_outputs<T: Clone + Default>(
        &mut self,
        answer: impl Fn(&[f32]) -> T,
    ) -> Result<(Vec<T>, f64), TrainError> {
        let examples = self.task.split(self.split);
        let mut answers = vec![T::default(); examples.len()];
        let mut losses = vec![0.0; examples.len()];
        let found = self.each_batch(&self.task.lengths(self.split), true, |pass, rows| {
            let (_, input, context) = pass.inputs(rows)?;
            let (pooled, routes) = pass.model.encode(&input, &context);
            let head = pass.model.heads[pass.known.expect("heads are of own tasks")].as_ref();
            let outputs = head
                .expect("a task without text has a head")
                .forward(pooled);
            let width = outputs.dims()[1];
            let outputs: Vec<f32> = outputs.into_data().iter::<f32>().collect();
            for (&row, outputs) in rows.iter().zip(outputs.chunks(width)) {
                let numbers = outputs.iter().map(|&number| f64::from(number));
                pass.check_finite(row, "output of the head", numbers)?;
            }
            Ok((outputs, routes))
        })?;
        for (rows, outputs) in found {
            let width = outputs.len() / rows.len();
            for (row, outputs) in rows.into_iter().zip(outputs.chunks(width)) {
                answers[row] = answer(outputs);
                losses[row] = loss(outputs, &examples[row].target);
            }
        }
        // In the order of the records, whatever the batches were.
        let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        Ok((answers, mean))
    }
}

/// The loss of a head's outputs, as in training: cross-entropy of a class, squared error of a number.
fn loss(outputs: &[f32], target: &Target) -> f64 {
    let outputs = outputs.iter().map(|&output| f64::from(output));
    match target {
        Target::Number(number) => outputs.map(|output| (output - number).powi(2)).sum(),
        Target::Class(class) => {
            let logits: Vec<f64> = outputs.collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            largest + sum.ln() - logits[*class]
        }
        Target::Answer(_) | Target::Text(_) => 0.0,
    }
}

/// Scores predicted classes, one for each record of the split.
pub(crate) fn score(task: &TokenizedTask, split: Split, predictions: &[usize]) -> TaskScore {
    let targets = task.classes(split);
    TaskScore {
        metric: task.metric.to_string(),
        value: task.metric.score(predictions, &targets, task.labels.len()),
        n: targets.len(),
        accuracy: Some(accuracy(predictions, &targets)),
        majority: task.metric.majority_share(&targets, task.labels.len()),
        loss: None,
        also: Default::default(),
        tests: Default::default(),
    }
}

/// Scores predicted numbers, one for each record of the split.
pub(crate) fn score_numbers(task: &TokenizedTask, split: Split, numbers: &[f64]) -> TaskScore {
    let targets = task.numbers(split);
    TaskScore {
        metric: task.metric.to_string(),
        value: task.metric.score_numbers(numbers, &targets),
        n: targets.len(),
        accuracy: None,
        majority: 0.0,
        loss: None,
        also: [
            ("pearson".to_owned(), pearson(numbers, &targets)),
            ("rmse".to_owned(), rmse(numbers, &targets)),
        ]
        .into(),
        tests: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_those_of_training() {
        let even = loss(&[1000.0, 1000.0], &Target::Class(1));
        assert!((even - 2.0_f64.ln()).abs() < 1e-12, "{even}");
        let sure = loss(&[3.0, 1.0], &Target::Class(0));
        assert!((sure - (1.0 + (-2.0_f64).exp()).ln()).abs() < 1e-12);
        assert_eq!(loss(&[1.5], &Target::Number(2.0)), 0.25);
    }
}
