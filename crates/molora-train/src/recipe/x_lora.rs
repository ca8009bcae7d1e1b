//! X-LoRA: one LoRA per task, then a classifier on the last hidden state of a first pass weighs them
//! token by token, at all sites alike. arXiv:2402.07148. Notes: docs/methods/x-lora.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, ExpertCount, FirstPassConfig, ParameterKind, RouterScope};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};
use super::{OptimizerConfig, Scope, StageConfig, Transform};

const CITATION: &str = "Buehler and Buehler, X-LoRA: Mixture of Low-Rank Adapter Experts, a Flexible \
                        Framework for Large Language Models, APL Machine Learning 2024, \
                        arXiv:2402.07148 (EricLBuehler/xlora@8217992)";

pub(super) const ABOUT: About = About {
    special: "experts trained apart, a first pass weighs them in all layers",
    parameters: "E R (D + O), one classifier",
    step_time: Some(1.26),
};

pub(super) fn recipe() -> Recipe {
    use ParameterKind::{Adapters, Heads, Routers};
    let bank = BankConfig {
        slices: Slices::Independent,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        ..BankConfig::default()
    };
    let classifier = RouterConfig {
        scorer: LinearConfig { bias: true }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        temperature: 1.0,
        selection: Selection::Dense,
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        experts: ExpertCount::PerTask,
        router_scope: RouterScope::FirstPass(FirstPassConfig::default()),
        bank,
        router: Some(classifier),
        ..AdapterSpec::default()
    };
    let train = |steps, trainable: &[ParameterKind]| StageConfig {
        // The classifier starts from nothing and has a few hundred steps.
        optimizer: OptimizerConfig {
            learning_rates: [(Heads, 1e-2), (Routers, 1e-2)].into(),
            ..OptimizerConfig::default()
        },
        ..StageConfig::new("classifier", steps, trainable)
    };
    let stages = vec![
        StageConfig {
            scope: Scope::EachTask,
            ..StageConfig::new("experts", 400, &[Adapters, Heads])
        },
        StageConfig::transform("assemble", Transform::Assemble),
        // Without adapters in this list the LoRAs stay as they are.
        train(200, &[Routers, Heads]),
    ];
    Recipe {
        stages,
        growth: vec![train(100, &[Routers])],
        ..Recipe::new("x-lora", CITATION, adapter)
    }
}
