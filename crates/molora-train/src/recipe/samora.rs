//! SAMoRA: shared A, cosine router in rank space, task gate. Shi et al., arXiv:2604.19048.
//! Notes and differences from the released code: docs/methods/samora.md
use molora_adapters::core::ScaleConfig;
use molora_adapters::{BankConfig, GateConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{KeyMatching, ObjectiveConfig, Orthogonality, Reduction, TermConfig};
use molora_routing::scorer::CosineConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Shi et al., SAMoRA: Semantic-Aware Mixture of LoRA Experts for Task-Adaptive \
                        Learning, Findings of ACL 2026, arXiv:2604.19048";

pub(super) const ABOUT: About = About {
    special: "shared A, cosine router in rank space, task gate",
    parameters: "R (D + E O + E + 1) + gate",
    step_time: Some(1.02),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Shared,
        num_experts: 3,
        rank: 8,
        scaling: Scaling::Unit,
        core: ScaleConfig.into(),
        dropout: 0.05,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: CosineConfig.into(),
        route_from: RouteFrom::LowRank,
        granularity: Granularity::Token,
        temperature: 0.8,
        selection: Selection::Dense,
        ..RouterConfig::default()
    };
    let gate = GateConfig {
        width: 8,
        bias: false,
    };
    let targets = ATTENTION.map(String::from).to_vec();
    let adapter = AdapterSpec {
        targets,
        bank,
        router: Some(router),
        gate: Some(gate),
        ..AdapterSpec::default()
    };
    // Within a site the code's means, over sites the code's sum.
    let term = |term, weight| TermConfig {
        term,
        weight,
        within_site: Reduction::Mean,
        over_sites: Reduction::Sum,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![
                term(Orthogonality.into(), 1e-3),
                term(KeyMatching.into(), 1e-2),
            ],
        },
        ..Recipe::new("samora", CITATION, adapter)
    }
}
