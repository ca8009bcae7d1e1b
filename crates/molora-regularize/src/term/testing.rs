//! What tests of several terms share.

use burn::module::Param;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};
use molora_adapters::{BankConfig, ExpertBank, SiteDims, Slices};
use molora_kernels::random::Seed;
use molora_routing::{RouterOutput, Selection};

pub(super) const KEYS: [[f32; 2]; 3] = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]];

/// The bank of the SAMoRA notes' worked example: R 2, D 4, O 3, E 3.
pub(super) fn bank(device: &Device) -> ExpertBank {
    let config = BankConfig {
        slices: Slices::Shared,
        num_experts: 3,
        rank: 2,
        ..BankConfig::default()
    };
    let mut bank = config.init(
        SiteDims {
            d_input: 4,
            d_output: 3,
        },
        Seed::new(0),
        device,
    );
    bank.a = Param::from_data([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 1.0]], device);
    bank.b = Param::from_data(
        [
            [1.0, 0.0, 1.0],
            [0.0, 1.0, 1.0],
            [0.0, 1.0, -1.0],
            [1.0, 0.0, 1.0],
            [2.0, 0.0, 1.0],
            [0.0, -1.0, 0.0],
        ],
        device,
    );
    bank
}

/// Three tokens of the MoSLD notes' worked example and one padding token full of junk.
pub(super) const LOGITS: [[[f32; 4]; 4]; 1] = [[
    [0.5, 1.0, 0.25, 0.625],
    [0.1, -0.2, 0.5, 0.35],
    [1.0, 0.0, -0.5, 0.375],
    [90.0, -80.0, 7.0, 3.0],
]];

pub(super) fn routed(logits: Tensor<3>, selection: Selection) -> RouterOutput {
    let weighed = selection.weigh(&logits, &softmax(logits.clone(), 2));
    let counted = Tensor::from_data([[1.0, 1.0, 1.0, 0.0]], &logits.device());
    RouterOutput::new(logits, weighed, counted)
}
