//! LD-MoLE: sparse differentiable routing whose number of experts is learned for every token. Zhuang et
//! al., arXiv:2509.25684. Notes: docs/methods/ld-mole.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{BalanceWeights, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::normaliser::SparsegenConfig;
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Zhuang et al., LD-MoLE: Learnable Dynamic Routing for Mixture of LoRA Experts, \
                        arXiv:2509.25684";

pub(super) const ABOUT: About = About {
    special: "exact zeros, a learned number of experts per token",
    parameters: "E R (D + O) + E D + H D",
    step_time: Some(1.38),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        num_experts: 8,
        rank: 4,
        scaling: Scaling::AlphaOverRank(8.0),
        dropout: 0.1,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: false }.into(),
        // One dropout mask for A, the router and the network of lambda.
        route_from: RouteFrom::Dropped,
        granularity: Granularity::Token,
        selection: Selection::Dense,
        // Half the smallest width of the released code: there is a network at every site.
        normaliser: SparsegenConfig { hidden: 64 }.into(),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    // The released run script has 1, its configuration 0.
    let balance = TermConfig {
        term: BalanceWeights.into(),
        weight: 1e-2,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![balance],
        },
        ..Recipe::new("ld-mole", CITATION, adapter)
    }
}
