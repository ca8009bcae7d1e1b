//! JiuZhang 2.0's routing on LoRA experts: mixed feed-forward parts, top-2 by token and task prompt.
//! arXiv:2306.11027. Little is published; what is inferred: docs/methods/jiuzhang.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, Composition};
use molora_regularize::{LoadBalance, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::scorer::TaskPromptConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{About, Recipe};

const CITATION: &str = "Zhao et al., JiuZhang 2.0: A Unified Chinese Pre-trained Language Model for \
                        Multi-task Mathematical Problem Solving, KDD 2023, arXiv:2306.11027";

pub(super) const ABOUT: About = About {
    special: "whole feed-forwards, top-2 by token and task",
    parameters: "E R (D + O), routers and prompts by layer",
    step_time: Some(1.66),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        num_experts: 4,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: TaskPromptConfig.into(),
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
    // The usual weight of a Switch-style balance: the paper gives none.
    let balance = TermConfig {
        term: LoadBalance.into(),
        weight: 1e-2,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![balance],
        },
        ..Recipe::new("jiuzhang", CITATION, adapter)
    }
}
