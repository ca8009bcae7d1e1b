//! MoR1E: a grid of experts of rank 1, weighed by token and by what the text is about. arXiv:2404.08985.
//! Notes: docs/methods/mor1e.md
use molora_adapters::combine::GridConfig;
use molora_adapters::core::OutputGateConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_routing::normaliser::CellsConfig;
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, ClusterTexts, Recipe, StageConfig, Transform};

const CITATION: &str = "Liu et al., Intuition-aware Mixture-of-Rank-1-Experts for Parameter Efficient \
                        Finetuning, arXiv:2404.08985";

pub(super) const ABOUT: About = About {
    special: "a grid of rank-1 experts, token and cluster gates",
    parameters: "R D + E O + R E D + 2",
    step_time: Some(1.16),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Shared,
        combine: GridConfig.into(),
        // 4 x 8 cells.
        num_experts: 8,
        rank: 4,
        scaling: Scaling::Unit,
        core: OutputGateConfig::default().into(),
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: false }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        selection: Selection::Dense,
        normaliser: CellsConfig::default().into(),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    // A cluster of training texts for each cell.
    let cluster = Transform::Cluster(ClusterTexts::default());
    Recipe {
        stages: vec![
            StageConfig::transform("clusters", cluster),
            StageConfig::joint(600),
        ],
        ..Recipe::new("mor1e", CITATION, adapter)
    }
}
