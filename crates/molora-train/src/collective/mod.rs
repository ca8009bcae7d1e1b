//! What the ranks of one run tell each other.
//!
//! A run may be computed by several processes, *ranks* in the language of MPI. All of them have the same model and go
//! through the same steps; each computes its share of a batch, and a [`Collective`] carries what the shares give.
//! Numbers are added along one fixed binary [tree](TreeSum) of micro-batches, whatever rank computed which, so that
//! the sum has the same bits for any number of ranks.

mod delayed;
mod gradients;
mod local;
#[cfg(feature = "mpi")]
mod mpi;
mod threads;
mod tree;

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use delayed::Delayed;
pub(crate) use gradients::{add, summed};
pub use local::Local;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub use threads::{ThreadRank, on_threads};
pub use tree::{Node, TreeSum};

/// Why ranks could not exchange something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// Another rank has ended.
    #[error("rank {rank} of {world_size} has ended before this one; its own message says why")]
    Gone {
        /// The rank.
        rank: usize,
        /// How many there are.
        world_size: usize,
    },
    /// Nothing is heard of another rank.
    #[error(
        "rank {rank} of {world_size} has given no sign for {seconds} s: it was stopped, hangs, or cannot be reached; \
         all ranks end, and a resumed run goes on from its newest checkpoint"
    )]
    Silent {
        /// The rank.
        rank: usize,
        /// How many there are.
        world_size: usize,
        /// For how long.
        seconds: u64,
    },
    /// What came from a rank is not what was expected.
    #[error("rank {rank} sent something else than expected: {problem}")]
    Garbled {
        /// The rank.
        rank: usize,
        /// What was found and expected.
        problem: String,
    },
    /// A rank would compute another run.
    #[error(
        "rank {rank} has another {what} than rank 0: all ranks have to be started alike, with the same files"
    )]
    Differs {
        /// The rank.
        rank: usize,
        /// What differs.
        what: &'static str,
    },
    /// A rank does not see a run that all go on with.
    #[error(
        "{}: rank {rank} does not see this run, expected a folder on a file system that all ranks share",
        folder.display()
    )]
    Unseen {
        /// The rank.
        rank: usize,
        /// The folder.
        folder: PathBuf,
    },
    /// More ranks than rows.
    #[error(
        "{ranks} ranks share batches of {rows} rows, expected at most one rank for each row of data.sampling.batch_size"
    )]
    TooMany {
        /// Number of ranks.
        ranks: usize,
        /// Rows of a batch.
        rows: usize,
    },
    /// The transport failed.
    #[error("ranks cannot exchange data: {0}")]
    Transport(String),
}

/// A way in which the ranks of a run exchange bytes.
///
/// Every rank makes the same calls in the same order; a call returns when all ranks have made it.
pub trait Collective: Debug {
    /// This rank, from 0. Rank 0 writes the run folder.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// Sends `parts[r]` to rank `r`, and returns what every rank sent here, by rank (all-to-all).
    ///
    /// # Errors
    /// If a rank has ended, or the transport fails.
    ///
    /// # Panics
    /// If there is not one part for each rank.
    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CollectiveError>;

    /// What every rank gave, by rank (all-gather).
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    fn gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.exchange(vec![own; self.world_size()])
    }

    /// What rank 0 gave; the others' bytes are not looked at.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    fn broadcast(&self, own: Vec<u8>) -> Result<Vec<u8>, CollectiveError> {
        let parts = match self.rank() {
            0 => vec![own; self.world_size()],
            _ => vec![Vec::new(); self.world_size()],
        };
        Ok(self.exchange(parts)?.swap_remove(0))
    }

    /// This rank's group of `count` groups of consecutive ranks, as many in each as in any other or one more: a
    /// collective of its own, whose ranks exchange data without the others.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    ///
    /// # Panics
    /// If there are not 1 to [`world_size`](Self::world_size) groups.
    fn group(&self, count: usize) -> Result<Box<dyn Collective + '_>, CollectiveError>;

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    fn barrier(&self) -> Result<(), CollectiveError> {
        self.gather(Vec::new()).map(drop)
    }
}

/// The share of a rank in so many pieces of work: consecutive ones, as many as any other rank has, or one more.
pub fn share(count: usize, rank: usize, world_size: usize) -> Range<usize> {
    count * rank / world_size..count * (rank + 1) / world_size
}

/// The number of a rank's [group](Collective::group) and the ranks that it has, of `count` groups.
///
/// # Panics
/// If there are not 1 to `world_size` groups, or there is no such rank.
pub fn group_of(rank: usize, count: usize, world_size: usize) -> (usize, Range<usize>) {
    assert!(
        (1..=world_size).contains(&count),
        "{count} groups of {world_size} ranks"
    );
    let groups = (0..count).map(|group| (group, share(world_size, group, count)));
    let mut own = groups.filter(|(_, ranks)| ranks.contains(&rank));
    own.next().expect("every rank is in a group")
}

/// The values of all ranks, by rank.
///
/// # Errors
/// As [`Collective::exchange`], and [`CollectiveError::Garbled`].
pub fn gather_values<T: Serialize + DeserializeOwned>(
    collective: &dyn Collective,
    own: T,
) -> Result<Vec<T>, CollectiveError> {
    if collective.world_size() == 1 {
        return Ok(vec![own]);
    }
    let bytes = serde_json::to_vec(&own);
    let bytes = bytes.map_err(|error| CollectiveError::Transport(error.to_string()))?;
    let gathered = collective.gather(bytes)?;
    let read = |(rank, bytes): (usize, Vec<u8>)| {
        serde_json::from_slice(&bytes).map_err(|error| CollectiveError::Garbled {
            rank,
            problem: error.to_string(),
        })
    };
    gathered.into_iter().enumerate().map(read).collect()
}

/// Which of some things any rank says.
///
/// # Errors
/// As [`Collective::exchange`].
pub(crate) fn any<const N: usize>(
    collective: &dyn Collective,
    own: [bool; N],
) -> Result<[bool; N], CollectiveError> {
    let own = own.map(u8::from).to_vec();
    let mut found = [false; N];
    for said in collective.gather(own)? {
        found
            .iter_mut()
            .zip(said)
            .for_each(|(found, said)| *found |= said != 0);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_consecutive_and_alike() {
        for (count, world_size) in [(7, 3), (4, 4), (2, 3), (0, 2), (12, 1)] {
            let shares: Vec<_> = (0..world_size)
                .map(|rank| share(count, rank, world_size))
                .collect();
            assert_eq!(shares[0].start, 0);
            assert_eq!(shares[world_size - 1].end, count);
            for pair in shares.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
            }
            let sizes: Vec<_> = shares.iter().map(ExactSizeIterator::len).collect();
            let (least, most) = (sizes.iter().min(), sizes.iter().max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{sizes:?}");
        }
    }
}
