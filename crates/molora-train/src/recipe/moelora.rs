//! MoELoRA: top-k LoRA experts whose outputs are separated by a contrastive loss. Luo et al.,
//! arXiv:2402.12851. Notes, and what is inferred: docs/methods/moelora.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{InfoNce, LoadBalance, ObjectiveConfig, Reduction, TermConfig};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Luo et al., MoELoRA: Contrastive Learning Guided Mixture of Experts on \
                        Parameter-Efficient Fine-Tuning for Large Language Models, arXiv:2402.12851";

pub(super) const ABOUT: About = About {
    special: "top-2, outputs told apart by a contrastive loss",
    parameters: "E R (D + O) + E D",
    step_time: Some(1.53),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        // Four slices of a LoRA of rank 8: the number of parameters of that LoRA.
        num_experts: 4,
        rank: 2,
        scaling: Scaling::AlphaOverRank(4.0),
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
        within_site: Reduction::Sum,
        over_sites: Reduction::Mean,
    };
    let contrast = TermConfig {
        term: InfoNce::default().into(),
        weight: 1e-2,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![balance, contrast],
        },
        ..Recipe::new("moelora", CITATION, adapter)
    }
}
