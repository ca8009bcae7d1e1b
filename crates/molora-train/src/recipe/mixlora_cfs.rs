//! Conditional mixture of LoRA: each text takes its own pairs of down- and up-vectors out of two pools. Shen
//! et al., arXiv:2402.15896. Notes: docs/methods/mixlora-cfs.md
use molora_adapters::combine::GridConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_routing::scorer::ConditionalConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Shen et al., Multimodal Instruction Tuning with Conditional Mixture of LoRA (MixLoRA), ACL \
                        2024, arXiv:2402.15896";

pub(super) const ABOUT: About = About {
    special: "rank-1 factors chosen by text, B's with a view to A's",
    parameters: "R D + E O + (R + E + k E) D",
    step_time: Some(1.05),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Shared,
        combine: GridConfig.into(),
        // Two pools of 8 vectors.
        num_experts: 8,
        rank: 8,
        // Twice the pool over the 4 pairs that take part.
        scaling: Scaling::AlphaOverRank(32.0),
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: ConditionalConfig {
            selected: 4,
            condition: 1.0,
        }
        .into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Sequence,
        selection: Selection::Dense,
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    Recipe::new("mixlora-cfs", CITATION, adapter)
}
