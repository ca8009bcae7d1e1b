//! Mod-Squad: experts shared by all tasks, a router for each, and tasks that pick experts of their own.
//! Chen et al., arXiv:2212.08066. Notes: docs/methods/mod-squad.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{ObjectiveConfig, Reduction, TaskInformation, TermConfig};
use molora_routing::normaliser::ProbabilityConfig;
use molora_routing::scorer::PerTaskConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Chen et al., Mod-Squad: Designing Mixtures of Experts As Modular Multi-Task \
                        Learners, CVPR 2023, arXiv:2212.08066";

/// Added to the probability of every expert, in gates and in the loss.
const FLOOR: f64 = 1e-4;

pub(super) const ABOUT: About = About {
    special: "a router per task, information between tasks and experts",
    parameters: "E R (D + O) + T E D",
    step_time: Some(1.05),
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
        scorer: PerTaskConfig.into(),
        route_from: RouteFrom::Hidden,
        granularity: Granularity::Token,
        temperature: 1.0,
        selection: Selection::TopK(2),
        normaliser: ProbabilityConfig { floor: FLOOR }.into(),
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    let information = TermConfig {
        term: TaskInformation {
            floor: FLOOR,
            epsilon: 1e-4,
        }
        .into(),
        weight: 5e-3,
        within_site: Reduction::Mean,
        over_sites: Reduction::Sum,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![information],
        },
        ..Recipe::new("mod-squad", CITATION, adapter)
    }
}
