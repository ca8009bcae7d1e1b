//! LoRAMoE: two kinds of LoRA experts, balanced within a kind and separated between kinds. Dou et
//! al., arXiv:2312.09979. Notes: docs/methods/loramoe.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_regularize::{ObjectiveConfig, Reduction, TermConfig, TypedBalance};
use molora_routing::scorer::LinearConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};

use super::{About, FEED_FORWARD, Recipe};

const CITATION: &str = "Dou et al., LoRAMoE: Alleviate World Knowledge Forgetting in Large Language \
                        Models via MoE-Style Plugin, ACL 2024, arXiv:2312.09979";

pub(super) const ABOUT: About = About {
    special: "dense experts of two kinds in the feed-forwards",
    parameters: "E R (D + O) + E D",
    step_time: Some(1.05),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        num_experts: 6,
        rank: 4,
        scaling: Scaling::AlphaOverRank(8.0),
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
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    let balance = TermConfig {
        term: TypedBalance::default().into(),
        weight: 0.1,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    };
    Recipe {
        objective: ObjectiveConfig {
            terms: vec![balance],
        },
        ..Recipe::new("loramoe", CITATION, adapter)
    }
}
