//! MTL-LoRA: shared A, a matrix per task on the code, B's weighed by the task. Yang et al.,
//! arXiv:2410.09437. Notes: docs/methods/mtl-lora.md
use molora_adapters::core::TaskConfig;
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;
use molora_routing::scorer::TableConfig;
use molora_routing::{Granularity, RouterConfig, Selection};

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Yang et al., MTL-LoRA: Low-Rank Adaptation for Multi-Task Learning, AAAI 2025, \
                        arXiv:2410.09437";

pub(super) const ABOUT: About = About {
    special: "shared A, a matrix per task on the code, B's weighed by task",
    parameters: "R D + E R O + T (R R + E)",
    step_time: Some(0.94),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Shared,
        num_experts: 3,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        core: TaskConfig { diagonal: false }.into(),
        dropout: 0.05,
        ..BankConfig::default()
    };
    let router = RouterConfig {
        scorer: TableConfig::default().into(),
        granularity: Granularity::Task,
        temperature: 0.1,
        selection: Selection::Dense,
        ..RouterConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        router: Some(router),
        ..AdapterSpec::default()
    };
    Recipe::new("mtl-lora", CITATION, adapter)
}
