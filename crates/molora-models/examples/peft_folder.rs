//! Reading a LoRA of PEFT: beside the weights of its base model, and merged into them.
//!
//! `cargo run --release -p molora-models --example peft_folder [BASE LORA]`, without folders on a tiny
//! model of this crate's tests.
#![allow(clippy::print_stdout, reason = "an example shows what it computes")]

use std::path::Path;

use burn::tensor::{Bool, Device, Int, Tensor};
use molora_models::peft::{PeftAdapter, attach, merge_into};
use molora_models::{Decoder, DecoderInput, ForwardContext, ModelError};

fn main() -> Result<(), ModelError> {
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden_peft");
    let mut arguments = std::env::args().skip(1);
    let base = arguments.next().unwrap_or(format!("{tests}/base"));
    let lora = arguments.next().unwrap_or(format!("{tests}/lora"));

    let device = Device::default();
    let model = Decoder::from_folder(Path::new(&base), &device)?;
    let adapter = PeftAdapter::open(Path::new(&lora))?;
    let resolved = adapter.resolve(&model)?;
    println!("{lora}: {} adapted modules", resolved.loras.len());

    let (mut beside, mut merged) = (model.clone(), model.clone());
    attach(&mut beside, &resolved);
    merge_into(&mut merged, &resolved);

    let input = DecoderInput {
        ids: Tensor::<2, Int>::from_data([[1, 2, 3, 4]], &device),
        mask: Tensor::<2, Bool>::from_data([[true; 4]], &device),
        segments: None,
    };
    let context = ForwardContext::new(Tensor::ones([1, 4], &device));
    let logits = |model: &Decoder| model.logits(model.forward(&input, &context).hidden);
    let largest = |apart: Tensor<3>| apart.abs().max().into_scalar::<f32>();
    println!(
        "what it changes: {}",
        largest(logits(&beside) - logits(&model))
    );
    println!(
        "merged or beside: {:e}",
        largest(logits(&beside) - logits(&merged))
    );
    Ok(())
}
