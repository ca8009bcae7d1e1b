//! How many rows a stage or scores compute at once, and why.

use std::fmt;

use super::format::mebibytes;

/// The rows that a stage, or scores, compute at once, as they were chosen for a limit of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// Number of the stage, from 0, and its name; `None` for scores.
    pub stage: Option<(usize, String)>,
    /// The rows: `stages.N.micro_batch_size`, or `data.eval_batch_size`.
    pub rows: usize,
    /// Rows of a batch, or most rows of scores.
    pub batch: usize,
    /// Peak resident memory of the process with it, in bytes.
    pub peak: u64,
    /// The memory that the process may take, in bytes.
    pub limit: u64,
    /// The next larger one that does not fit, with the memory that it takes, as measured or as estimated.
    pub next: Option<(usize, u64)>,
}

impl fmt::Display for MicroBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [peak, limit] = [self.peak, self.limit].map(|bytes| mebibytes(Some(bytes)));
        let (what, key) = match &self.stage {
            Some((number, name)) => (
                format!("stage {name}"),
                format!("stages.{number}.micro_batch_size"),
            ),
            None => ("scores".into(), "data.eval_batch_size".into()),
        };
        let (rows, batch) = (self.rows, self.batch);
        write!(
            f,
            "{what}: {rows} of {batch} rows at once ({key}) take {peak} of {limit}"
        )?;
        match self.next {
            Some((rows, peak)) => write!(f, ", {rows} would take {}", mebibytes(Some(peak))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_next_size() {
        let micro = MicroBatch {
            stage: Some((0, "joint".into())),
            rows: 8,
            batch: 32,
            peak: 1 << 30,
            limit: 3 << 29,
            next: Some((16, 2 << 30)),
        };
        assert_eq!(
            micro.to_string(),
            "stage joint: 8 of 32 rows at once (stages.0.micro_batch_size) take 1,024 MiB of 1,536 MiB, \
             16 would take 2,048 MiB"
        );
    }
}
