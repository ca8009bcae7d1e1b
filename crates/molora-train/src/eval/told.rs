//! Answers that a head tells: classes and numbers.

use crate::TrainError;
use crate::data::metrics::{accuracy, pearson, rmse};
use crate::data::{Split, Target, TokenizedTask, eval_batches};
use crate::report::{Predictions, TaskScore};

use super::Pass;

impl Pass<'_> {
    /// The class of the largest logit for every record, scored.
    pub(super) fn classes(&mut self) -> Result<(TaskScore, Predictions), TrainError> {
        let classes = self.told(|row| {
            let best = row.iter().enumerate().max_by(|a, b| {
                // Of equally large logits the first.
                a.1.total_cmp(b.1).then(b.0.cmp(&a.0))
            });
            best.map_or(0, |(class, _)| class)
        })?;
        Ok((
            score(self.task, self.split, &classes),
            Predictions::Classes(classes),
        ))
    }

    /// The number for every record, scored.
    pub(super) fn numbers(&mut self) -> Result<(TaskScore, Predictions), TrainError> {
        let numbers = self.told(|row| f64::from(row[0]))?;
        let number = |target: &Target| match target {
            Target::Number(number) => Some(*number),
            _ => None,
        };
        let examples = self.task.split(self.split).iter();
        let targets: Vec<f64> = examples.filter_map(|e| number(&e.target)).collect();
        let metric = &self.task.metric;
        let score = TaskScore {
            metric: metric.to_string(),
            value: metric.score_numbers(&numbers, &targets),
            n: targets.len(),
            accuracy: None,
            majority: 0.0,
            also: [
                ("pearson".to_owned(), pearson(&numbers, &targets)),
                ("rmse".to_owned(), rmse(&numbers, &targets)),
            ]
            .into(),
        };
        Ok((score, Predictions::Numbers(numbers)))
    }

    /// What `answer` makes of the head's outputs for every record.
    fn told<T: Clone + Default>(
        &mut self,
        answer: impl Fn(&[f32]) -> T,
    ) -> Result<Vec<T>, TrainError> {
        let mut answers = vec![T::default(); self.task.split(self.split).len()];
        for rows in eval_batches(&self.task.lengths(self.split), self.batch_size) {
            let (_, input, context) = self.inputs(&rows)?;
            let (pooled, routes) = self.model.encode(&input, &context);
            let head = self.model.heads[self.known.expect("heads are of own tasks")].as_ref();
            let outputs = head
                .expect("a task without text has a head")
                .forward(pooled);
            let width = outputs.dims()[1];
            let outputs: Vec<f32> = outputs.into_data().iter::<f32>().collect();
            for (&row, outputs) in rows.iter().zip(outputs.chunks(width)) {
                let numbers = outputs.iter().map(|&number| f64::from(number));
                self.check_finite(row, "output of the head", numbers)?;
                answers[row] = answer(outputs);
            }
            self.routing.add(&self.task.name, &routes);
            (self.progress)(rows.len());
        }
        Ok(answers)
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
        also: Default::default(),
    }
}
