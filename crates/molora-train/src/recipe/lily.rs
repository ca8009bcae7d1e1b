//! Lily: the up-projections of all layers in one pool, which a router in each layer mixes.
//! arXiv:2407.09946. Notes, and where paper and code differ: docs/methods/lily.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, Composition, PoolConfig, PoolWeights};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Zhong et al., Low-Rank Interconnected Adaptation across Layers, ACL 2025 Findings, \
                        arXiv:2407.09946 (yibozhong/lily@db6ed3c)";

pub(super) const ABOUT: About = About {
    special: "B's of all layers in one pool that layers share",
    parameters: "R D + E R O / L + E R",
    step_time: Some(1.11),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Shared,
        num_experts: 2,
        rank: 32,
        // A plain factor of 1.
        scaling: Scaling::AlphaOverRank(32.0),
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: false }.into(),
        route_from: RouteFrom::LowRank,
        granularity: Granularity::Token,
        selection: Selection::Dense,
        ..RouterConfig::default()
    };
    let pool = PoolConfig {
        stride: 1,
        weights: PoolWeights::PerToken,
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        composition: Composition::Pool(pool),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    Recipe::new("lily", CITATION, adapter)
}
