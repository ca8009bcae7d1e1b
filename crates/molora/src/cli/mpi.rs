//! Ranks of MPI: what `mpirun` or `srun` has started exchanges data by the library that it belongs to.

use std::fmt;

use anyhow::{Context, bail};
use molora_train::collective::{Collective, CollectiveError};
use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

/// The most bytes that a call of MPI moves, whose counts are 32 bits wide.
const MOST: usize = i32::MAX as usize;

/// A rank of MPI.
pub(super) struct Mpi {
    world: SimpleCommunicator,
    /// Dropped last, which ends MPI.
    _universe: Universe,
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpi({} of {})", self.rank(), self.world_size())
    }
}

impl Mpi {
    /// Begins MPI.
    pub(super) fn start() -> anyhow::Result<Self> {
        // One thread at a time calls it, and not always the first.
        let begun = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, threading) = begun.context("MPI has begun already")?;
        if threading < Threading::Serialized {
            bail!(
                "this MPI allows calls of the first thread alone, expected MPI_THREAD_SERIALIZED"
            );
        }
        Ok(Self {
            world: universe.world(),
            _universe: universe,
        })
    }

    /// Ends all ranks.
    pub(super) fn abort(&self) -> ! {
        self.world.abort(1)
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn world_size(&self) -> usize {
        self.world.size() as usize
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        assert_eq!(parts.len(), self.world_size(), "a part for each rank");
        let sizes: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
        let mut incoming = vec![0_u64; parts.len()];
        self.world.all_to_all_into(&sizes[..], &mut incoming[..]);
        let sizes: Vec<usize> = sizes.into_iter().map(|size| size as usize).collect();
        let incoming: Vec<usize> = incoming.into_iter().map(|size| size as usize).collect();
        let (own, all) = (sizes.iter().sum::<usize>(), incoming.iter().sum::<usize>());
        if own.max(all) > MOST {
            let most = own.max(all);
            let problem =
                format!("a step would move {most} bytes at once, expected at most {MOST}");
            return Err(CollectiveError::Transport(problem));
        }
        // With room for one more: the address of a vector without any is 1, which Open MPI takes for MPI_IN_PLACE.
        let mut sent = Vec::with_capacity(own + 1);
        parts.iter().for_each(|part| sent.extend_from_slice(part));
        let mut found = Vec::with_capacity(all + 1);
        found.resize(all, 0_u8);
        let (counts, starts) = places(&sizes);
        let sending = Partition::new(&sent[..], counts, starts);
        let (counts, starts) = places(&incoming);
        let mut receiving = PartitionMut::new(&mut found[..], counts, starts);
        self.world
            .all_to_all_varcount_into(&sending, &mut receiving);
        let mut rest = &found[..];
        let mut take = |size: usize| {
            let (taken, behind) = rest.split_at(size);
            rest = behind;
            taken.to_vec()
        };
        Ok(incoming.into_iter().map(&mut take).collect())
    }
}

/// Sizes, and where each part begins, in MPI's numbers.
fn places(sizes: &[usize]) -> (Vec<i32>, Vec<i32>) {
    let starts = sizes.iter().scan(0, |next, &size| {
        let start = *next;
        *next += size;
        Some(start as i32)
    });
    (
        sizes.iter().map(|&size| size as i32).collect(),
        starts.collect(),
    )
}
