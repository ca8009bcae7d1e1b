//! Greedy decoding with a cache, in the shape of SmolLM2-135M.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::Tensor;
use molora_kernels::random::{Seed, unit};
use molora_models::{BaseDtype, Decoder, DecoderInput, ForwardContext, GenerateOptions};

use crate::World;
use crate::clock::Measured;
use crate::model::SMOLLM2;

const BATCHES: [usize; 2] = [1, 8];
const PROMPT: usize = 32;
const NEW: usize = 64;
/// Timed runs.
const SAMPLES: usize = 3;

/// Every batch size with every type of the base.
fn all() -> impl Iterator<Item = (usize, BaseDtype)> {
    let of = |dtype| BATCHES.map(|batch| (batch, dtype));
    BaseDtype::ALL.into_iter().flat_map(of)
}

fn name((batch, dtype): (usize, BaseDtype)) -> String {
    match dtype {
        BaseDtype::F32 => format!("batch-{batch}"),
        _ => format!("batch-{batch}-{dtype}"),
    }
}

pub(crate) fn cases() -> Vec<String> {
    all().map(name).collect()
}

pub(crate) fn run(case: &str, world: &World) -> Option<Result<Measured>> {
    let known = all().find(|known| name(*known) == case)?;
    Some(measure(known, world))
}

/// Times the tokens behind the first, which comes with the prompt.
fn measure((batch, dtype): (usize, BaseDtype), world: &World) -> Result<Measured> {
    let folder = world.model.clone();
    let folder = folder.unwrap_or_else(|| world.models.join(SMOLLM2));
    let model = Decoder::from_folder_as(&folder, dtype, &world.device)?;
    let mut generator = Seed::new(0).generator();
    let mut token = || (unit(&mut generator) * model.vocab_size() as f64) as usize;
    let prompts: Vec<Vec<usize>> = (0..batch)
        .map(|_| (0..PROMPT).map(|_| token()).collect())
        .collect();
    let input = DecoderInput::from_sequences(&prompts, &world.device);
    let seconds = |max_new_tokens: usize| -> Result<f64> {
        let options = GenerateOptions {
            max_new_tokens,
            ..GenerateOptions::default()
        };
        let context = ForwardContext::new(Tensor::ones([batch, PROMPT], &world.device));
        let start = Instant::now();
        model.generate(&input, &options, &context)?;
        Ok(start.elapsed().as_secs_f64())
    };
    seconds(8)?;
    let samples = (0..SAMPLES).map(|_| Ok(seconds(NEW + 1)? - seconds(1)?));
    let measured = Measured::new(samples.collect::<Result<_>>()?);
    Ok(Measured {
        dtype,
        tokens: Some((batch * NEW) as f64),
        ..measured
    })
}
