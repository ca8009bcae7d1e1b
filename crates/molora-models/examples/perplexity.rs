//! The perplexity of a text under a language model whose frozen matrices are in some type.
//!
//! ```console
//! $ cargo run --release --example perplexity -- MODEL q4 tokens.json
//! ```
//!
//! `tokens.json` is a list of token numbers, which are read in windows of 512; every token of a window but the first is
//! scored. `xtask/python/perplexity.py` does the same with llama.cpp.

// A program talks to its user; the lint is meant for libraries.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use molora_models::{Decoder, DecoderInput, ForwardContext, log_sum_exp};

const WINDOW: usize = 512;
/// Tokens whose scores are there at once.
const PART: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |name: &str| arguments.next().ok_or(format!("no {name}"));
    let (model, dtype, tokens) = (next("model")?, next("type")?, next("tokens")?);
    let device = Device::default();
    let model = Decoder::from_folder_as(Path::new(&model), dtype.parse()?, &device)?;
    let tokens: Vec<usize> = serde_json::from_str(&std::fs::read_to_string(tokens)?)?;
    let (mut total, mut count) = (0.0, 0);
    for window in tokens.chunks_exact(WINDOW) {
        total += negative_log_likelihood(&model, window, &device);
        count += window.len() - 1;
    }
    println!(
        "{dtype}: {:.4} over {count} tokens",
        (total / count as f64).exp()
    );
    Ok(())
}

/// Of all tokens but the first.
fn negative_log_likelihood(model: &Decoder, tokens: &[usize], device: &Device) -> f64 {
    let input = DecoderInput::from_sequences(&[tokens.to_vec()], device);
    let context = ForwardContext::new(Tensor::ones([1, tokens.len()], device));
    let hidden = model.forward(&input, &context).hidden;
    let mut total = 0.0;
    let last = tokens.len() - 1;
    for start in (0..last).step_by(PART) {
        let part = PART.min(last - start);
        let scores = model.logits(hidden.clone().narrow(1, start, part));
        let scores: Vec<f32> = scores.into_data().try_into_vec().expect("scores in f32");
        let next = &tokens[start + 1..];
        for (scores, &token) in scores.chunks(model.vocab_size()).zip(next) {
            total += log_sum_exp(scores) - f64::from(scores[token]);
        }
    }
    total
}
