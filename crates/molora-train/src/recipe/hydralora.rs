//! HydraLoRA: one A, several B, a dense token router. Tian et al., arXiv:2404.19245.
//! Notes: docs/methods/hydralora.md
use molora_adapters::{BankConfig, Scaling, Sharing};
use molora_models::AdapterSpec;
use molora_routing::{Granularity, RouteFrom, RouterConfig, ScorerConfig, Selection};

use super::{ATTENTION, Recipe};

const CITATION: &str = "Tian et al., HydraLoRA: An Asymmetric LoRA Architecture for Efficient \
                        Fine-Tuning, NeurIPS 2024, arXiv:2404.19245";

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        sharing: Sharing::SharedA,
        num_experts: 3,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        rank_scale: false,
        dropout: 0.05,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: ScorerConfig::Linear { bias: false },
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
