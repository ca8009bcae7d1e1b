//! Training splits that do not fit into memory: read record by record while the training goes on.
//!
//! A split is cut into *streams* of consecutive records, as many whatever the number of ranks; each has a share of the
//! rows of every batch, and of the records. A rank reads the streams that are its own, and the ranks exchange the
//! examples of a step. So any number of ranks trains on the same batches. A stream shuffles by a bounded buffer:
//! what is drawn leaves it, and the records that come next take its place. A pass over the records ends with an empty
//! buffer, so that every record is seen once before any is seen again.
//!
//! `split` finds records by their numbers, `source` makes them examples, `shuffle` is the buffer, `streams` draws
//! batches, `state` is what a checkpoint has of all this: places of records, and no texts.

mod shuffle;
mod source;
mod split;
mod state;
mod streams;

pub(crate) use source::{Encoder, StreamedTask, TaskSource};
pub use split::StreamedSplit;
pub use state::StreamsState;
pub(crate) use state::{Plan, StreamState};
pub(crate) use streams::Streams;

#[cfg(test)]
mod tests;
