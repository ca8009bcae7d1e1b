//! Batches from streams: which tasks, which examples, in which order.

use std::collections::VecDeque;
use std::ops::Range;

use molora_kernels::random::Seed;
use rand_xoshiro::Xoshiro256PlusPlus;

use super::shuffle::Shuffle;
use super::source::{Held, Source, TaskSource};
use super::state::{Place, Plan, StreamState, StreamsState};
use crate::data::draw::shuffle;
use crate::data::error::DataError;
use crate::data::example::Example;
use crate::data::sampler::draw_task;

/// The streams of a phase, of which a rank reads some and knows all.
///
/// Several batches are drawn together. Each stream sorts its rows of them by length, so that the shortest rows of all
/// streams share a batch, and so on; then the batches come in a random order, which is the same for all streams.
#[derive(Debug)]
pub(crate) struct Streams<S = TaskSource> {
    plan: Plan,
    weights: Vec<u64>,
    /// Numbers of the streams that are read here.
    own: Range<usize>,
    streams: Vec<Stream<S>>,
    /// Draws that are the same on all ranks.
    order: Xoshiro256PlusPlus,
    /// Batches that are drawn and not yet taken.
    ahead: usize,
}

/// One stream.
#[derive(Debug)]
struct Stream<S> {
    /// Rows of a batch.
    rows: usize,
    tasks: Vec<Shuffle<S>>,
    rng: Xoshiro256PlusPlus,
    /// Its rows of the next batches, with their tasks.
    pending: VecDeque<Vec<(usize, Held)>>,
}

/// So many batches, of one task or of a task drawn for each row.
type Group = (Option<usize>, usize);

impl<S: Source> Streams<S> {
    /// The streams of a plan at their beginning, of which those in `own` are read here; `names` are those of the
    /// tasks.
    pub(crate) fn new(
        plan: Plan,
        own: Range<usize>,
        names: &[&str],
        seed: Seed,
        source: impl Fn(usize) -> S,
    ) -> Self {
        let stream = |number: usize| {
            let seed = seed.index(number as u64);
            let task = |(task, name): (usize, &&str)| {
                let records = plan.range(number, task);
                let rng = seed.child(name).generator();
                Shuffle::new(source(task), records, plan.capacity(number), rng)
            };
            Stream {
                rows: plan.rows[number],
                tasks: names.iter().enumerate().map(task).collect(),
                rng: seed.generator(),
                pending: VecDeque::new(),
            }
        };
        Self {
            streams: own.clone().map(stream).collect(),
            weights: plan.weights(),
            plan,
            own,
            order: seed.child("order").generator(),
            ahead: 0,
        }
    }

    /// The rows of the next batch that the streams read here give, in order.
    ///
    /// # Errors
    /// The first record that cannot be read or is broken.
    pub(crate) fn next_rows(&mut self) -> Result<Vec<Example>, DataError> {
        if self.ahead == 0 {
            self.fill()?;
        }
        self.ahead -= 1;
        let next = |stream: &mut Stream<S>| stream.pending.pop_front().unwrap_or_default();
        let rows = self.streams.iter_mut().flat_map(next);
        Ok(rows.map(|(_, held)| held.example).collect())
    }

    /// Draws a pool of batches.
    fn fill(&mut self) -> Result<(), DataError> {
        let count = self.plan.sampling.bucket_batches;
        let groups: Vec<Group> = match self.plan.sampling.mixed {
            true => vec![(None, count)],
            false => {
                let mut counts = vec![0; self.weights.len()];
                for _ in 0..count {
                    counts[draw_task(&mut self.order, &self.weights)] += 1;
                }
                let counts = counts.into_iter().enumerate();
                counts.map(|(task, count)| (Some(task), count)).collect()
            }
        };
        let mut places: Vec<usize> = (0..count).collect();
        // Sorted batches come short ones first: their order has to be random again.
        if count > 1 {
            shuffle(&mut self.order, &mut places);
        }
        for stream in &mut self.streams {
            let mut pool = Vec::with_capacity(count);
            for &group in &groups {
                pool.extend(stream.draw_batches(group, &self.weights, count > 1)?);
            }
            let mut pool: Vec<_> = places.iter().zip(pool).collect();
            pool.sort_by_key(|(place, _)| **place);
            stream.pending = pool.into_iter().map(|(_, rows)| rows).collect();
        }
        self.ahead = count;
        Ok(())
    }

    /// Number of examples that are held.
    #[cfg(test)]
    pub(super) fn num_held(&self) -> usize {
        let of = |stream: &Stream<S>| {
            let waiting: usize = stream.tasks.iter().map(Shuffle::num_held).sum();
            waiting + stream.pending.iter().map(Vec::len).sum::<usize>()
        };
        self.streams.iter().map(of).sum()
    }

    /// Where the streams that are read here are, by number.
    pub(crate) fn own_states(&self) -> Vec<StreamState> {
        let state = |stream: &Stream<S>| {
            let rows = |rows: &Vec<(usize, Held)>| -> Vec<(usize, Place)> {
                let places = rows.iter().map(|(task, held)| (*task, held.place()));
                places.collect()
            };
            StreamState {
                rng: stream.rng.clone(),
                tasks: stream.tasks.iter().map(Shuffle::state).collect(),
                pending: stream.pending.iter().map(rows).collect(),
            }
        };
        self.streams.iter().map(state).collect()
    }

    /// Where all streams are, if those of all ranks are given by number.
    pub(crate) fn state(&self, streams: Vec<StreamState>) -> StreamsState {
        StreamsState {
            plan: self.plan.clone(),
            order: self.order.clone(),
            streams,
        }
    }

    /// Goes to where streams of the same plan were.
    ///
    /// # Errors
    /// A state of other streams, or one that contradicts itself; a record that cannot be read.
    pub(crate) fn restore(&mut self, state: &StreamsState) -> Result<(), DataError> {
        state.check(&self.plan)?;
        for (stream, state) in self
            .streams
            .iter_mut()
            .zip(&state.streams[self.own.clone()])
        {
            stream.restore(state)?;
        }
        self.order = state.order.clone();
        self.ahead = state
            .streams
            .first()
            .map_or(0, |stream| stream.pending.len());
        Ok(())
    }
}

impl<S: Source> Stream<S> {
    /// Draws its rows of so many batches, sorts them by length in as long pieces as may be, and cuts them.
    ///
    /// A piece ends as in [`Sampler`](crate::data::Sampler): where a task would come to its next pass, and after a
    /// quarter of the task's records.
    fn draw_batches(
        &mut self,
        (task, count): Group,
        weights: &[u64],
        sorts: bool,
    ) -> Result<Vec<Vec<(usize, Held)>>, DataError> {
        let sort = |rows: &mut [(usize, Held)]| {
            if sorts {
                rows.sort_by_key(|(_, held)| held.example.ids.len());
            }
        };
        let mut rows = Vec::with_capacity(count * self.rows);
        let (mut piece, mut in_piece) = (0, vec![0; self.tasks.len()]);
        for _ in 0..count * self.rows {
            let task = task.unwrap_or_else(|| draw_task(&mut self.rng, weights));
            let is_over = in_piece[task] > 0 && self.tasks[task].is_used_up();
            if is_over || in_piece[task] == self.longest_piece(task) {
                sort(&mut rows[piece..]);
                piece = rows.len();
                in_piece.fill(0);
            }
            in_piece[task] += 1;
            rows.push((task, self.tasks[task].draw()?));
        }
        sort(&mut rows[piece..]);
        let mut rows = rows.into_iter();
        Ok((0..count)
            .map(|_| rows.by_ref().take(self.rows).collect())
            .collect())
    }

    /// A quarter of a task's records in rows of whole batches, but at least those of one batch.
    fn longest_piece(&self, task: usize) -> usize {
        let batches = self.tasks[task].num_records() / 4 / self.rows;
        batches.max(1) * self.rows
    }

    fn restore(&mut self, state: &StreamState) -> Result<(), DataError> {
        let mut found: Vec<VecDeque<Held>> = Vec::with_capacity(self.tasks.len());
        for (number, (task, buffer)) in self.tasks.iter_mut().zip(&state.tasks).enumerate() {
            let pending = state.pending.iter().flatten();
            let of_task = pending.filter(|(task, _)| *task == number);
            let places: Vec<Place> = of_task.map(|(_, place)| *place).collect();
            found.push(task.restore(buffer, &places)?.into());
        }
        // As many of each task were asked for, in this order.
        let mut row =
            |&(task, _): &(usize, Place)| found[task].pop_front().map(|held| (task, held));
        let pending = state.pending.iter();
        let pending = pending.map(|rows| rows.iter().filter_map(&mut row).collect());
        self.pending = pending.collect();
        self.rng = state.rng.clone();
        Ok(())
    }
}
