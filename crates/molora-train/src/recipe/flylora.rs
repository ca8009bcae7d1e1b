//! FlyLoRA: a frozen sparse A whose largest codes choose which ranks act. Zou et al., arXiv:2510.08396.
//! Notes: docs/methods/flylora.md
use molora_adapters::down::FrozenSparseConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_routing::normaliser::NoneConfig;
use molora_routing::scorer::MagnitudeConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Zou et al., FlyLoRA: Boosting Task Decoupling and Parameter Efficiency via \
                        Implicit Rank-Wise Mixture-of-Experts, NeurIPS 2025, arXiv:2510.08396";

pub(super) const ABOUT: About = About {
    special: "frozen sparse A, the largest codes choose the ranks",
    parameters: "E O",
    step_time: Some(1.12),
};

pub(super) fn recipe() -> Recipe {
    // Every rank is an expert: 32 of them, of which a token gets 8.
    let bank = BankConfig {
        slices: Slices::Independent,
        down: FrozenSparseConfig::default().into(),
        num_experts: 32,
        rank: 1,
        // Alpha is twice the number of ranks.
        scaling: Scaling::AlphaOverRank(2.0),
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: MagnitudeConfig::default().into(),
        route_from: RouteFrom::LowRank,
        granularity: Granularity::Token,
        selection: Selection::TopK(8),
        normaliser: NoneConfig.into(),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    Recipe::new("flylora", CITATION, adapter)
}
