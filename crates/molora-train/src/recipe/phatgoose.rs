//! PHATGOOSE: experts trained apart, one gate each, routed by token without further training.
//! arXiv:2402.05859. Notes and differences from the released code: docs/methods/phatgoose.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, ExpertCount, ParameterKind};
use molora_routing::scorer::PrototypeConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};
use super::{OptimizerConfig, Scope, StageConfig, Transform};

const CITATION: &str = "Muqeeth et al., Learning to Route Among Specialized Experts for Zero-Shot \
                        Generalization, ICML 2024, arXiv:2402.05859";

pub(super) const ABOUT: About = About {
    special: "experts trained apart, routed by a gate each",
    parameters: "E R (D + O) + E D",
    step_time: Some(0.88),
};

pub(super) fn recipe() -> Recipe {
    Recipe {
        stages: stages(),
        ..Recipe::new("phatgoose", CITATION, adapter())
    }
}

/// Experts with prototypes at every site, the best two for each token.
pub(super) fn adapter() -> AdapterSpec {
    let bank = BankConfig {
        slices: Slices::Independent,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: PrototypeConfig.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        selection: Selection::TopK(2),
        ..RouterConfig::default()
    };
    AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        experts: ExpertCount::PerTask,
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    }
}

/// Experts, then gates with the experts frozen, ten to one as in the paper, then assembly.
pub(super) fn stages() -> Vec<StageConfig> {
    use ParameterKind::{Adapters, Heads, Routers};
    vec![
        StageConfig {
            scope: Scope::EachTask,
            ..StageConfig::new("experts", 520, &[Adapters, Heads])
        },
        StageConfig {
            scope: Scope::EachGate,
            optimizer: OptimizerConfig {
                learning_rate: 5e-3,
                ..OptimizerConfig::default()
            },
            ..StageConfig::new("gates", 80, &[Routers])
        },
        StageConfig::transform("assemble", Transform::Assemble),
        StageConfig::transform("prototypes", Transform::CollectPrototypes),
    ]
}
