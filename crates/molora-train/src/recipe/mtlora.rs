//! mtLoRA: beside every feed-forward part, each group of outputs weighs the experts of a shared A for itself.
//! arXiv:2603.01526. Notes: docs/methods/mtlora.md
use molora_adapters::combine::OutputGroupsConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::{AdapterSpec, Composition};
use molora_regularize::{MassVariation, ObjectiveConfig, Reduction, Spectral, TermConfig};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{About, FEED_FORWARD, Recipe};

const CITATION: &str = "mtLoRA: multi-task low-rank adaptation with fine-grained routing, ICLR 2026, \
                        arXiv:2603.01526";

pub(super) const ABOUT: About = About {
    special: "shared A beside feed-forwards, a router per group of outputs",
    parameters: "R D + E R O + G E D",
    step_time: Some(1.32),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Shared,
        combine: OutputGroupsConfig { groups: 4 }.into(),
        num_experts: 4,
        rank: 8,
        // Four times the rank, as released.
        scaling: Scaling::AlphaOverRank(32.0),
        dropout: 0.05,
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
        targets: FEED_FORWARD.map(String::from).to_vec(),
        composition: Composition::Block,
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    let term = |term, weight, over_sites| TermConfig {
        term,
        weight,
        within_site: Reduction::Mean,
        over_sites,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![
                term(MassVariation.into(), 0.01, Reduction::Mean),
                // On every 500th step.
                term(Spectral::default().into(), 0.25, Reduction::Mean),
            ],
        },
        ..Recipe::new("mtlora", CITATION, adapter)
    }
}
