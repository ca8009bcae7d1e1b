//! PiSSA: a LoRA that starts as the largest part of the frozen weight. Meng et al., arXiv:2404.02948. Notes: docs/methods/pissa.md
use molora_adapters::{BankConfig, Scaling, Slices, Start};
use molora_models::AdapterSpec;

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Meng et al., PiSSA: Principal Singular Values and Singular Vectors Adaptation of \
                        Large Language Models, NeurIPS 2024, arXiv:2404.02948";

pub(super) const ABOUT: About = About {
    special: "LoRA that starts as the weight's largest singular values",
    parameters: "R (D + O)",
    step_time: Some(0.98),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        num_experts: 1,
        rank: 8,
        scaling: Scaling::AlphaOverRank(8.0),
        start: Start::Pissa,
        ..BankConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        ..AdapterSpec::default()
    };
    Recipe::new("pissa", CITATION, adapter)
}
