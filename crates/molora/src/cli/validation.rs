//! How a training is watched on the validation split.

use std::num::NonZeroUsize;

use clap::Args;
use molora_train::recipe::Recipe;

/// Options about the validation split.
#[derive(Debug, Args)]
pub(super) struct ValidationArgs {
    /// Score the validation split every N steps of a stage, 0 for never [default: ten times a stage on
    /// an encoder, four times on a model that writes]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    eval_every: Option<usize>,
    /// Score at most N records of each task, the same ones each time [default: 256 on an encoder,
    /// 64 on a model that writes]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    eval_limit: Option<NonZeroUsize>,
}

impl ValidationArgs {
    /// Puts what was asked for into a recipe.
    pub(super) fn apply(&self, recipe: &mut Recipe) {
        let config = &mut recipe.validation;
        if self.eval_every.is_some() {
            config.every = self.eval_every;
        }
        if let Some(limit) = self.eval_limit {
            config.limit = Some(limit.get());
        }
    }
}
