//! MoSLD: shared A with weight dropout, top-2 token router, more experts in later layers.
//! arXiv:2412.08946. Notes, and what the paper leaves open: docs/methods/mosld.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, ExpertCount};
use molora_regularize::{LoadBalance, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{About, Recipe};

const CITATION: &str = "Zhao et al., MoSLD: An Extremely Parameter-Efficient Mixture-of-Shared LoRAs \
                        for Multi-Task Learning, COLING 2025, arXiv:2412.08946";

pub(super) const ABOUT: About = About {
    special: "shared A with dropped weights, top-2, more experts above",
    parameters: "R D + E R O + E D",
    step_time: Some(0.93),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Shared,
        // Of the uniform ablation, that is where the list below is emptied.
        num_experts: 5,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        dropout: 0.0,
        weight_dropout: 0.1,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: false }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        temperature: 1.0,
        selection: Selection::TopK(2),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ["query", "value"].map(String::from).to_vec(),
        experts: ExpertCount::ByLayer(vec![2, 4, 6, 8]),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    // The paper sums over sites; it gives no weight.
    let balance = TermConfig {
        term: LoadBalance.into(),
        weight: 1e-3,
        within_site: Reduction::Mean,
        over_sites: Reduction::Sum,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![balance],
        },
        ..Recipe::new("mosld", CITATION, adapter)
    }
}
