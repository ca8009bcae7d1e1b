//! Greedy decoding with a cache, in the shape of SmolLM2-135M: the base, and the base with a mixture; and prompts.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{DType, Tensor};
use molora_adapters::task_selector;
use molora_kernels::random::{Seed, unit};
use molora_models::{
    Adaptable, BaseDtype, BaseWeight, Decoder, DecoderInput, ForwardContext, GenerateOptions,
    TokenTable,
};
use molora_train::recipe;

use crate::World;
use crate::clock::{Measured, time};
use crate::model::SMOLLM2;

const PROMPT: usize = 32;
const NEW: usize = 64;
/// Timed runs.
const SAMPLES: usize = 3;

/// What is done with the model.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Work {
    /// So many rows are written.
    Batch(usize),
    /// A row is written with SAMoRA's mixture of so many experts at all attention layers.
    Samora(usize),
    /// A prompt of so many tokens is read, up to the scores of its next token.
    Prompt(usize),
}

const WORK: [Work; 4] = [
    Work::Batch(1),
    Work::Samora(3),
    Work::Batch(8),
    Work::Prompt(512),
];

/// Every work with every type of the base.
fn all() -> impl Iterator<Item = (Work, BaseDtype)> {
    let of = |dtype| WORK.map(|work| (work, dtype));
    BaseDtype::ALL.into_iter().flat_map(of)
}

fn name((work, dtype): (Work, BaseDtype)) -> String {
    let name = match work {
        Work::Batch(rows) => format!("batch-{rows}"),
        Work::Samora(experts) => format!("samora-{experts}"),
        Work::Prompt(tokens) => format!("prompt-{tokens}"),
    };
    match dtype {
        BaseDtype::F32 => name,
        _ => format!("{name}-{dtype}"),
    }
}

pub(crate) fn cases() -> Vec<String> {
    all().map(name).collect()
}

pub(crate) fn run(case: &str, world: &World) -> Option<Result<Measured>> {
    let known = all().find(|known| name(*known) == case)?;
    Some(measure(known, world))
}

fn measure((work, dtype): (Work, BaseDtype), world: &World) -> Result<Measured> {
    let folder = world.model.clone();
    let folder = folder.unwrap_or_else(|| world.models.join(SMOLLM2));
    let mut model = Decoder::from_folder_as(&folder, dtype, &world.device)?;
    let measured = match work {
        Work::Batch(rows) => decode(&model, rows, None, world)?,
        Work::Samora(experts) => {
            attach_samora(&mut model, experts, world)?;
            let task = task_selector(&[Some(0)], 1, &world.device)?;
            decode(&model, 1, Some(task), world)?
        }
        Work::Prompt(tokens) => read(&model, tokens, world)?,
    };
    Ok(Measured { dtype, ..measured })
}

/// At queries, keys, values and outputs, with numbers that are not zero.
fn attach_samora(model: &mut Decoder, experts: usize, world: &World) -> Result<()> {
    let mut spec = recipe::find("samora").context("no such recipe")?.adapter;
    spec.bank.num_experts = experts;
    model.attach(&spec, 1, Seed::new(0), &world.device)?;
    for (_, adapter) in model.sites_mut() {
        let b = adapter.bank.b.val();
        adapter.bank.b = adapter.bank.b.clone().map(|_| b.add_scalar(1e-3));
    }
    Ok(())
}

fn prompts(model: &Decoder, rows: usize, tokens: usize, world: &World) -> DecoderInput {
    let mut generator = Seed::new(0).generator();
    let mut token = || (unit(&mut generator) * model.vocab_size() as f64) as usize;
    let prompts: Vec<Vec<usize>> = (0..rows)
        .map(|_| (0..tokens).map(|_| token()).collect())
        .collect();
    DecoderInput::from_sequences(&prompts, &world.device)
}

/// Times the tokens behind the first, which comes with the prompt.
fn decode(
    model: &Decoder,
    rows: usize,
    tasks: Option<Tensor<2>>,
    world: &World,
) -> Result<Measured> {
    let input = prompts(model, rows, PROMPT, world);
    let seconds = |max_new_tokens: usize| -> Result<f64> {
        let options = GenerateOptions {
            max_new_tokens,
            ..GenerateOptions::default()
        };
        let context = ForwardContext {
            tasks: tasks.clone(),
            ..ForwardContext::new(Tensor::ones([rows, PROMPT], &world.device))
        };
        let start = Instant::now();
        model.generate(&input, &options, &context)?;
        Ok(start.elapsed().as_secs_f64())
    };
    seconds(8)?;
    let samples = (0..SAMPLES).map(|_| Ok(seconds(NEW + 1)? - seconds(1)?));
    Ok(Measured {
        tokens: Some((rows * NEW) as f64),
        bytes: Some(NEW as f64 * bytes(model)),
        ..Measured::new(samples.collect::<Result<_>>()?)
    })
}

/// Times a prompt up to the choice of its first token.
fn read(model: &Decoder, tokens: usize, world: &World) -> Result<Measured> {
    let input = prompts(model, 1, tokens, world);
    let options = GenerateOptions {
        max_new_tokens: 1,
        ..GenerateOptions::default()
    };
    let context = ForwardContext::new(Tensor::ones([1, tokens], &world.device));
    let measured = time(world.effort, &world.device, || {
        model.generate(&input, &options, &context)?;
        Ok(())
    })?;
    Ok(Measured {
        tokens: Some(tokens as f64),
        ..measured
    })
}

/// Bytes of the frozen matrices that a token is multiplied with.
fn bytes(model: &Decoder) -> f64 {
    let blocks = |matrix: &molora_kernels::BlockMatrix| {
        let of_block = 32 * matrix.bits() / 8 + size_of::<u16>();
        matrix.num_scales() * of_block
    };
    let weight = |weight: &BaseWeight| {
        let [inputs, outputs] = weight.dims();
        match weight {
            BaseWeight::Numbers(_) => 4 * inputs * outputs,
            BaseWeight::Half(_) => 2 * inputs * outputs,
            BaseWeight::Blocks(matrix) => blocks(matrix),
        }
    };
    let head = match model.token_tables().last() {
        Some(TokenTable::Numbers(table)) => {
            let of_number = match table.dtype() {
                DType::F32 => 4,
                _ => 2,
            };
            table.shape().num_elements() * of_number
        }
        Some(TokenTable::Blocks(matrix)) => blocks(matrix),
        None => 0,
    };
    let linears = model.linears().into_iter();
    (head
        + linears
            .map(|(_, linear)| weight(&linear.weight))
            .sum::<usize>()) as f64
}
