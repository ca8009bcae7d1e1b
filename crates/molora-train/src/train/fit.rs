//! The largest micro-batch of each stage that a limit of memory has room for.

use std::path::Path;
use std::sync::atomic::Ordering;

use molora_models::{Backbone, TaskModel};

use super::event::Event;
use super::rehearsal::{is_longest, largest_batch};
use super::setup::Setup;
use super::trainer::{Start, State};
use crate::TrainError;
use crate::data::Split;
use crate::data::sampler::Pick;
use crate::error::RunProblem;
use crate::eval::{EvalScope, evaluate};
use crate::recipe::Phase;
use crate::report::{MicroBatch, format::thousands, peak_memory_bytes};

/// Finds the largest micro-batch of each stage with which the process stays below `limit` bytes of resident
/// memory, by steps in the folder of `setup`, and then as many rows as scores of validation and `scored`
/// split may compute at once; what `setup` says about either is not read, but for the most rows of scores.
///
/// Sizes are tried from one row on, since the peak of a process never falls: powers of two, and the whole
/// batch. From the third on a size is only tried if the two before it, continued in a straight line, leave
/// room for it. A size is tried on the longest rows of the stage.
///
/// # Errors
/// [`RunProblem::Memory`] for a stage, or scores, of which not even one row fits, [`RunProblem::PeakUnknown`] where the
/// system does not report the peak, and as [`train`](super::train).
pub fn fit(
    setup: &Setup<'_>,
    start: Start,
    (limit, scored): (u64, Split),
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<MicroBatch>, TrainError> {
    let mut state = State::start(setup, start, on_event)?;
    let mut found = Vec::new();
    while let Some(phase) = setup.phases.get(state.progress.phase) {
        if setup.until.is_some_and(|last| phase.stage > last) {
            break;
        }
        if is_longest(setup, phase) {
            let micro = largest(&mut state, setup, phase, limit)?;
            on_event(Event::MicroBatch(&micro));
            found.push(micro);
        }
        state.leave(setup, phase, on_event)?;
        state.enter(setup, state.progress.phase + 1, on_event)?;
    }
    let scores = largest_of_scores(&state.model, setup, limit, scored)?;
    on_event(Event::MicroBatch(&scores));
    found.push(scores);
    Ok(found)
}

fn check_stop(setup: &Setup<'_>) -> Result<(), TrainError> {
    match setup.stop.load(Ordering::SeqCst) {
        true => Err(TrainError::Stopped),
        false => Ok(()),
    }
}

/// A size in rows, and the peak with it in bytes.
type Tried = (usize, u64);

/// The largest size that fits, and the next one, which does not.
struct Largest {
    fits: Option<Tried>,
    next: Option<Tried>,
}

/// Tries sizes up to `most`, as [`fit`] says.
fn ascend(
    setup: &Setup<'_>,
    most: usize,
    limit: u64,
    mut compute: impl FnMut(usize) -> Result<(), TrainError>,
) -> Result<Largest, TrainError> {
    let (mut before, mut fits): (Option<Tried>, Option<Tried>) = (None, None);
    for rows in sizes(most) {
        if let Some(peak) = before.zip(fits).map(|tried| continued(tried, rows))
            && peak > limit
        {
            let next = Some((rows, peak));
            return Ok(Largest { fits, next });
        }
        check_stop(setup)?;
        compute(rows)?;
        let unknown = || TrainError::run(Path::new("memory"), RunProblem::PeakUnknown);
        let peak = peak_memory_bytes().ok_or_else(unknown)?;
        if peak > limit {
            let next = Some((rows, peak));
            return Ok(Largest { fits, next });
        }
        before = fits.replace((rows, peak));
    }
    Ok(Largest { fits, next: None })
}

fn largest(
    state: &mut State,
    setup: &Setup<'_>,
    phase: &Phase,
    limit: u64,
) -> Result<MicroBatch, TrainError> {
    let batch = setup.recipe.data.sampling.batch_size;
    let mut picks = largest_batch(state, setup, phase);
    picks.sort_by_key(|&pick| std::cmp::Reverse(length(setup, phase, pick)));
    let mut stages = setup.stages.to_vec();
    let found = ascend(setup, batch, limit, |rows| {
        stages[phase.stage].micro_batch_size = rows;
        let trial = Setup {
            stages: &stages,
            ..*setup
        };
        // Two micro-batches, the second of them beside the gradients of the first. Packed rows hold several
        // examples each.
        let count = match setup.recipe.data.writing.packing {
            true => picks.len(),
            false => picks.len().min(2 * rows),
        };
        state.step_on(&trial, phase, &picks[..count], &[]).map(drop)
    })?;
    let stage = (phase.stage, setup.stages[phase.stage].name.clone());
    match (found.fits, found.next) {
        (Some((rows, peak)), next) => Ok(MicroBatch {
            stage: Some(stage),
            rows,
            batch,
            peak,
            limit,
            next,
        }),
        (None, next) => {
            let peak = next.map_or(limit, |(_, peak)| peak);
            Err(too_little(setup, phase, &picks, peak, limit))
        }
    }
}

/// The rows that scores compute at once: those of the recipe, or fewer. Answers that are texts are scored
/// without being generated, as the rows of a cache take less than those of a whole text.
fn largest_of_scores(
    model: &TaskModel,
    setup: &Setup<'_>,
    limit: u64,
    scored: Split,
) -> Result<MicroBatch, TrainError> {
    let batch = setup.recipe.data.eval_batch_size;
    let found = ascend(setup, batch, limit, |rows| {
        for split in [Split::Validation, scored] {
            let longest = setup.tasks.iter().map(|task| task.longest(split, rows));
            let longest: Vec<_> = longest.collect();
            let with_records = |&task: &usize| !longest[task].validation.is_empty();
            let only: Vec<usize> = (0..longest.len()).filter(with_records).collect();
            if only.is_empty() {
                continue;
            }
            let scope = EvalScope {
                only: &only,
                generates: false,
                ..EvalScope::own(Split::Validation, rows, longest.len())
            };
            evaluate(model, &longest, scope, setup.device, None, |_| Ok(()))?;
        }
        Ok(())
    })?;
    match (found.fits, found.next) {
        (Some((rows, peak)), next) => Ok(MicroBatch {
            stage: None,
            rows,
            batch,
            peak,
            limit,
            next,
        }),
        (None, next) => {
            let problem = RunProblem::Memory {
                what: "the scores".into(),
                peak: next.map_or(limit, |(_, peak)| peak),
                limit,
                advice: "shorter texts, a smaller --base-dtype (bf16, q8, q4)".into(),
            };
            Err(TrainError::run(Path::new("memory"), problem))
        }
    }
}

/// Sizes that are tried for a batch of so many rows.
fn sizes(batch: usize) -> impl Iterator<Item = usize> {
    let powers = std::iter::successors(Some(1), |rows| Some(rows * 2));
    powers.take_while(move |&rows| rows < batch).chain([batch])
}

/// The peak with so many rows, if it keeps growing as it did between two sizes.
fn continued(((few, low), (many, high)): (Tried, Tried), rows: usize) -> u64 {
    let slope = high.saturating_sub(low) as f64 / (many - few) as f64;
    high + (slope * (rows - many) as f64) as u64
}

fn length(setup: &Setup<'_>, phase: &Phase, (place, index): Pick) -> usize {
    setup.tasks[phase.tasks[place]].train[index].ids.len()
}

/// That not even one row of a stage fits, with what would take less.
fn too_little(
    setup: &Setup<'_>,
    phase: &Phase,
    picks: &[Pick],
    peak: u64,
    limit: u64,
) -> TrainError {
    let number = phase.stage;
    let reads_two = matches!(setup.base.0, Backbone::EncoderDecoder(_));
    let mut advice = Vec::new();
    if !setup.stages[number].gradient_checkpointing && !reads_two {
        advice.push(format!("stages.{number}.gradient_checkpointing=true"));
    }
    let longest = length(setup, phase, picks[0]);
    advice.push(match setup.base.0.writes() {
        true => format!("data.writing.max_length below {}", thousands(longest)),
        false => format!("data.max_length below {}", thousands(longest)),
    });
    advice.push("a smaller --base-dtype (bf16, q8, q4)".into());
    let problem = RunProblem::Memory {
        what: format!("stage {}", setup.stages[number].name),
        peak,
        limit,
        advice: advice.join(", "),
    };
    TrainError::run(Path::new("memory"), problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_tried_and_the_whole_batch() {
        let of = |batch| sizes(batch).collect::<Vec<_>>();
        assert_eq!(of(1), [1]);
        assert_eq!(of(8), [1, 2, 4, 8]);
        assert_eq!(of(12), [1, 2, 4, 8, 12]);
    }

    #[test]
    fn a_peak_goes_on_in_a_straight_line() {
        assert_eq!(continued(((1, 100), (2, 130)), 4), 190);
        assert_eq!(continued(((4, 100), (8, 100)), 12), 100);
    }
}
