//! A run that one process computes.

use super::{Collective, CollectiveError};

/// The only rank of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

impl Collective for Local {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        assert_eq!(parts.len(), 1, "a part for each rank");
        Ok(parts)
    }

    fn group(&self, count: usize) -> Result<Box<dyn Collective + '_>, CollectiveError> {
        assert_eq!(count, 1, "groups of one rank");
        Ok(Box::new(Self))
    }
}
