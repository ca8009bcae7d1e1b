//! Numbers that depend on the base model and not on the method: rates, batches, lengths and steps.
//!
//! | base | rate of deltas that are scaled by `alpha / rank` | of others | of experts that train apart | batch | tokens | steps |
//! |---|---|---|---|---|---|---|
//! | encoder | 2e-3 | 4e-3 | 4e-3 | 32 | 64 | 600 |
//! | generative model | 2e-3 | 8e-3 | 2e-3 | 16 | 512 | 300 |
//!
//! A recipe that is named gets those of its base model; one that is read from a file has its own. The rates
//! were chosen on validation splits: for encoders in `docs/benchmarks/2026-11-29-xeon-2-cores`, for generative
//! models, with SmolLM2-135M, in `docs/benchmarks/2026-11-30-epyc-2-cores`. That of experts that train apart was not
//! tried on a generative model.

use std::path::Path;

use molora_adapters::Scaling;
use molora_models::{Backbone, ModelError, ParameterKind};

use super::{Recipe, StageConfig};

/// What kind of model a recipe is trained on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BaseKind {
    /// It reads a text, and heads predict the answers.
    #[default]
    Encoder,
    /// It generates its answers: a decoder or an encoder-decoder.
    Writer,
}

impl BaseKind {
    /// Of the model in a folder.
    ///
    /// # Errors
    /// If its `config.json` cannot be read, or names a family that is not supported.
    pub fn of(folder: &Path) -> Result<Self, ModelError> {
        Ok(match Backbone::writes_in(folder)? {
            true => Self::Writer,
            false => Self::Encoder,
        })
    }
}

/// The numbers for one kind of base model.
struct Profile {
    /// Learning rate of deltas that are scaled by `alpha / rank`.
    scaled_rate: f64,
    /// Of deltas that are not, which are smaller by about that factor.
    plain_rate: f64,
    /// Of experts that train one by one and not again: each has a share of the steps.
    apart_rate: f64,
    batch_size: usize,
    steps: usize,
}

const ENCODER: Profile = Profile {
    scaled_rate: 2e-3,
    plain_rate: 4e-3,
    apart_rate: 4e-3,
    batch_size: 32,
    steps: 600,
};

const WRITER: Profile = Profile {
    scaled_rate: 2e-3,
    plain_rate: 8e-3,
    apart_rate: 2e-3,
    batch_size: 16,
    steps: 300,
};

impl Profile {
    fn rate(&self, recipe: &Recipe) -> f64 {
        match recipe.adapter.bank.scaling {
            Scaling::Unit => self.plain_rate,
            _ if recipe.trains_apart() => self.apart_rate,
            _ => self.scaled_rate,
        }
    }
}

impl Recipe {
    /// Whether all stages that train experts train them one by one.
    fn trains_apart(&self) -> bool {
        let trains = |stage: &&StageConfig| {
            stage.transform.is_none() && stage.trainable.contains(&ParameterKind::Adapters)
        };
        self.stages
            .iter()
            .filter(trains)
            .all(StageConfig::trains_alone)
    }

    /// The recipe with the numbers that fit a kind of base model: the rate of its first stage, with the
    /// others' ratios to it, batch size, and steps in all.
    #[must_use]
    pub fn for_base(mut self, kind: BaseKind) -> Self {
        let profile = match kind {
            BaseKind::Encoder => ENCODER,
            BaseKind::Writer => WRITER,
        };
        self.set_learning_rate(profile.rate(&self));
        self.data.sampling.batch_size = profile.batch_size;
        self.set_total_steps(profile.steps);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{find, find_for, names};

    fn first_rate(recipe: &Recipe) -> f64 {
        let mut trained = recipe
            .stages
            .iter()
            .filter(|stage| stage.transform.is_none());
        let first = trained.next().expect("a stage trains");
        first.optimizer.learning_rate
    }

    #[test]
    fn every_recipe_has_the_numbers_of_its_base() {
        for name in names() {
            for (kind, profile) in [(BaseKind::Encoder, ENCODER), (BaseKind::Writer, WRITER)] {
                let recipe = find_for(name, kind).expect("listed");
                let steps: usize = recipe.stages.iter().map(|stage| stage.steps).sum();
                assert_eq!(steps, profile.steps, "{name}");
                assert_eq!(recipe.data.sampling.batch_size, profile.batch_size);
                let is_apart = ["arrow", "at-moe", "glider", "phatgoose", "x-lora"].contains(&name);
                let expected = match recipe.adapter.bank.scaling {
                    Scaling::Unit => profile.plain_rate,
                    _ if is_apart => profile.apart_rate,
                    _ => profile.scaled_rate,
                };
                assert_eq!(first_rate(&recipe), expected, "{name}");
                recipe.check().expect("valid");
            }
        }
    }

    #[test]
    fn stages_keep_their_ratios() {
        let [encoder, writer] = [find("phatgoose"), find_for("phatgoose", BaseKind::Writer)]
            .map(|recipe| recipe.expect("listed"));
        for recipe in [encoder, writer] {
            let gates = recipe.stages[1].optimizer.learning_rate;
            assert!((gates / first_rate(&recipe) - 5.0).abs() < 1e-9);
        }
    }
}
