//! Adapters on a recurrent network of one's own: a gated recurrent unit whose input and state go
//! through linear layers, the first for the whole sequence at once, the other step by step.
//!
//! `cargo run --release -p molora-models --example own_recurrent_model`
#![allow(clippy::print_stdout, reason = "an example shows what it computes")]

use burn::module::Module;
use burn::nn::LinearConfig;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor, activation::sigmoid};
use molora_adapters::BankConfig;
use molora_kernels::random::{Seed, normal};
use molora_models::peft::{detach, merge_into, static_mixture};
use molora_models::{
    Adaptable, AdapterSpec, BaseModel, ForwardContext, MoLoraLinear, ModelError, RouteTrace,
};

const INPUTS: usize = 4;
const STATE: usize = 12;

/// Cho et al., arXiv:1406.1078, with the gates side by side.
#[derive(Module, Debug)]
struct Recurrent {
    input: MoLoraLinear,
    state: MoLoraLinear,
}

impl Adaptable for Recurrent {
    fn linears(&self) -> Vec<(String, &MoLoraLinear)> {
        vec![
            ("gru.input".into(), &self.input),
            ("gru.state".into(), &self.state),
        ]
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut MoLoraLinear)> {
        vec![
            ("gru.input".into(), &mut self.input),
            ("gru.state".into(), &mut self.state),
        ]
    }
}

/// So that its mixture can be merged, and LoRAs of PEFT read.
impl BaseModel for Recurrent {}

impl Recurrent {
    /// Layers of burn as pretraining left them, frozen from here on.
    fn new(device: &Device) -> Self {
        device.seed(3);
        Self {
            input: LinearConfig::new(INPUTS, 3 * STATE).init(device).into(),
            state: LinearConfig::new(STATE, 3 * STATE).init(device).into(),
        }
    }

    /// Sequences `[B, T, D]` to the last state `[B, H]`, and what routers decided, if there are any.
    fn forward(&self, x: Tensor<3>, context: &ForwardContext) -> (Tensor<2>, Vec<RouteTrace>) {
        let ([batch, tokens, _], device) = (x.dims(), x.device());
        let (from_input, route) = self.input.forward(x, context, None);
        let mut routes = Vec::from_iter(route);
        let mut state = Tensor::<3>::zeros([batch, 1, STATE], &device);
        for step in 0..tokens {
            // Each step has its own part of the mask, and its own draws.
            let context = ForwardContext {
                mask: context.mask.clone().narrow(1, step, 1),
                dropout: context.dropout.map(|seed| seed.index(step as u64)),
                ..context.clone()
            };
            let (from_state, route) = self.state.forward(state.clone(), &context, None);
            routes.extend(route);
            let gates = |gates: &Tensor<3>, number| gates.clone().narrow(2, number * STATE, STATE);
            let now = from_input.clone().narrow(1, step, 1);
            let reset = sigmoid(gates(&now, 0) + gates(&from_state, 0));
            let update = sigmoid(gates(&now, 1) + gates(&from_state, 1));
            let new = (gates(&now, 2) + reset * gates(&from_state, 2)).tanh();
            state = new.clone() + update * (state - new);
        }
        (state.squeeze_dim(1), routes)
    }
}

fn main() -> Result<(), ModelError> {
    let (device, seed) = (Device::default().autodiff(), Seed::new(0));
    let mut model = Recurrent::new(&device);
    let spec = AdapterSpec {
        targets: vec!["gru.*".into()],
        bank: BankConfig {
            rank: 4,
            ..BankConfig::default()
        },
        ..AdapterSpec::default()
    };
    println!("adapted: {:?}", model.attach(&spec, 0, seed, &device)?);

    // The last state is to be the mean of the inputs, in its first numbers.
    let context = ForwardContext::new(Tensor::ones([16, 5], &device));
    let mut optimizer = AdamWConfig::new().init();
    let draw = |step| normal([16, 5, INPUTS], 0.5, seed.child("x").index(step), &device);
    for step in 0..=200 {
        let x = draw(step);
        let (state, _) = model.forward(x.clone(), &context);
        let wanted = x.mean_dim(1).squeeze_dim(1);
        let loss = (state.narrow(1, 0, INPUTS) - wanted).powi_scalar(2).mean();
        if step % 50 == 0 {
            println!("step {step}: {:.4}", loss.clone().into_scalar::<f32>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-2, model, gradients);
    }

    // One LoRA has fixed weights, so the frozen layers can take it in.
    let mut merged = model.clone();
    let lora = static_mixture(&merged)?;
    detach(&mut merged);
    merge_into(&mut merged, &lora);
    let apart = model.forward(draw(300), &context).0 - merged.forward(draw(300), &context).0;
    println!(
        "largest difference when merged: {:e}",
        apart.abs().max().into_scalar::<f32>()
    );
    Ok(())
}
