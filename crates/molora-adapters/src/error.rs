//! What can be wrong with an adapter's configuration or inputs.

/// An invalid value in the configuration of a bank or gate, or an unknown task.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// Experts of different ranks that do not fit the bank, in words.
    #[error("{0}")]
    Sizes(String),
    /// A size that must be at least one is zero.
    #[error("{field} is 0, expected at least 1")]
    Zero {
        /// Name of the field.
        field: &'static str,
    },
    /// A probability outside `[0, 1)`.
    #[error("{field} is {value}, expected at least 0 and less than 1")]
    Probability {
        /// Name of the field.
        field: &'static str,
        /// What was found.
        value: f64,
    },
    /// A number that must be finite and positive is not.
    #[error("{field} is {value}, expected a finite number above 0")]
    NotPositive {
        /// Name of the field.
        field: &'static str,
        /// What was found.
        value: f64,
    },
    /// The rank exceeds what the site can hold.
    #[error("rank {rank} exceeds the smaller width {limit} of a site")]
    RankTooLarge {
        /// The configured rank.
        rank: usize,
        /// The smaller of the site's input and output width.
        limit: usize,
    },
    /// A number of groups that does not divide what it groups.
    #[error("groups of {groups} do not divide the {what} {size}")]
    Groups {
        /// How many, or how large.
        groups: usize,
        /// What is grouped.
        what: &'static str,
        /// Its size.
        size: usize,
    },
    /// Choices of a bank that do not go together.
    #[error("{name} needs {needs}")]
    Combine {
        /// The choice.
        name: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// A share outside of 0 to 1.
    #[error("{field} is {value}, expected a number from 0 to 1")]
    Share {
        /// Name of the field.
        field: &'static str,
        /// What was found.
        value: f64,
    },
    /// Factors of different ranks where they have to be summed.
    #[error("ranks {first} and {other} differ, expected one rank for a sum of factors")]
    Ranks {
        /// Rank of the first adapter.
        first: usize,
        /// Another rank.
        other: usize,
    },
    /// A task number that was not in training and was not marked as unknown.
    #[error("task {task} is out of range, expected less than {num_tasks} or no task")]
    TaskOutOfRange {
        /// The task number that was found.
        task: usize,
        /// How many tasks exist.
        num_tasks: usize,
    },
    /// An expert that cannot stand beside the others.
    #[error("expert {index}: {problem}")]
    Unlike {
        /// Number of the expert's bank.
        index: usize,
        /// What was found and what was expected.
        problem: String,
    },
}
