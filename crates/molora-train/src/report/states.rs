//! Scores of the validation split: how states are compared by them, and which one each part of a run
//! ended with.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::format::percent;
use super::schema::{KeptState, Record, TaskScore, ValidationScore, ValidationScores};

/// The metric that the states of a stage are compared by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateMetric {
    /// The mean of the tasks' scores, each by its own metric.
    #[default]
    MeanScore,
    /// The lowest of the tasks' scores.
    WorstTask,
    /// The mean of the tasks' losses; less is better.
    Loss,
}

impl StateMetric {
    /// Whether `new` is better than `old`.
    pub fn is_better(self, new: f64, old: f64) -> bool {
        match self {
            Self::Loss => new < old,
            Self::MeanScore | Self::WorstTask => new > old,
        }
    }

    /// What it says of scores.
    pub fn of(self, scores: &ValidationScores) -> f64 {
        match self {
            Self::MeanScore => scores.mean_score,
            Self::WorstTask => scores.worst_task,
            Self::Loss => scores.loss,
        }
    }

    /// A value of it: per cent, or nats.
    pub fn text(self, value: f64) -> String {
        match self {
            Self::MeanScore => format!("mean score {} %", percent(value)),
            Self::WorstTask => format!("worst task {} %", percent(value)),
            Self::Loss => format!("loss {value:.4}"),
        }
    }
}

impl ValidationScores {
    /// Those of tasks, without the ones of which no record was scored.
    pub(crate) fn of(tasks: &BTreeMap<String, TaskScore>) -> Self {
        let scored = tasks.iter().filter(|(_, score)| score.n > 0);
        let tasks: BTreeMap<String, ValidationScore> = scored
            .map(|(name, score)| {
                let score = ValidationScore {
                    metric: score.metric.clone(),
                    value: score.value,
                    loss: score.loss.unwrap_or_default(),
                    n: score.n,
                };
                (name.clone(), score)
            })
            .collect();
        let count = tasks.len().max(1) as f64;
        let values = || tasks.values().map(|score| score.value);
        Self {
            mean_score: values().sum::<f64>() / count,
            worst_task: values().fold(f64::INFINITY, f64::min),
            loss: tasks.values().map(|score| score.loss).sum::<f64>() / count,
            tasks,
        }
    }
}

/// The state that each stage, and each expert that trained alone, ended with, in their order: the best
/// one, or the last one if `is_last`.
pub(crate) fn kept_states(records: &[Record], is_last: bool) -> Vec<KeptState> {
    let mut states: Vec<KeptState> = Vec::new();
    for record in records {
        let Record::Validation(record) = record else {
            continue;
        };
        let value = record.metric.of(&record.validation);
        let is_same =
            |state: &&mut KeptState| state.stage == record.stage && state.expert == record.expert;
        match states.last_mut().filter(is_same) {
            Some(state) => {
                state.last_step = record.step;
                if record.is_best || is_last {
                    (state.step, state.value) = (record.step, value);
                }
            }
            None => states.push(KeptState {
                stage: record.stage.clone(),
                expert: record.expert.clone(),
                step: record.step,
                last_step: record.step,
                metric: record.metric,
                value,
            }),
        }
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{SCHEMA_VERSION, ValidationRecord};

    fn scored(step: usize, expert: &str, mean: f64, is_best: bool) -> Record {
        Record::Validation(ValidationRecord {
            version: SCHEMA_VERSION,
            step,
            stage: "experts".into(),
            expert: Some(expert.into()),
            validation: ValidationScores {
                mean_score: mean,
                worst_task: mean,
                loss: 1.0,
                tasks: BTreeMap::new(),
            },
            metric: StateMetric::MeanScore,
            is_best,
            seconds: 0.1,
        })
    }

    #[test]
    fn each_expert_has_its_own_best_state() {
        let records = [
            scored(2, "pets", 0.5, true),
            scored(4, "pets", 0.7, true),
            scored(6, "pets", 0.6, false),
            scored(8, "weather", 0.4, true),
        ];
        let of = |is_last| -> Vec<(usize, usize, f64)> {
            let states = kept_states(&records, is_last);
            states
                .iter()
                .map(|s| (s.step, s.last_step, s.value))
                .collect()
        };
        assert_eq!(of(false), [(4, 6, 0.7), (8, 8, 0.4)]);
        assert_eq!(of(true), [(6, 6, 0.6), (8, 8, 0.4)]);
    }

    #[test]
    fn less_loss_is_better() {
        assert!(StateMetric::Loss.is_better(0.1, 0.2));
        assert!(!StateMetric::Loss.is_better(0.2, 0.2));
        assert!(StateMetric::WorstTask.is_better(0.3, 0.2));
    }

    #[test]
    fn tasks_without_records_do_not_count() {
        let score = |value, loss, n| TaskScore {
            metric: "accuracy".into(),
            value,
            n,
            accuracy: Some(value),
            majority: 0.5,
            loss: Some(loss),
            also: BTreeMap::new(),
            tests: BTreeMap::new(),
        };
        let tasks = [
            ("a", score(0.4, 1.0, 5)),
            ("b", score(0.8, 2.0, 5)),
            ("c", score(0.0, 0.0, 0)),
        ];
        let scores = ValidationScores::of(&tasks.map(|(name, s)| (name.to_owned(), s)).into());
        assert!((StateMetric::MeanScore.of(&scores) - 0.6).abs() < 1e-12);
        assert_eq!(StateMetric::WorstTask.of(&scores), 0.4);
        assert_eq!(StateMetric::Loss.of(&scores), 1.5);
    }
}
