//! HMoRA: a router by token and one by task, blended by a learned share that differs by layer. Liao et al.,
//! ICLR 2025. Notes, and what stands in for the paper's task encoder: docs/methods/hmora.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{Divergence, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::normaliser::SoftmaxTwiceConfig;
use molora_routing::scorer::BlendConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Liao et al., HMoRA: Making LLMs More Effective with Hierarchical Mixture of LoRA \
                        Experts, ICLR 2025, openreview:lTkHiXeuDl";

pub(super) const ABOUT: About = About {
    special: "token and task routers blended by a learned share",
    parameters: "R D + E R O + E (D + W)",
    step_time: Some(1.33),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Shared,
        num_experts: 8,
        rank: 8,
        scaling: Scaling::RankStabilized(8.0),
        dropout: 0.1,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: BlendConfig {
            task_width: 64,
            range: 2.0,
            shift: 0.0,
        }
        .into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        temperature: 1.0,
        selection: Selection::TopK(2),
        normaliser: SoftmaxTwiceConfig.into(),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    let divergence = TermConfig {
        term: Divergence {
            certain: 0.5,
            balanced: 0.98,
        }
        .into(),
        weight: 5e-3,
        within_site: Reduction::Mean,
        over_sites: Reduction::Sum,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![divergence],
        },
        ..Recipe::new("hmora", CITATION, adapter)
    }
}
