//! A few steps of every stage, which say what all of them will cost.

use std::time::Instant;

use super::event::Event;
use super::setup::{Setup, lengths};
use super::trainer::{Start, State};
use super::validate;
use crate::TrainError;
use crate::data::sampler::Pick;
use crate::data::{Sampler, Split, TokenizedTask, eval_batches};
use crate::recipe::Phase;
use crate::report::StageCost;

/// Batches that are drawn to know how long they are, at most; drawing costs next to nothing.
const DRAWN: usize = 2000;

/// Batches of a stage that are timed, behind the largest one.
const TIMED: usize = 12;

/// Goes through all stages with a few steps of each, into the folder of `setup`.
///
/// The largest batch of each stage is among them, so that the process has held as much memory as in the
/// whole training. Times of other batches are taken to grow with their tokens, padding included.
///
/// # Errors
/// As [`train`](super::train), and [`TrainError::Stopped`].
pub(crate) fn rehearse(
    setup: &Setup<'_>,
    start: Start,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<StageCost>, TrainError> {
    let mut clock = Instant::now();
    let mut state = State::start(setup, start, on_event)?;
    let mut costs: Vec<StageCost> = Vec::new();
    while let Some(phase) = setup.phases.get(state.progress.phase) {
        if setup.until.is_some_and(|last| phase.stage > last) {
            break;
        }
        let name = &setup.stages[phase.stage].name;
        let begin = clock.elapsed().as_secs_f64();
        // Another expert of the stage costs what the first one did.
        match costs.last_mut().filter(|cost| cost.stage == *name) {
            Some(cost) => {
                if is_longest(setup, phase) {
                    let picks = largest_batch(&state, setup, phase);
                    state.step_on(setup, phase, &picks, &[])?;
                }
                let share = phase.steps as f64 / cost.steps as f64;
                cost.validation_seconds *= 1.0 + share;
                cost.steps += phase.steps;
                cost.begin_seconds += begin;
            }
            None => costs.push(StageCost {
                begin_seconds: begin,
                ..measure(&mut state, setup, phase)?
            }),
        }
        if setup.stop.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(TrainError::Stopped);
        }
        state.leave(setup, phase, on_event)?;
        clock = Instant::now();
        state.enter(setup, state.progress.phase + 1, on_event)?;
    }
    Ok(costs)
}

fn measure(state: &mut State, setup: &Setup<'_>, phase: &Phase) -> Result<StageCost, TrainError> {
    let sampler = state.progress.sampler.as_ref();
    let mut batches = batches(setup, phase, sampler.expect("a phase that trains has one"));
    let sum: usize = batches.iter().map(|(tokens, _)| tokens).sum();
    let mean = sum as f64 / batches.len() as f64;
    batches.sort_by_key(|(tokens, _)| *tokens);
    let largest = &batches[batches.len() - 1].1;
    // The first step allocates, and is no measure.
    state.step_on(setup, phase, largest, &[])?;
    let (mut seconds, mut tokens) = (0.0, 0);
    for number in 0..TIMED {
        let place = (2 * number + 1) * batches.len() / (2 * TIMED);
        let (size, picks) = &batches[place.min(batches.len() - 1)];
        seconds += state.step_on(setup, phase, picks, &[])?.0.seconds;
        tokens += size;
    }
    let (one, read) = score(state, setup, phase)?;
    let due = (1..=phase.steps).filter(|&step| validate::is_due(setup, phase, step));
    Ok(StageCost {
        stage: setup.stages[phase.stage].name.clone(),
        steps: phase.steps,
        step_seconds: seconds / tokens.max(1) as f64 * mean,
        validation_seconds: one * due.count() as f64,
        token_seconds: one / read.max(1) as f64,
        begin_seconds: 0.0,
    })
}

/// Whether a phase has the longest example of all phases of its stage, as the first of them.
pub(super) fn is_longest(setup: &Setup<'_>, phase: &Phase) -> bool {
    let longest = |phase: &Phase| lengths(setup, phase).into_iter().flatten().max();
    let own = longest(phase);
    let of_stage = |other: &&Phase| other.stage == phase.stage;
    let mut before = true;
    phase.steps > 0
        && setup.phases.iter().filter(of_stage).all(|other| {
            before &= other != phase;
            match before {
                true => longest(other) < own,
                false => longest(other) <= own,
            }
        })
}

/// The batch of a phase with most tokens, padding included.
pub(super) fn largest_batch(state: &State, setup: &Setup<'_>, phase: &Phase) -> Vec<Pick> {
    let sampler = state.progress.sampler.as_ref();
    let batches = batches(setup, phase, sampler.expect("a phase that trains has one"));
    let largest = batches.into_iter().max_by_key(|(tokens, _)| *tokens);
    largest.expect("a phase has a batch").1
}

/// The batches of a phase with their sizes.
pub(super) fn batches(
    setup: &Setup<'_>,
    phase: &Phase,
    sampler: &Sampler,
) -> Vec<(usize, Vec<Pick>)> {
    let mut sampler = sampler.clone();
    let is_packed = setup.recipe.data.writing.packing;
    let batch = |_| {
        let picks = sampler.next_batch();
        let length = |&(place, index): &Pick| {
            let task: usize = phase.tasks[place];
            setup.tasks[task].train[index].ids.len()
        };
        let lengths = picks.iter().map(length);
        let tokens = match is_packed {
            true => lengths.sum(),
            false => lengths.max().unwrap_or(0) * picks.len(),
        };
        (tokens, picks)
    };
    (0..phase.steps.clamp(1, DRAWN)).map(batch).collect()
}

/// Seconds of one pass over the validation split, and its tokens, padding included; nothing where there is none.
fn score(state: &mut State, setup: &Setup<'_>, phase: &Phase) -> Result<(f64, usize), TrainError> {
    let parts = validate::parts(setup, phase);
    let tokens = padded(&parts, Split::Validation, setup.recipe.data.eval_batch_size);
    if tokens == 0 {
        return Ok((0.0, 0));
    }
    let (model, guide, progress) = state.scored();
    let record = validate::score(setup, phase, model, guide, progress)?;
    // Nothing is kept of it.
    progress.best.clear();
    Ok((record.seconds, tokens))
}

/// Tokens of a split of some tasks as they are scored, padding included.
pub(crate) fn padded(tasks: &[TokenizedTask], split: Split, batch_size: usize) -> usize {
    let of_task = |task: &TokenizedTask| -> usize {
        let lengths = task.lengths(split);
        let longest = |batch: &Vec<usize>| batch.iter().map(|&row| lengths[row]).max();
        let batches = eval_batches(&lengths, batch_size);
        let padded = batches
            .iter()
            .map(|batch| longest(batch).unwrap_or(0) * batch.len());
        padded.sum()
    };
    tasks.iter().map(of_task).sum()
}
