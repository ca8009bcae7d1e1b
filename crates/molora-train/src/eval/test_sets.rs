//! Scores of several test splits of a task, each by itself.

use std::collections::BTreeMap;

use crate::data::metrics::accuracy;
use crate::data::{Split, TokenizedTask};
use crate::report::{Predictions, TestScore};

/// The score of each test split by its name, from what was answered to all records; none where there is one
/// split.
pub(super) fn test_scores(
    task: &TokenizedTask,
    predictions: &Predictions,
) -> BTreeMap<String, TestScore> {
    let mut start = 0;
    let mut score = |(name, count): &(String, usize)| {
        let range = start..start + count;
        start = range.end;
        let (value, right) = score_of(task, predictions, range)?;
        let n = *count;
        Some((
            name.clone(),
            TestScore {
                value,
                accuracy: right,
                n,
            },
        ))
    };
    task.test_sets.iter().filter_map(&mut score).collect()
}

/// Value and accuracy of some records; `None` where nothing was written for them.
fn score_of(
    task: &TokenizedTask,
    predictions: &Predictions,
    range: std::ops::Range<usize>,
) -> Option<(f64, Option<f64>)> {
    let questions = task
        .written
        .as_ref()
        .map(|written| written.questions(Split::Test));
    match predictions {
        Predictions::Classes(classes) => {
            let right: Vec<usize> = match questions {
                Some(questions) => questions.iter().filter_map(|asked| asked.right).collect(),
                None => task.classes(Split::Test),
            };
            let (found, right) = (classes.get(range.clone())?, right.get(range)?);
            let most = right.iter().chain(found).max().map_or(0, |class| class + 1);
            let value = task.metric.score(found, right, most.max(task.labels.len()));
            Some((value, Some(accuracy(found, right))))
        }
        Predictions::Numbers(numbers) => {
            let right = task.numbers(Split::Test);
            let value = task
                .metric
                .score_numbers(numbers.get(range.clone())?, right.get(range)?);
            Some((value, None))
        }
        Predictions::Texts(texts) => {
            let right: Vec<String> = questions?
                .iter()
                .map(|asked| asked.output.clone())
                .collect();
            let value = task
                .metric
                .score_texts(texts.get(range.clone())?, right.get(range)?);
            Some((value, Some(value)))
        }
    }
}
