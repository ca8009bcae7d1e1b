//! Which state each part of a run ended with, from its records.

use super::schema::{KeptState, Record, ValidationRecord};

/// The state that each stage, and each expert that trained alone, ended with, in their order: the best
/// one, or the last one if `is_last`.
pub(crate) fn kept_states(records: &[Record], is_last: bool) -> Vec<KeptState> {
    let mut states: Vec<KeptState> = Vec::new();
    for record in records {
        let Record::Validation(record) = record else {
            continue;
        };
        let is_same =
            |state: &&mut KeptState| state.stage == record.stage && state.expert == record.expert;
        match states.last_mut().filter(is_same) {
            Some(state) => {
                state.last_step = record.step;
                if record.is_best || is_last {
                    (state.step, state.value) = (record.step, value(record));
                }
            }
            None => states.push(KeptState {
                stage: record.stage.clone(),
                expert: record.expert.clone(),
                step: record.step,
                last_step: record.step,
                metric: record.metric.clone(),
                value: value(record),
            }),
        }
    }
    states
}

/// What states are compared by.
fn value(record: &ValidationRecord) -> f64 {
    let scores = &record.validation;
    match &record.metric[..] {
        "loss" => scores.loss,
        "worst_task" => scores.worst_task,
        _ => scores.mean_score,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::report::{SCHEMA_VERSION, ValidationScores};

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
            metric: "mean_score".into(),
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
}
