//! MoDE: every rank of a shared A chooses among experts' up-vectors for itself. Ning et al.,
//! arXiv:2408.01505. Notes: docs/methods/mode.md
use molora_adapters::combine::RankGroupsConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Ning et al., MoDE: Effective Multi-task Parameter Efficient Fine-Tuning with a \
                        Mixture of Dyadic Experts, Findings of NAACL 2025, arXiv:2408.01505";

pub(super) const ABOUT: About = About {
    special: "shared A, a router for each group of ranks",
    parameters: "R D + E R O + G E D",
    step_time: Some(1.18),
};

pub(super) fn recipe() -> Recipe {
    // The paper's best: 6 x 4 with a router for each rank.
    let bank = BankConfig {
        slices: Slices::Shared,
        combine: RankGroupsConfig { ranks: 1 }.into(),
        num_experts: 6,
        rank: 4,
        scaling: Scaling::Unit,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: false }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        selection: Selection::Dense,
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    Recipe::new("mode", CITATION, adapter)
}
