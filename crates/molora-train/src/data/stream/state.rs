//! What a checkpoint has of streams.

use std::ops::Range;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::Rng;
use serde::{Deserialize, Serialize};

use crate::data::error::DataError;
use crate::data::sampler::{SamplerConfig, task_weights};

/// A record by its number in the split, and the number of one of its examples.
pub(super) type Place = (usize, usize);

/// What streams are made by; it does not depend on the ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// How batches are drawn.
    pub(crate) sampling: SamplerConfig,
    /// Examples of each task that wait in the buffers of all streams.
    pub(crate) shuffle_buffer: usize,
    /// Rows of a batch that each stream gives.
    pub(crate) rows: Vec<usize>,
    /// Training records of each task.
    pub(crate) records: Vec<usize>,
}

impl Plan {
    /// The records of a task that a stream reads: the same share of all as it has rows in a batch.
    pub(super) fn range(&self, stream: usize, task: usize) -> Range<usize> {
        let rows: usize = self.rows.iter().sum();
        let before: usize = self.rows[..stream].iter().sum();
        let records = self.records[task];
        // Wide: both may be large.
        let at = |row: usize| (records as u128 * row as u128 / rows as u128) as usize;
        at(before)..at(before + self.rows[stream])
    }

    /// Examples of a task that wait in the buffer of a stream.
    pub(super) fn capacity(&self, stream: usize) -> usize {
        let rows: usize = self.rows.iter().sum();
        let share = self.shuffle_buffer as u128 * self.rows[stream] as u128 / rows as u128;
        (share as usize).max(1)
    }

    /// Weights by which tasks are drawn.
    pub(super) fn weights(&self) -> Vec<u64> {
        task_weights(self.sampling.strategy, &self.records)
    }
}

/// Where the streams of a phase are. Records stand in it by their numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamsState {
    pub(crate) plan: Plan,
    /// The generator of what all streams draw alike.
    pub(crate) order: Xoshiro256PlusPlus,
    pub(crate) streams: Vec<StreamState>,
}

/// Where one stream is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamState {
    pub(super) rng: Xoshiro256PlusPlus,
    /// By task.
    pub(super) tasks: Vec<ShuffleState>,
    /// The rows of the next batches: tasks with places.
    pub(super) pending: Vec<Vec<(usize, Place)>>,
}

/// Where the buffer of a task in a stream is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShuffleState {
    pub(super) next: usize,
    pub(super) held: Vec<Place>,
    pub(super) rng: Xoshiro256PlusPlus,
}

impl StreamsState {
    /// Checks that it is of this plan, and a state that its streams can come to.
    ///
    /// # Errors
    /// The first thing that is otherwise.
    pub(super) fn check(&self, plan: &Plan) -> Result<(), DataError> {
        if self.plan.records != plan.records {
            let (saved, found) = (&self.plan.records, &plan.records);
            return Err(DataError::SamplerData(format!(
                "its tasks have {saved:?} records, found {found:?}"
            )));
        }
        if self.plan != *plan {
            let problem = "streams are not those of the run".into();
            return Err(DataError::SamplerState(problem));
        }
        self.problem()
            .map_or(Ok(()), |problem| Err(DataError::SamplerState(problem)))
    }

    fn problem(&self) -> Option<String> {
        let plan = &self.plan;
        if self.streams.len() != plan.rows.len() {
            let (found, expected) = (self.streams.len(), plan.rows.len());
            return Some(format!("it has {found} streams, expected {expected}"));
        }
        let ahead = self
            .streams
            .first()
            .map_or(0, |stream| stream.pending.len());
        for (number, stream) in self.streams.iter().enumerate() {
            if stream.tasks.len() != plan.records.len() {
                return Some(format!("stream {number} has not one buffer for each task"));
            }
            for (task, buffer) in stream.tasks.iter().enumerate() {
                let records = plan.range(number, task);
                let is_in = |place: &Place| records.contains(&place.0);
                let has_next = (records.start..=records.end).contains(&buffer.next);
                if !has_next || !buffer.held.iter().all(is_in) {
                    return Some(format!(
                        "stream {number} holds records that are not its own"
                    ));
                }
            }
            let is_own = |&(task, place): &(usize, Place)| {
                task < plan.records.len() && plan.range(number, task).contains(&place.0)
            };
            let is_batch =
                |rows: &Vec<_>| rows.len() == plan.rows[number] && rows.iter().all(is_own);
            let is_far = stream.pending.len() > plan.sampling.bucket_batches;
            if is_far || stream.pending.len() != ahead || !stream.pending.iter().all(is_batch) {
                return Some(format!(
                    "pending of stream {number} are not rows of its records"
                ));
            }
        }
        let of_streams = self.streams.iter().flat_map(|stream| {
            let tasks = stream.tasks.iter().map(|task| &task.rng);
            tasks.chain([&stream.rng])
        });
        let is_stuck = of_streams.chain([&self.order]).any(is_stuck);
        is_stuck.then(|| "rng is all zeros".into())
    }
}

/// Whether a generator draws zeros for ever.
fn is_stuck(rng: &Xoshiro256PlusPlus) -> bool {
    let mut rng = rng.clone();
    (0..4).all(|_| rng.next_u64() == 0)
}
