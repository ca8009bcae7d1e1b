//! Arrow: experts trained apart, routed by token without any training of routers. Ostapenko et al.,
//! arXiv:2405.11157. Notes: docs/methods/arrow.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, ExpertCount, ParameterKind};
use molora_routing::scorer::ArrowConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};
use super::{Scope, StageConfig, Transform};

const CITATION: &str = "Ostapenko et al., Towards Modular LLMs by Building and Reusing a Library of \
                        LoRAs, ICML 2024, arXiv:2405.11157";

pub(super) const ABOUT: About = About {
    special: "experts trained apart, routed by their singular directions",
    parameters: "E R (D + O)",
    step_time: Some(0.97),
};

pub(super) fn recipe() -> Recipe {
    use ParameterKind::{Adapters, Heads};
    let bank = BankConfig {
        slices: Slices::Independent,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: ArrowConfig.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        temperature: 1.0,
        selection: Selection::TopK(2),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        experts: ExpertCount::PerTask,
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    let stages = vec![
        StageConfig {
            scope: Scope::EachTask,
            ..StageConfig::new("experts", 600, &[Adapters, Heads])
        },
        StageConfig::transform("assemble", Transform::Assemble),
        StageConfig::transform("directions", Transform::CollectDirections),
    ];
    Recipe {
        stages,
        ..Recipe::new("arrow", CITATION, adapter)
    }
}
