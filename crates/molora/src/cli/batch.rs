//! Options about the rows of a batch, and the memory that they take.

use std::str::FromStr;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::Args;
use molora_train::base::machine::free_memory_bytes;
use molora_train::recipe::Recipe;

/// The share of the free memory that is used where nothing says how much may be, in per cent.
const SHARE: u64 = 80;

/// Options about the rows of a batch.
#[derive(Debug, Args)]
pub(super) struct BatchArgs {
    /// Rows of an optimizer step; or auto: those of the recipe, in the largest micro-batches that the memory has
    /// room for, by trial steps
    #[arg(long, value_name = "N|auto")]
    batch_size: Option<BatchSize>,
    /// With --batch-size auto: the memory that molora may take, such as 8GiB [default: 80 % of what is free]
    #[arg(long, value_name = "SIZE", requires = "batch_size")]
    memory: Option<ByteSize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BatchSize {
    Rows(usize),
    Auto,
}

impl FromStr for BatchSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "auto" => Ok(Self::Auto),
            Ok(rows) if rows > 0 => Ok(Self::Rows(rows)),
            _ => Err("expected a number of rows, or auto"),
        }
    }
}

impl BatchArgs {
    /// Puts the rows of a batch into a recipe; returns the memory in bytes that micro-batches are chosen for.
    pub(super) fn apply(&self, recipe: &mut Recipe) -> anyhow::Result<Option<u64>> {
        match (self.batch_size, self.memory) {
            (Some(BatchSize::Auto), Some(memory)) => Ok(Some(memory.as_u64())),
            (Some(BatchSize::Auto), None) => {
                let free = free_memory_bytes();
                let free = free.context("this system does not tell what is free: give --memory")?;
                Ok(Some(free / 100 * SHARE))
            }
            (_, Some(_)) => bail!("--memory goes with --batch-size auto"),
            (Some(BatchSize::Rows(rows)), None) => {
                recipe.data.sampling.batch_size = rows;
                Ok(None)
            }
            (None, None) => Ok(None),
        }
    }
}
