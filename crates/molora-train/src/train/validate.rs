//! Scores on the validation split while a stage trains, and which of its states is the best.

use std::time::Instant;

use molora_models::TaskModel;

use super::Setup;
use crate::TrainError;
use crate::data::{Split, TokenizedTask};
use crate::eval::{EvalScope, evaluate};
use crate::guide::Guide;
use crate::recipe::Phase;
use crate::report::{SCHEMA_VERSION, StateMetric, ValidationRecord, ValidationScores};
use crate::store::checkpoint::{Best, Progress};

/// Whether the state after step `phase_step` of a phase is scored.
pub(super) fn is_due(setup: &Setup<'_>, phase: &Phase, phase_step: usize) -> bool {
    let writes = setup.base.0.writes();
    let interval = setup.recipe.validation.interval(phase.steps, writes);
    let has_records = |&task: &usize| !setup.tasks[task].validation.is_empty();
    let is_due = |interval| phase_step.is_multiple_of(interval) || phase_step == phase.steps;
    interval.is_some_and(is_due) && phase.tasks.iter().any(has_records)
}

/// The tasks with the records that a phase's states are scored on.
pub(super) fn parts(setup: &Setup<'_>, phase: &Phase) -> Vec<TokenizedTask> {
    let examples = phase
        .steps
        .saturating_mul(setup.recipe.data.sampling.batch_size);
    let writes = setup.base.0.writes();
    let config = &setup.recipe.validation;
    let limit = config.records(writes, examples, phase.tasks.len());
    let part = |(number, task): (usize, &TokenizedTask)| match phase.tasks.contains(&number) {
        true => task.validation_part(limit),
        false => task.validation_part(0),
    };
    setup.tasks.iter().enumerate().map(part).collect()
}

/// Scores a model on the tasks that a phase trains on, and notes whether it is the best so far.
pub(super) fn score(
    setup: &Setup<'_>,
    phase: &Phase,
    model: &TaskModel,
    guide: Option<&Guide>,
    progress: &mut Progress,
) -> Result<ValidationRecord, TrainError> {
    let start = Instant::now();
    let scope = EvalScope {
        only: &phase.tasks,
        generates: setup.recipe.validation.generate,
        collective: setup.collective,
        ..EvalScope::own(
            Split::Validation,
            setup.recipe.data.eval_batch_size,
            setup.tasks.len(),
        )
    };
    let found = evaluate(
        model,
        &parts(setup, phase),
        scope,
        setup.device,
        guide,
        |_| Ok(()),
    )?;
    let validation = ValidationScores::of(&found.scores.tasks);
    let metric = setup.recipe.checkpoint.metric;
    let value = metric.of(&validation);
    let is_best = note(progress, metric, value, setup.recipe.checkpoint.keep_best);
    let stage = &setup.stages[phase.stage];
    let seconds = start.elapsed().as_secs_f64();
    progress.validation_seconds += seconds;
    Ok(ValidationRecord {
        version: SCHEMA_VERSION,
        step: progress.step,
        stage: stage.name.clone(),
        expert: phase.expert.map(|task| setup.tasks[task].name.clone()),
        validation,
        metric,
        is_best,
        seconds,
    })
}

/// Puts the state of now among the best of its phase; whether it is the very best. Of equally good ones
/// the earlier is better.
fn note(progress: &mut Progress, metric: StateMetric, value: f64, keep_best: usize) -> bool {
    let step = progress.step;
    let best = &mut progress.best;
    let place = best
        .iter()
        .position(|old| metric.is_better(value, old.value));
    let place = place.unwrap_or(best.len());
    best.insert(place, Best { step, value });
    best.truncate(keep_best.max(1));
    let is_best = place == 0;
    progress.since_best = match is_best {
        true => 0,
        false => progress.since_best + 1,
    };
    is_best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equally_good_states_is_the_best() {
        let mut progress = Progress::default();
        let mut note = |step, value| {
            progress.step = step;
            let is_best = note(&mut progress, StateMetric::MeanScore, value, 2);
            (is_best, progress.since_best)
        };
        assert_eq!(note(1, 0.5), (true, 0));
        assert_eq!(note(2, 0.5), (false, 1));
        assert_eq!(note(3, 0.4), (false, 2));
        assert_eq!(note(4, 0.6), (true, 0));
        let steps: Vec<usize> = progress.best.iter().map(|best| best.step).collect();
        assert_eq!(steps, [4, 1]);
    }
}
