//! GOAT: experts start as segments of the frozen weight's singular values, top-2 token router. Fan et
//! al., arXiv:2502.16894. Notes: docs/methods/goat.md
use molora_adapters::{BankConfig, Scaling, SegmentStart, Slices, Start};
use molora_models::AdapterSpec;
use molora_regularize::{LoadBalance, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Fan et al., Make LoRA Great Again: Boosting LoRA with Adaptive Singular Values \
                        and Mixture-of-Experts Optimization Alignment, ICML 2025, arXiv:2502.16894";

pub(super) const ABOUT: About = About {
    special: "experts start as segments of the weight's SVD, top-2",
    parameters: "E R (D + O) + E D",
    step_time: Some(1.26),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        num_experts: 8,
        // 8 over all experts.
        rank: 1,
        scaling: Scaling::AlphaOverRank(16.0),
        start: Start::Segments(SegmentStart::default()),
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
        weight: 1e-3,
        // Shares summed over the two choices of a token.
        within_site: Reduction::Sum,
        over_sites: Reduction::Sum,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![balance],
        },
        ..Recipe::new("goat", CITATION, adapter)
    }
}
