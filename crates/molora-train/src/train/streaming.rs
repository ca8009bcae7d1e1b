//! Streamed data in a training: each rank reads the streams that are its own, and all get the whole batch.

use super::setup::{Setup, phase_seed};
use crate::TrainError;
use crate::collective::{gather_values, share};
use crate::data::{Example, Plan, StreamState, StreamedTask, Streams, StreamsState, TaskSource};
use crate::recipe::Phase;

/// The streams of a phase at their beginning; `None` where its data are in memory.
pub(super) fn begin(setup: &Setup<'_>, phase: &Phase) -> Option<Streams> {
    let task = |&task: &usize| setup.tasks[task].streamed.clone();
    let tasks: Vec<_> = phase.tasks.iter().map(task).collect::<Option<_>>()?;
    let data = &setup.recipe.data;
    let plan = Plan {
        sampling: data.sampling.clone(),
        shuffle_buffer: data.shuffle_buffer,
        rows: data.rows_of_streams(),
        records: tasks
            .iter()
            .map(|task| StreamedTask::records(task))
            .collect(),
    };
    let (rank, ranks) = (setup.collective.rank(), setup.collective.world_size());
    let own = share(plan.rows.len(), rank, ranks);
    let names = phase.tasks.iter().map(|&task| &setup.tasks[task].name[..]);
    let names: Vec<&str> = names.collect();
    let seed = phase_seed(setup, phase, "streams");
    let source = |task: usize| TaskSource::new(&tasks[task]);
    Some(Streams::new(plan, own, &names, seed, source))
}

/// The streams of a phase where a checkpoint left them, whatever ranks it was written by.
///
/// # Errors
/// A state of other data or settings; a record that cannot be read again.
pub(super) fn resume(
    setup: &Setup<'_>,
    phase: &Phase,
    state: &StreamsState,
) -> Result<Option<Streams>, TrainError> {
    let mut streams = begin(setup, phase);
    if let Some(streams) = &mut streams {
        streams.restore(state)?;
    }
    Ok(streams)
}

/// The examples of the next batch, in the order of the streams.
///
/// # Errors
/// A record that cannot be read or is broken; ranks that cannot exchange data.
pub(super) fn next_batch(
    setup: &Setup<'_>,
    streams: &mut Streams,
) -> Result<Vec<Example>, TrainError> {
    let own = streams.next_rows()?;
    Ok(gather_values(setup.collective, own)?.concat())
}

/// Where the streams of all ranks are.
///
/// # Errors
/// If ranks cannot exchange data.
pub(super) fn state(setup: &Setup<'_>, streams: &Streams) -> Result<StreamsState, TrainError> {
    let own: Vec<StreamState> = streams.own_states();
    Ok(streams.state(gather_values(setup.collective, own)?.concat()))
}
