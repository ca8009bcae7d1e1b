//! MoLA: top-2 LoRA experts, more of them in later layers. Gao et al., arXiv:2402.08562.
//! Notes: docs/methods/mola.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, ExpertCount};
use molora_regularize::{LoadBalance, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Gao et al., Higher Layers Need More LoRA Experts, arXiv:2402.08562";

pub(super) const ABOUT: About = About {
    special: "top-2 of 2-4-6-8 experts, more above",
    parameters: "E R (D + O) + E D",
    step_time: Some(1.05),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        // Of the uniform ablation (5-5-5-5), that is where the list below is emptied.
        num_experts: 5,
        rank: 4,
        scaling: Scaling::AlphaOverRank(8.0),
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
        targets: ATTENTION.map(String::from).to_vec(),
        experts: ExpertCount::ByLayer(vec![2, 4, 6, 8]),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    // f is summed over the k slots, and the loss over sites.
    let balance = TermConfig {
        term: LoadBalance.into(),
        weight: 1e-3,
        within_site: Reduction::Sum,
        over_sites: Reduction::Sum,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![balance],
        },
        ..Recipe::new("mola", CITATION, adapter)
    }
}
