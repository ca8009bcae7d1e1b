//! AT-MoE: one LoRA per task, grouped two-level routers per layer, a general LoRA beside them.
//! arXiv:2410.10896. Notes, and what the paper leaves open: docs/methods/at-moe.md
use molora_adapters::{BankConfig, GeneralExpert, Scaling, Slices};
use molora_models::{AdapterSpec, ExpertCount, ParameterKind, RouterScope};
use molora_routing::scorer::GroupedConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, ScorerConfig, Selection};

use super::{ATTENTION, About, Recipe};
use super::{Scope, StageConfig, Transform};

const CITATION: &str = "Li and Yao, AT-MoE: Adaptive Task-planning Mixture of Experts via LoRA \
                        Approach, arXiv:2410.10896";

pub(super) const ABOUT: About = About {
    special: "an expert per task, routers over groups, a general expert",
    parameters: "(E + 1) R (D + O), routers by layer",
    step_time: Some(1.02),
};

pub(super) fn recipe() -> Recipe {
    use ParameterKind::{Adapters, Heads, Routers};
    let bank = BankConfig {
        slices: Slices::Independent,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        ..BankConfig::default()
    };
    // Its groups are those of the tasks' task.json, unless it names some.
    let grouped = GroupedConfig::default();
    let router = RouterConfig {
        scorer: ScorerConfig::Grouped(grouped),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        temperature: 1.0,
        selection: Selection::Dense,
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        experts: ExpertCount::PerTask,
        general: Some(GeneralExpert::RoutedShare(0.7)),
        router_scope: RouterScope::Layer,
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    let stages = vec![
        StageConfig {
            scope: Scope::General,
            ..StageConfig::new("general", 150, &[Adapters, Heads])
        },
        StageConfig {
            scope: Scope::EachTask,
            ..StageConfig::new("experts", 300, &[Adapters, Heads])
        },
        StageConfig::transform("assemble", Transform::Assemble),
        StageConfig::new("routers", 150, &[Routers, Heads]),
    ];
    Recipe {
        stages,
        growth: vec![StageConfig::new("routers", 50, &[Routers, Heads])],
        ..Recipe::new("at-moe", CITATION, adapter)
    }
}
