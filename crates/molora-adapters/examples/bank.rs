//! A bank of low-rank experts on a layer of somebody's own burn module, with weights from wherever the
//! module takes them, here one for each expert, that is learned.
//!
//! `cargo run --release -p molora-adapters --example bank`
#![allow(clippy::print_stdout, reason = "an example shows what it computes")]

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor, activation::softmax};
use molora_adapters::{AdapterError, BankConfig, ExpertBank, Mixing, SiteDims};
use molora_kernels::random::{Seed, normal};

const INPUTS: usize = 8;
const OUTPUTS: usize = 4;
const EXPERTS: usize = 3;

/// A frozen layer and what is learned beside it.
#[derive(Module, Debug)]
struct Adapted {
    base: Linear,
    bank: ExpertBank,
    /// Scores of the experts, `[E]`.
    scores: Param<Tensor<1>>,
}

impl Adapted {
    fn new(base: Linear, seed: Seed, device: &Device) -> Result<Self, AdapterError> {
        let config = BankConfig {
            num_experts: EXPERTS,
            rank: 2,
            ..BankConfig::default()
        };
        config.validate()?;
        let dims = SiteDims {
            d_input: INPUTS,
            d_output: OUTPUTS,
        };
        Ok(Self {
            base: base.no_grad(),
            bank: config.init(dims, seed, device),
            scores: Param::from_tensor(Tensor::zeros([EXPERTS], device)),
        })
    }

    /// `[B, T, D]` to `[B, T, O]`.
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let low = self.bank.down(x.clone(), None);
        let weights = softmax(self.scores.val(), 0).reshape([1, 1, EXPERTS]);
        let mixing = Mixing {
            weights: Some(weights),
            ..Mixing::default()
        };
        self.bank.mix(Some(self.base.forward(x)), low, mixing)
    }
}

fn main() -> Result<(), AdapterError> {
    let (device, seed) = (Device::default().autodiff(), Seed::new(0));
    device.seed(0);
    let base = LinearConfig::new(INPUTS, OUTPUTS).init(&device);
    let mut layer = Adapted::new(base, seed.child("bank"), &device)?;
    let mut optimizer = AdamWConfig::new().init();

    // What the layer should have learned: its base and another map beside it.
    let other = normal([INPUTS, OUTPUTS], 0.3, seed.child("other"), &device);
    for step in 0..=200 {
        let x = normal([16, 1, INPUTS], 1.0, seed.child("x").index(step), &device);
        let wanted = layer.base.forward(x.clone()) + x.clone().matmul(other.clone().unsqueeze());
        let loss = (layer.forward(x) - wanted).powi_scalar(2).mean();
        if step % 50 == 0 {
            println!("step {step}: {:.4}", loss.clone().into_scalar::<f32>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &layer);
        layer = optimizer.step(1e-2, layer, gradients);
    }
    Ok(())
}
