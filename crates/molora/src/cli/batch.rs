//! Options about the rows of a batch, and the memory that they take.

use std::str::FromStr;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::Args;
use molora_train::base::machine::free_memory_bytes;
use molora_train::recipe::Recipe;

/// The share of the free memory that is used where nothing says how much may be, in per cent.
const SHARE: u64 = 80;

/// The most rows of a step.
const MAX_ROWS: usize = 65_536;

/// Options about the rows of a batch.
#[derive(Debug, Args)]
pub(super) struct BatchArgs {
    /// Rows of an optimizer step; or auto: those of the recipe, in the largest micro-batches that the memory has
    /// room for, by trial steps
    #[arg(long, value_name = "N|auto")]
    batch_size: Option<BatchSize>,
    /// With --batch-size auto: the memory that molora may take, such as 8GiB [default: 80 % of what is free]
    #[arg(long, value_name = "SIZE", requires = "batch_size", value_parser = memory, allow_hyphen_values = true)]
    memory: Option<u64>,
}

/// A number of bytes with its unit, without which 8 would be eight bytes.
fn memory(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a number above 0 with a unit, such as 8GiB or 500MB";
    let is_of_number = |byte: char| byte.is_ascii_digit() || ".+-".contains(byte);
    let unit = text.trim_start_matches(is_of_number).trim();
    let number = text[..text.len() - text.trim_start_matches(is_of_number).len()].parse::<f64>();
    let Ok(number) = number else {
        return Err(format!("`{text}` is no size, {EXPECTED}"));
    };
    if unit.is_empty() {
        return Err(format!(
            "{text} has no unit, expected one such as {text}GiB"
        ));
    }
    let unit: ByteSize = format!("1{unit}")
        .parse()
        .map_err(|_| format!("`{unit}` is no unit of memory, {EXPECTED}"))?;
    let bytes = number * unit.as_u64() as f64;
    match bytes >= 1.0 && bytes < u64::MAX as f64 {
        true => Ok(bytes as u64),
        false => Err(format!("{text} is no size of a memory, {EXPECTED}")),
    }
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
            Ok(rows) if (1..=MAX_ROWS).contains(&rows) => Ok(Self::Rows(rows)),
            _ => Err("expected a number of rows from 1 to 65536, or auto"),
        }
    }
}

impl BatchArgs {
    /// Puts the rows of a batch into a recipe; returns the memory in bytes that micro-batches are chosen for.
    pub(super) fn apply(&self, recipe: &mut Recipe) -> anyhow::Result<Option<u64>> {
        match (self.batch_size, self.memory) {
            (Some(BatchSize::Auto), Some(memory)) => Ok(Some(memory)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_number_and_a_unit() {
        for (text, expected) in [
            ("8GiB", 8 << 30),
            ("1.5 KiB", 1536),
            ("500MB", 500_000_000),
            ("1B", 1),
        ] {
            assert_eq!(memory(text), Ok(expected), "{text}");
        }
        for (text, words) in [
            ("8", "8 has no unit, expected one such as 8GiB"),
            (
                "-1GiB",
                "-1GiB is no size of a memory, expected a number above 0",
            ),
            ("0GiB", "0GiB is no size of a memory"),
            ("99999999999PiB", "is no size of a memory"),
            ("nanGiB", "`nanGiB` is no size, expected a number"),
            ("infGiB", "`infGiB` is no size"),
            ("much", "`much` is no size"),
            ("", "`` is no size"),
            ("8GB RAM", "`GB RAM` is no unit of memory"),
            ("8apples", "`apples` is no unit of memory"),
        ] {
            let error = memory(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
