//! MixLoRA: experts that are whole feed-forward parts, top-2 by token, and a plain LoRA on attention.
//! arXiv:2404.15159. Notes, and where paper and code differ: docs/methods/mixlora.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, Composition};
use molora_regularize::{LoadBalance, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{About, Recipe};

const CITATION: &str = "Li et al., MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA-based \
                        Mixture of Experts, arXiv:2404.15159 (TUDB-Labs/MoE-PEFT)";

pub(super) const ABOUT: About = About {
    special: "experts are whole feed-forwards, top-2",
    parameters: "E R (D + O), routers by layer",
    step_time: Some(1.52),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        num_experts: 8,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        dropout: 0.05,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: false }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        selection: Selection::TopK(2),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: vec!["all-linear".into()],
        composition: Composition::FeedForward,
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    // The paper's weight; the released code's default is 1e-3.
    let balance = TermConfig {
        term: LoadBalance.into(),
        weight: 1e-2,
        within_site: Reduction::Sum,
        over_sites: Reduction::Mean,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![balance],
        },
        ..Recipe::new("mixlora", CITATION, adapter)
    }
}
