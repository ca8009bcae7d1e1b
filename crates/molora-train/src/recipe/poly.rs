//! Polytropon: a task mixes skills, A with A and B with B, before they are multiplied. Ponti et al.,
//! arXiv:2202.13914. Notes: docs/methods/poly.md
use molora_adapters::combine::FactorsConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_routing::normaliser::SigmoidShareConfig;
use molora_routing::scorer::{TableConfig, UnknownTask};
use molora_routing::{Granularity, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Ponti et al., Combining Modular Skills in Multitask Learning (Polytropon), EACL 2023, \
                        arXiv:2202.13914";

pub(super) const ABOUT: About = About {
    special: "skills mixed as matrices by a table of tasks",
    parameters: "S R (D + O) + T S",
    step_time: Some(0.93),
};

pub(super) fn recipe() -> Recipe {
    Recipe::new("poly", CITATION, adapter(1))
}

/// The specification of the mixture with so many blocks of inputs and outputs, each of which mixes skills
/// for itself.
pub(super) fn adapter(splits: usize) -> AdapterSpec {
    let bank = BankConfig {
        slices: Slices::Independent,
        combine: FactorsConfig { splits }.into(),
        // Skills.
        num_experts: 4,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: TableConfig {
            unknown: UnknownTask::Zero,
            bound: Some(1e-3),
        }
        .into(),
        granularity: Granularity::Task,
        // A relaxed Bernoulli of each skill while training.
        relaxed: true,
        selection: Selection::Dense,
        normaliser: SigmoidShareConfig.into(),
        ..RouterConfig::default()
    };
    AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    }
}
