//! What the library lets choose, with the names and the help of the command line.

use clap::ValueEnum;
use molora_train::{compare, exchange};

/// What is made equal between recipes.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Budget {
    /// Trainable parameters beside the heads: ranks are chosen to come near the first recipe's
    Params,
    /// Optimizer steps only: recipes keep their ranks
    Steps,
}

impl From<Budget> for compare::Budget {
    fn from(budget: Budget) -> Self {
        match budget {
            Budget::Params => Self::Params,
            Budget::Steps => Self::Steps,
        }
    }
}

/// How given experts are weighed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum RouterChoice {
    /// By the direction of its input that each expert stretches most; needs nothing but the experts
    Arrow,
    /// By the gates that were trained with the experts
    Phatgoose,
    /// By the experts' gates, if they have any, and instructions
    Glider,
    /// All alike
    Uniform,
}

impl From<RouterChoice> for exchange::RouterChoice {
    fn from(choice: RouterChoice) -> Self {
        match choice {
            RouterChoice::Arrow => Self::Arrow,
            RouterChoice::Phatgoose => Self::Phatgoose,
            RouterChoice::Glider => Self::Glider,
            RouterChoice::Uniform => Self::Uniform,
        }
    }
}
