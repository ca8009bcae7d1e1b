//! OMoE: the outputs of the selected experts are made orthogonal. Feng et al., arXiv:2501.10062. Notes:
//! docs/methods/omoe.md
use molora_adapters::combine::OrthogonalConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Feng et al., OMoE: Diversifying Mixture of Low-Rank Adaptation by Orthogonal \
                        Finetuning, arXiv:2501.10062";

/// Experts that a token gets.
const SELECTED: usize = 2;

pub(super) const ABOUT: About = About {
    special: "outputs of the selected experts made orthogonal",
    parameters: "E R (D + O) + E D",
    step_time: Some(1.67),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        combine: OrthogonalConfig {
            selected: SELECTED,
            norms: true,
        }
        .into(),
        num_experts: 4,
        rank: 4,
        scaling: Scaling::AlphaOverRank(8.0),
        dropout: 0.05,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: false }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        selection: Selection::TopK(SELECTED),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    Recipe::new("omoe", CITATION, adapter)
}
