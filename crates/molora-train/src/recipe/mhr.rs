//! Multi-head routing: Polytropon whose blocks of inputs and outputs mix skills for themselves. Caccia et
//! al., arXiv:2211.03831. Notes: docs/methods/mhr.md
use molora_adapters::combine::FactorsConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_routing::normaliser::SigmoidShareConfig;
use molora_routing::scorer::{TableConfig, UnknownTask};
use molora_routing::{Granularity, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Caccia et al., Multi-Head Adapter Routing for Cross-Task Generalization, NeurIPS 2023, \
                        arXiv:2211.03831";

pub(super) const ABOUT: About = About {
    special: "Poly with several heads of skills",
    parameters: "S R (D + O) + T S H",
    step_time: None,
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        combine: FactorsConfig { splits: 4 }.into(),
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
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    Recipe::new("mhr", CITATION, adapter)
}
