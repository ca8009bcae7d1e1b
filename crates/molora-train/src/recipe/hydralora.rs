//! HydraLoRA: one A, several B, a dense token router. Tian et al., arXiv:2404.19245.
//! Notes: docs/methods/hydralora.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Tian et al., HydraLoRA: An Asymmetric LoRA Architecture for Efficient \
                        Fine-Tuning, NeurIPS 2024, arXiv:2404.19245";

pub(super) const ABOUT: About = About {
    special: "one A, several B, a dense token router",
    parameters: "R D + E R O + E D",
    step_time: Some(1.16),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Shared,
        num_experts: 3,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        dropout: 0.05,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: false }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        temperature: 1.0,
        selection: Selection::Dense,
        ..RouterConfig::default()
    };
    let targets = ATTENTION.map(String::from).to_vec();
    let adapter = AdapterSpec {
        targets,
        bank,
        router: Some(router),
        gate: None,
        ..AdapterSpec::default()
    };
    Recipe::new("hydralora", CITATION, adapter)
}
