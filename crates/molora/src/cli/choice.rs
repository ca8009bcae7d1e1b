//! What the library lets choose, with the names and the help of the command line.

use clap::ValueEnum;
use molora_train::{compare, exchange, run};

/// The budget that is equal for all recipes.
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
    /// Equally
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

/// How experts become one.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum How {
    /// Weighted sums of the factors, as PEFT's linear; products of different experts come in
    Linear,
    /// The factors side by side: exactly the weighted sum, with the sum of the ranks
    Cat,
    /// The weighted sum, cut to --rank [default: the largest of the experts]
    Svd,
    /// The mean of the largest entries that have the elected sign
    Ties,
    /// The sum of random entries, divided by the share that stays
    Dare,
    /// As dare, of the entries that have the elected sign
    DareTies,
    /// The sum of the largest entries
    Magnitude,
    /// The sum of what the experts change, by 0.3 each unless --weights say otherwise
    TaskArithmetic,
    /// The sum by coefficients of every module and expert, learned from records without labels in --data;
    /// with --density of the largest entries that have the elected sign
    Adamerging,
    /// As adamerging, under a mask on the weights that is learned in the first half of the steps
    Concrete,
    /// A run whose layers have gates, learned from records without labels, that weigh the experts anew
    /// for each text
    Wemoe,
    /// As wemoe, with one gate for all layers and of each expert the largest tenth of its changes
    EWemoe,
    /// The sum of what the experts change but for embeddings, by 0.3 each unless --weights say otherwise,
    /// trained on --shots labelled records of each task
    RMtllmf,
}

impl From<How> for exchange::How {
    fn from(how: How) -> Self {
        match how {
            How::Linear => Self::Linear,
            How::Cat => Self::Cat,
            How::Svd => Self::Svd,
            How::Ties => Self::Ties,
            How::Dare => Self::Dare,
            How::DareTies => Self::DareTies,
            How::Magnitude => Self::Magnitude,
            How::TaskArithmetic => Self::TaskArithmetic,
            How::Adamerging => Self::Adamerging,
            How::Concrete => Self::Concrete,
            How::Wemoe => Self::Wemoe,
            How::EWemoe => Self::EWemoe,
            How::RMtllmf => Self::RMtllmf,
        }
    }
}

/// How the sign of an entry is elected.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Sign {
    /// That of the sum of the experts' entries
    Total,
    /// That of most experts
    Frequency,
}

impl From<Sign> for exchange::Sign {
    fn from(sign: Sign) -> Self {
        match sign {
            Sign::Total => Self::Total,
            Sign::Frequency => Self::Frequency,
        }
    }
}

/// The learning rate over steps that are added to a finished run.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum ScheduleChoice {
    /// The schedule of a run with so many steps from the beginning
    #[default]
    Extend,
    /// A new warm-up and decay over the added steps
    Restart,
}

impl From<ScheduleChoice> for run::Schedule {
    fn from(choice: ScheduleChoice) -> Self {
        match choice {
            ScheduleChoice::Extend => Self::Extend,
            ScheduleChoice::Restart => Self::Restart,
        }
    }
}
