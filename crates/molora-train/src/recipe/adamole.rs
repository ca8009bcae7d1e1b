//! AdaMoLE: as many experts as exceed a learned threshold. Liu and Luo, arXiv:2405.00361.
//! Notes: docs/methods/adamole.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{ObjectiveConfig, Reduction, TermConfig, ThresholdBalance};
use molora_routing::normaliser::ThresholdConfig;
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Liu and Luo, AdaMoLE: Fine-Tuning Large Language Models with Adaptive Mixture of \
                        Low-Rank Adaptation Experts, COLM 2024, arXiv:2405.00361";

pub(super) const ABOUT: About = About {
    special: "as many experts as exceed a learned threshold",
    parameters: "E R (D + O) + E D + D",
    step_time: Some(1.18),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        num_experts: 8,
        rank: 4,
        scaling: Scaling::AlphaOverRank(8.0),
        dropout: 0.05,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: false }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        temperature: 1.0,
        selection: Selection::Dense,
        // One over the number of experts: at least one of them passes.
        normaliser: ThresholdConfig { theta_max: None }.into(),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    let balance = TermConfig {
        term: ThresholdBalance.into(),
        weight: 1e-3,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![balance],
        },
        ..Recipe::new("adamole", CITATION, adapter)
    }
}
