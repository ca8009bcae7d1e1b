//! OLoRA: a LoRA that starts with orthonormal factors of the frozen weight. Buyukakyuz,
//! arXiv:2406.01775. Notes: docs/methods/olora.md
use molora_adapters::{BankConfig, Scaling, Slices, Start};
use molora_models::AdapterSpec;

use super::{ATTENTION, About, Recipe};

const CITATION: &str = "Buyukakyuz, OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models, \
                        arXiv:2406.01775";

pub(super) const ABOUT: About = About {
    special: "LoRA that starts orthonormal",
    parameters: "R (D + O)",
    step_time: Some(0.97),
};

pub(super) fn recipe() -> Recipe {
    let bank = BankConfig {
        slices: Slices::Independent,
        num_experts: 1,
        rank: 8,
        scaling: Scaling::AlphaOverRank(8.0),
        start: Start::Olora,
        ..BankConfig::default()
    };
    let adapter = AdapterSpec {
        targets: ATTENTION.map(String::from).to_vec(),
        bank,
        ..AdapterSpec::default()
    };
    Recipe::new("olora", CITATION, adapter)
}
