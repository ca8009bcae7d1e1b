//! Training steps and decoding of every family of base models at the same sizes, so that none falls off a fast path
//! unseen.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Tensor;
use molora_adapters::BankConfig;
use molora_kernels::random::{Seed, unit};
use molora_models::{
    Adaptable, AdapterSpec, Backbone, BaseDtype, DecoderInput, Family, FamilyKind, ForwardContext,
    GenerateOptions, Sizes, TaskHead, TaskModel, with_stable_ids,
};
use molora_train::data::{Batch, Example, Target};
use molora_train::recipe::StageConfig;
use molora_train::train::Step;
use serde_json::{Value, json};

use crate::World;
use crate::clock::{Measured, time};

const SIZES: Sizes = Sizes {
    width: 512,
    inner: 1536,
    layers: 4,
    heads: 8,
    vocabulary: 8192,
    tokens: 512,
};

/// Experts of a base and of a token, each half as wide as the feed-forward part of the others: a token costs the
/// same.
const EXPERTS: [usize; 2] = [4, 2];

/// Rows and tokens of a batch; an encoder-decoder reads one half of the tokens and writes the other.
const ROWS: usize = 8;
const TOKENS: usize = 64;

/// Of decoding.
const PROMPT: usize = 32;
const NEW: usize = 32;
/// Timed runs.
const SAMPLES: usize = 5;

const CLASSES: usize = 4;

pub(crate) fn cases() -> Vec<String> {
    let of = |family: Family| {
        let name = family.about.model_type;
        let writes = family.kind != FamilyKind::Encoder;
        let decode = writes.then(|| format!("decode-{name}"));
        [format!("step-{name}")].into_iter().chain(decode)
    };
    Family::all().flat_map(of).collect()
}

pub(crate) fn run(case: &str, world: &World) -> Option<Result<Measured>> {
    let (what, name) = case.split_once('-')?;
    let family = Family::find(name)?;
    match what {
        "step" => Some(step(&family, world)),
        "decode" if family.kind != FamilyKind::Encoder => Some(decode(&family, world)),
        _ => None,
    }
}

/// A configuration in the sizes of all, where a family has others if nothing is said.
fn config(family: &Family) -> Value {
    let mut config = family.config(&SIZES);
    let fields = family.fields();
    let [experts, of_token] = EXPERTS;
    let expert_width = SIZES.inner / of_token;
    for (name, value) in [
        ("head_dim", json!(SIZES.width / SIZES.heads)),
        ("num_key_value_heads", json!(SIZES.heads)),
        ("embedding_size", json!(SIZES.width)),
        ("num_experts_per_tok", json!(of_token)),
        // DeBERTa's own models have these.
        ("relative_attention", json!(true)),
        ("pos_att_type", json!(["c2p", "p2c"])),
        ("position_buckets", json!(256)),
        ("share_att_key", json!(true)),
        ("norm_rel_ebd", json!("layer_norm")),
    ] {
        if fields.iter().any(|field| field.name == name) {
            config[name] = value;
        }
    }
    if config.get("num_experts_per_tok").is_some() {
        config["num_local_experts"] = experts.into();
        config["intermediate_size"] = expert_width.into();
        if fields
            .iter()
            .any(|field| field.name == "moe_intermediate_size")
        {
            config["moe_intermediate_size"] = expert_width.into();
        }
    }
    config
}

fn model(family: &Family, world: &World, device: &burn::tensor::Device) -> Result<Backbone> {
    let folder: PathBuf = world.models.join("families").join(family.about.model_type);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join("config.json");
    fs::write(&path, config(family).to_string()).with_context(|| path.display().to_string())?;
    let seed = Seed::new(0);
    Ok(Backbone::with_random_weights(
        &path,
        seed,
        BaseDtype::F32,
        device,
    )?)
}

/// What the matrix products of a pass need for a token, the vocabulary's too.
fn flops_of_token(model: &Backbone) -> f64 {
    let [experts, of_token] = EXPERTS;
    let linears = model.linears().into_iter();
    let weights = linears.map(|(path, linear)| {
        let share = match path.contains(".experts.") {
            true => of_token as f64 / experts as f64,
            false => 1.0,
        };
        let dims = linear.dims();
        share * (dims.d_input * dims.d_output) as f64
    });
    let vocabulary = match model {
        Backbone::Encoder(_) => 0,
        _ => model.width() * model.vocab_size(),
    };
    // The halves of an encoder-decoder read a token each.
    let halves = match model {
        Backbone::EncoderDecoder(_) => 0.5,
        _ => 1.0,
    };
    2.0 * (halves * weights.sum::<f64>() + halves * vocabulary as f64)
}

/// A LoRA at every linear layer, and a loss at every token of models that write.
fn step(family: &Family, world: &World) -> Result<Measured> {
    let device = world.device.clone().autodiff();
    let mut backbone = model(family, world, &device)?;
    let flops = flops_of_token(&backbone);
    let spec = AdapterSpec {
        targets: vec!["all-linear".into()],
        bank: BankConfig {
            rank: 8,
            ..BankConfig::default()
        },
        ..AdapterSpec::default()
    };
    backbone.attach(&spec, 1, Seed::new(0), &device)?;
    let has_head = family.kind == FamilyKind::Encoder;
    let head = || TaskHead::new(SIZES.width, CLASSES, Seed::new(1), &device);
    let heads = vec![has_head.then(head)];
    let stage = StageConfig::joint(1000);
    let mut model = with_stable_ids(stage.apply(TaskModel { backbone, heads }));
    let mut optimizer = stage.optimizer.init(&model);
    let (batch, mut number) = (batch(family.kind), 0);
    let measured = time(world.effort, &world.device, || {
        let step = Step::new(&spec, &stage, Seed::new(2).index(number), &device);
        let (next, values) = step.run(model.clone(), &mut optimizer, &batch)?;
        anyhow::ensure!(values.loss.is_finite(), "the loss is {}", values.loss);
        (model, number) = (next, number + 1);
        Ok(())
    })?;
    let tokens = (ROWS * TOKENS) as f64;
    Ok(Measured {
        tokens: Some(tokens),
        // Forward, and backward to the inputs: frozen matrices have no gradient.
        flops: Some(2.0 * flops * tokens),
        ..measured
    })
}

/// Random tokens without padding, clear of those that families give a meaning.
fn ids(rows: usize, tokens: usize) -> Vec<Vec<usize>> {
    let mut generator = Seed::new(3).generator();
    let mut draw = || 10 + (unit(&mut generator) * (SIZES.vocabulary - 10) as f64) as usize;
    (0..rows)
        .map(|_| (0..tokens).map(|_| draw()).collect())
        .collect()
}

fn batch(kind: FamilyKind) -> Batch {
    let examples = ids(ROWS, TOKENS).into_iter().map(|row| {
        let row: Vec<u32> = row.into_iter().map(|id| id as u32).collect();
        let (ids, target) = match kind {
            FamilyKind::Encoder => (row, Target::Class(0)),
            FamilyKind::Decoder => {
                let all = vec![true; row.len()];
                (row, Target::Answer(all))
            }
            FamilyKind::EncoderDecoder => {
                let (read, written) = row.split_at(TOKENS / 2);
                (read.to_vec(), Target::Text(written.to_vec()))
            }
        };
        Example {
            type_ids: vec![0; ids.len()],
            ids,
            task: 0,
            target,
        }
    });
    let examples: Vec<Example> = examples.collect();
    Batch::from_examples(&examples.iter().collect::<Vec<_>>())
}

/// One stream, the tokens behind the first, which comes with the prompt.
fn decode(family: &Family, world: &World) -> Result<Measured> {
    let model = model(family, world, &world.device)?;
    let input = DecoderInput::from_sequences(&ids(1, PROMPT), &world.device);
    let seconds = |max_new_tokens: usize| -> Result<f64> {
        let options = GenerateOptions {
            max_new_tokens,
            ..GenerateOptions::default()
        };
        let context = ForwardContext::new(Tensor::ones([1, PROMPT], &world.device));
        let start = Instant::now();
        let written = match &model {
            Backbone::Decoder(model) => model.generate(&input, &options, &context)?,
            Backbone::EncoderDecoder(model) => model.generate(&input, &options, &context)?,
            Backbone::Encoder(_) => unreachable!("it writes nothing"),
        };
        anyhow::ensure!(written[0].tokens.len() == max_new_tokens, "it ended before");
        Ok(start.elapsed().as_secs_f64())
    };
    seconds(8)?;
    let samples = (0..SAMPLES).map(|_| Ok(seconds(NEW + 1)? - seconds(1)?));
    let measured = Measured::new(samples.collect::<Result<_>>()?);
    Ok(Measured {
        tokens: Some(NEW as f64),
        ..measured
    })
}
