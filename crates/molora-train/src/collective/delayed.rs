//! Ranks whose messages take longer than they do.

use std::fmt::Debug;
use std::ops::Deref;
use std::time::Duration;

use super::{Collective, CollectiveError};

/// A collective each of whose exchanges takes a while longer, as over a network: for tests, and for measuring what a slow
/// one costs. `C` is a reference or a box of the one that is delayed.
#[derive(Debug)]
pub struct Delayed<C> {
    inner: C,
    delay: Duration,
}

impl<C: Deref<Target: Collective> + Debug> Delayed<C> {
    /// Delays every exchange of `inner`.
    pub fn new(inner: C, delay: Duration) -> Self {
        Self { inner, delay }
    }
}

impl<C: Deref<Target: Collective> + Debug> Collective for Delayed<C> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let found = self.inner.exchange(parts);
        std::thread::sleep(self.delay);
        found
    }

    fn group(&self, count: usize) -> Result<Box<dyn Collective + '_>, CollectiveError> {
        let group = self.inner.group(count)?;
        Ok(Box::new(Delayed::new(group, self.delay)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::on_threads;

    #[test]
    fn slow_messages_are_the_same_messages() {
        let found = on_threads(3, |rank| {
            let slow = Delayed::new(rank, Duration::from_millis(1));
            let all = slow.gather(vec![rank.rank() as u8]).expect("all are here");
            let group = slow.group(3).expect("groups of one");
            let own = group.gather(vec![rank.rank() as u8]).expect("alone");
            (all.concat(), own.concat(), group.world_size())
        });
        for (rank, found) in found.into_iter().enumerate() {
            assert_eq!(found, (vec![0, 1, 2], vec![rank as u8], 1));
        }
    }
}
