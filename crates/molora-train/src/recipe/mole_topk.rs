//! Mixture of LoRA experts with a top-k token router, the plain form that later methods start from:
//! MoLoRA, Zadouri et al., arXiv:2309.05444, with top-k as in MixLoRA and MoLA.
//! Notes: docs/methods/mole-topk.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{LoadBalance, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Zadouri et al., Pushing Mixture of Experts to the Limit: Extremely Parameter \
                        Efficient MoE for Instruction Tuning, ICLR 2024, arXiv:2309.05444";

pub(super) const ABOUT: About = About {
    special: "independent experts, top-2 token router",
    parameters: "E R (D + O) + E D",
    step_time: Some(1.05),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
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
        selection: Selection::TopK(2),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
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
        ..Recipe::new("mole-topk", CITATION, adapter)
    }
}
