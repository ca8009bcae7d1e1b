//! Dynamic routing: as many experts as a token needs, top-p without renormalising. Huang et al.,
//! arXiv:2403.07652. Notes, and what the released code leaves out: docs/methods/top-p.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{LoadBalance, ObjectiveConfig, Reduction, RouterEntropy, TermConfig};
use molora_routing::normaliser::ProbabilityConfig;
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Huang et al., Harder Tasks Need More Experts: Dynamic Routing in MoE Models, \
                        ACL 2024, arXiv:2403.07652";

pub(super) const ABOUT: About = About {
    special: "as many experts as hold a share of the probability",
    parameters: "E R (D + O) + E D",
    step_time: Some(1.07),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        num_experts: 8,
        rank: 4,
        scaling: Scaling::AlphaOverRank(8.0),
        dropout: 0.05,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: LinearConfig { bias: false }.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        temperature: 1.0,
        selection: Selection::TopP(0.4),
        normaliser: ProbabilityConfig::default().into(),
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
        // Summed over the experts of a token, as their number is what the router chooses.
        within_site: Reduction::Sum,
        over_sites: Reduction::Mean,
    };
    let entropy = TermConfig {
        term: RouterEntropy.into(),
        weight: 1e-4,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![balance, entropy],
        },
        ..Recipe::new("top-p", CITATION, adapter)
    }
}
