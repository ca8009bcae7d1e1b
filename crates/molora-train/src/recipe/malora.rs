//! MALoRA: experts' down-projections are coefficients in a shared subspace, top-2 token router. Wang et
//! al., arXiv:2410.22782. Notes: docs/methods/malora.md
use molora_adapters::down::FactoredConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{LoadBalance, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Wang et al., MALoRA: Mixture of Asymmetric Low-Rank Adaptation for Enhanced \
                        Multi-Task Learning, Findings of NAACL 2025, arXiv:2410.22782";

pub(super) const ABOUT: About = About {
    special: "A in a shared subspace, larger B, top-2",
    parameters: "d D + E R (d + O) + E D",
    step_time: Some(1.08),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        down: FactoredConfig { subspace: 16 }.into(),
        num_experts: 8,
        // Larger than that of the mixture it replaces: what sharing saves goes into B.
        rank: 16,
        scaling: Scaling::AlphaOverRank(16.0),
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
        ..Recipe::new("malora", CITATION, adapter)
    }
}
