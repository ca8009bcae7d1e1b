//! Mixture-of-LoRAs: one LoRA per domain, then routers that learn the domain of a sequence.
//! arXiv:2403.03432. Notes, and what the paper leaves open: docs/methods/moa.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, ExpertCount, ParameterKind, RouterScope};
use molora_regularize::{DomainCrossEntropy, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, LayerRule, Pooling, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};
use super::{OptimizerConfig, Scope, StageConfig, StageRouting, Transform};

const CITATION: &str = "Feng et al., Mixture-of-LoRAs: An Efficient Multitask Tuning for Large \
                        Language Models, LREC-COLING 2024, arXiv:2403.03432";

pub(super) const ABOUT: About = About {
    special: "an expert per task, one per sequence, routers learn the domain",
    parameters: "E R (D + O), routers by layer",
    step_time: Some(0.94),
};

pub(super) fn recipe() -> Recipe {
    use ParameterKind::{Adapters, Heads, Routers};
    let bank = BankConfig {
        slices: Slices::Independent,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: true }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Sequence,
        pooling: Pooling::Mean,
        selection: Selection::Argmax,
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        experts: ExpertCount::PerTask,
        router_scope: RouterScope::Layer,
        layer_rule: LayerRule::PerLayer,
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    // The paper gives no weight; the mean over layers keeps it independent of the depth.
    let domain = TermConfig {
        term: DomainCrossEntropy.into(),
        weight: 0.1,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    };
    let routers = |steps, trainable: &[ParameterKind]| StageConfig {
        routing: StageRouting::Label,
        // Routers start from nothing and have a few hundred steps.
        optimizer: OptimizerConfig {
            learning_rates: [(Heads, 1e-2), (Routers, 1e-2)].into(),
            ..OptimizerConfig::default()
        },
        ..StageConfig::new("routers", steps, trainable)
    };
    let stages = vec![
        StageConfig {
            scope: Scope::EachTask,
            ..StageConfig::new("experts", 400, &[Adapters, Heads])
        },
        StageConfig::transform("assemble", Transform::Assemble),
        // Without adapters in this list the LoRAs stay as they are.
        routers(200, &[Adapters, Routers, Heads]),
    ];
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![domain],
        },
        stages,
        growth: vec![routers(100, &[Routers])],
        ..Recipe::new("moa", CITATION, adapter)
    }
}
