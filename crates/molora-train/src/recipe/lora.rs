//! LoRA: one low-rank delta per layer. Hu et al., arXiv:2106.09685. Notes: docs/methods/lora.md
use molora_adapters::{BankConfig, Scaling, Slices};
use molora_models::AdapterSpec;

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, \
                        arXiv:2106.09685";

pub(super) const ABOUT: About = About {
    special: "one low-rank delta",
    parameters: "R (D + O)",
    step_time: Some(1.00),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        num_experts: 1,
        rank: 8,
        scaling: Scaling::AlphaOverRank(16.0),
        dropout: 0.05,
        ..BankConfig::default()
    };
    let targets = ATTENTION.map(String::from).to_vec();
    Recipe::new(
        "lora",
        CITATION,
        AdapterSpec {
            targets,
            bank,
            router: None,
            gate: None,
            ..AdapterSpec::default()
        },
    )
}
