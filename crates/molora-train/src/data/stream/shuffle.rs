//! The bounded buffer by which a stream shuffles the records of a task.

use std::collections::BTreeSet;
use std::ops::Range;

use rand_xoshiro::Xoshiro256PlusPlus;

use super::source::{Held, Source};
use super::state::{Place, ShuffleState};
use crate::data::draw::below;
use crate::data::error::DataError;

/// The buffer is filled up when a part of it is empty, one of so many: records are tokenized on all cores.
const PARTS: usize = 8;

/// Records that are read together, at most.
const READ: usize = 1024;

/// The examples of a range of records in a random order, pass after pass.
#[derive(Debug)]
pub(super) struct Shuffle<S> {
    source: S,
    records: Range<usize>,
    /// Most examples that wait, but for those of one record.
    capacity: usize,
    held: Vec<Held>,
    /// The record that comes next.
    next: usize,
    rng: Xoshiro256PlusPlus,
}

impl<S: Source> Shuffle<S> {
    /// Shuffles a range of records, which is not empty, by a buffer of `capacity` examples, at least 1.
    pub(super) fn new(
        source: S,
        records: Range<usize>,
        capacity: usize,
        rng: Xoshiro256PlusPlus,
    ) -> Self {
        Self {
            source,
            next: records.start,
            records,
            capacity,
            held: Vec::new(),
            rng,
        }
    }

    /// Whether the next draw begins a pass.
    pub(super) fn is_used_up(&self) -> bool {
        self.held.is_empty() && self.next == self.records.end
    }

    /// Number of records of a pass.
    pub(super) fn num_records(&self) -> usize {
        self.records.len()
    }

    /// Number of examples that wait.
    #[cfg(test)]
    pub(super) fn num_held(&self) -> usize {
        self.held.len()
    }

    /// Draws an example.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub(super) fn draw(&mut self) -> Result<Held, DataError> {
        // A second time where the records that were left of a pass have no example.
        for _ in 0..2 {
            if self.is_used_up() {
                self.next = self.records.start;
            }
            self.fill()?;
        }
        if self.held.is_empty() {
            return Err(DataError::Sampler {
                key: "training examples of a stream",
                found: "0".into(),
                expected: "at least 1",
            });
        }
        let place = below(&mut self.rng, self.held.len() as u64) as usize;
        Ok(self.held.swap_remove(place))
    }

    /// Fills the buffer up if a part of it is empty.
    fn fill(&mut self) -> Result<(), DataError> {
        let part = self.capacity.div_ceil(PARTS);
        if self.held.len() + part > self.capacity && !self.held.is_empty() {
            return Ok(());
        }
        while self.next < self.records.end && self.held.len() < self.capacity {
            let room = (self.capacity - self.held.len()).min(READ);
            let end = self.records.end.min(self.next + room);
            let found = self.source.read(self.next..end)?;
            self.held.extend(found);
            self.next = end;
        }
        Ok(())
    }

    /// Where it is: places of examples, and no texts.
    pub(super) fn state(&self) -> ShuffleState {
        ShuffleState {
            next: self.next,
            held: self.held.iter().map(Held::place).collect(),
            rng: self.rng.clone(),
        }
    }

    /// Goes to where a shuffle of the same records was, and returns the examples at other places too.
    ///
    /// # Errors
    /// As [`Source::read`], or a record that has no such example.
    pub(super) fn restore(
        &mut self,
        state: &ShuffleState,
        others: &[Place],
    ) -> Result<Vec<Held>, DataError> {
        let wanted: BTreeSet<Place> = state.held.iter().chain(others).copied().collect();
        let mut found = Vec::with_capacity(wanted.len());
        let mut records: Vec<usize> = wanted.iter().map(|&(record, _)| record).collect();
        records.dedup();
        for run in records.chunk_by(|one, next| one + 1 == *next) {
            for part in run.chunks(READ) {
                let read = self.source.read(part[0]..part[part.len() - 1] + 1)?;
                found.extend(
                    read.into_iter()
                        .filter(|held| wanted.contains(&held.place())),
                );
            }
        }
        // Both are sorted by place.
        let at = |place: &Place| -> Result<Held, DataError> {
            let found = found
                .binary_search_by_key(place, Held::place)
                .map(|at| &found[at]);
            found.cloned().map_err(|_| {
                let (record, part) = place;
                let problem = format!("record {record} has no example {part}");
                DataError::SamplerData(problem)
            })
        };
        self.held = state.held.iter().map(at).collect::<Result<_, _>>()?;
        (self.next, self.rng) = (state.next, state.rng.clone());
        others.iter().map(at).collect()
    }
}

impl Held {
    /// Where the example comes from.
    pub(super) fn place(&self) -> Place {
        (self.record, self.part)
    }
}
