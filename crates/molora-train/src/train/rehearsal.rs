//! A few steps of every stage, which say what all of them will cost.

use std::time::Instant;

use super::event::Event;
use super::setup::{Setup, lengths};
use super::trainer::{Start, State};
use super::validate;
use crate::TrainError;
use crate::data::sampler::Pick;
use crate::data::{Sampler, Split};
use crate::recipe::Leg;
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
pub fn rehearse(
    setup: &Setup<'_>,
    start: Start,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<StageCost>, TrainError> {
    let mut clock = Instant::now();
    let mut state = State::start(setup, start, on_event)?;
    let mut costs: Vec<StageCost> = Vec::new();
    while let Some(leg) = setup.legs.get(state.progress.leg) {
        if setup.until.is_some_and(|last| leg.stage > last) {
            break;
        }
        let name = &setup.stages[leg.stage].name;
        let begin = clock.elapsed().as_secs_f64();
        // Another expert of the stage costs what the first one did.
        match costs.last_mut().filter(|cost| cost.stage == *name) {
            Some(cost) => {
                if is_longest(setup, leg) {
                    let picks = largest_batch(&state, setup, leg);
                    state.step_on(setup, leg, &picks, &[])?;
                }
                let share = leg.steps as f64 / cost.steps as f64;
                cost.validation_seconds *= 1.0 + share;
                cost.steps += leg.steps;
                cost.begin_seconds += begin;
            }
            None => costs.push(StageCost {
                begin_seconds: begin,
                ..measure(&mut state, setup, leg)?
            }),
        }
        if setup.stop.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(TrainError::Stopped);
        }
        state.leave(setup, leg, on_event)?;
        clock = Instant::now();
        state.enter(setup, state.progress.leg + 1, on_event)?;
    }
    Ok(costs)
}

fn measure(state: &mut State, setup: &Setup<'_>, leg: &Leg) -> Result<StageCost, TrainError> {
    let sampler = state.progress.sampler.as_ref();
    let mut batches = batches(setup, leg, sampler.expect("a leg that trains has one"));
    let sum: usize = batches.iter().map(|(tokens, _)| tokens).sum();
    let mean = sum as f64 / batches.len() as f64;
    batches.sort_by_key(|(tokens, _)| *tokens);
    let largest = &batches[batches.len() - 1].1;
    // The first step allocates, and is no measure.
    state.step_on(setup, leg, largest, &[])?;
    let (mut seconds, mut tokens) = (0.0, 0);
    for number in 0..TIMED {
        let place = (2 * number + 1) * batches.len() / (2 * TIMED);
        let (size, picks) = &batches[place.min(batches.len() - 1)];
        seconds += state.step_on(setup, leg, picks, &[])?.0.seconds;
        tokens += size;
    }
    let (one, read) = score(state, setup, leg)?;
    let due = (1..=leg.steps).filter(|&step| validate::is_due(setup, leg, step));
    Ok(StageCost {
        stage: setup.stages[leg.stage].name.clone(),
        steps: leg.steps,
        step_seconds: seconds / tokens.max(1) as f64 * mean,
        validation_seconds: one * due.count() as f64,
        token_seconds: one / read.max(1) as f64,
        begin_seconds: 0.0,
    })
}

/// Whether a leg has the longest example of all legs of its stage, as the first of them.
pub(super) fn is_longest(setup: &Setup<'_>, leg: &Leg) -> bool {
    let longest = |leg: &Leg| lengths(setup, leg).into_iter().flatten().max();
    let own = longest(leg);
    let of_stage = |other: &&Leg| other.stage == leg.stage;
    let mut before = true;
    leg.steps > 0
        && setup.legs.iter().filter(of_stage).all(|other| {
            before &= other != leg;
            match before {
                true => longest(other) < own,
                false => longest(other) <= own,
            }
        })
}

/// The batch of a leg with most tokens, padding included.
pub(super) fn largest_batch(state: &State, setup: &Setup<'_>, leg: &Leg) -> Vec<Pick> {
    let sampler = state.progress.sampler.as_ref();
    let batches = batches(setup, leg, sampler.expect("a leg that trains has one"));
    let largest = batches.into_iter().max_by_key(|(tokens, _)| *tokens);
    largest.expect("a leg has a batch").1
}

/// The batches of a leg with their sizes.
pub(super) fn batches(setup: &Setup<'_>, leg: &Leg, sampler: &Sampler) -> Vec<(usize, Vec<Pick>)> {
    let mut sampler = sampler.clone();
    let is_packed = setup.recipe.data.writing.packing;
    let batch = |_| {
        let picks = sampler.next_batch();
        let length = |&(place, index): &Pick| {
            let task: usize = leg.tasks[place];
            setup.tasks[task].train[index].ids.len()
        };
        let lengths = picks.iter().map(length);
        let tokens = match is_packed {
            true => lengths.sum(),
            false => lengths.max().unwrap_or(0) * picks.len(),
        };
        (tokens, picks)
    };
    (0..leg.steps.clamp(1, DRAWN)).map(batch).collect()
}

/// Seconds of one pass over the validation split, and its tokens; nothing where there is none.
fn score(state: &mut State, setup: &Setup<'_>, leg: &Leg) -> Result<(f64, usize), TrainError> {
    let parts = validate::parts(setup, leg);
    let lengths = parts
        .iter()
        .flat_map(|part| part.lengths(Split::Validation));
    let tokens: usize = lengths.sum();
    if tokens == 0 {
        return Ok((0.0, 0));
    }
    let (model, guide, progress) = state.scored();
    let record = validate::score(setup, leg, model, guide, progress)?;
    // Nothing is kept of it.
    progress.best.clear();
    Ok((record.seconds, tokens))
}
