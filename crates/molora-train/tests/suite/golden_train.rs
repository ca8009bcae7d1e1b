//! Ten steps of AdamW on a LoRA against PyTorch and PEFT: losses and the factors that they lead to.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use molora_adapters::{BankConfig, Scaling};
use molora_kernels::random::Seed;
use molora_models::{Adaptable, AdapterSpec, Backbone, ParameterKind, TaskModel, load_adapter};
use molora_testkit::golden::{self, Case, Tensors};
use molora_testkit::{assert_close, autodiff_device};
use molora_train::data::{Batch, Example, Target};
use molora_train::recipe::{OptimizerConfig, StageConfig};
use molora_train::train::Step;

/// Relative to the largest value.
const LOSSES: f32 = 1e-4;
const FACTORS: f32 = 1e-3;

fn cases() -> Vec<Case> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../molora-models/tests/golden");
    let cases = golden::cases(&bundled, golden::MOLORA_GOLDEN);
    golden::of_kind(cases, "training of a LoRA", |case| {
        case.json("adapter_config.json").is_some() && case.tensors().has("losses")
    })
}

/// The specification that PEFT's configuration means.
fn spec(case: &Case) -> AdapterSpec {
    let config = case.json("adapter_config.json").expect("an adapter");
    let targets = config["target_modules"].as_array().expect("a list");
    let target = |name: &serde_json::Value| name.as_str().expect("a name").to_owned();
    AdapterSpec {
        targets: targets.iter().map(target).collect(),
        bank: BankConfig {
            rank: config["r"].as_u64().expect("a rank") as usize,
            scaling: Scaling::AlphaOverRank(config["lora_alpha"].as_f64().expect("alpha")),
            ..BankConfig::default()
        },
        ..AdapterSpec::default()
    }
}

fn model(case: &Case, spec: &AdapterSpec, device: &Device) -> TaskModel {
    let config = case.json("adapter_config.json").expect("an adapter");
    let name = config["base_model_name_or_path"].as_str().expect("a base");
    let name = Path::new(name).file_name().expect("a name");
    let folder = case.dir.parent().expect("a folder above").join(name);
    let mut backbone = Backbone::from_folder(&folder, device).expect("the base");
    let attached = backbone.attach(spec, 1, Seed::new(0), device);
    attached.expect("the sites are there");
    load_adapter(&case.dir, &mut backbone, spec).expect("the factors at the start");
    let heads = Vec::new();
    TaskModel { backbone, heads }
}

/// The rows of a case, of so many tasks in turn: every real token but the first is to be said.
pub(crate) fn batch(expected: &Tensors, tasks: usize) -> Batch {
    let width = expected.shape("input_ids")[1];
    let (ids, mask) = (expected.ints("input_ids"), expected.ints("attention_mask"));
    let row = |(number, (ids, mask)): (usize, (&[i64], &[i64]))| {
        let real = ids.iter().zip(mask).filter(|(_, is_real)| **is_real != 0);
        let ids: Vec<u32> = real.map(|(id, _)| *id as u32).collect();
        Example {
            type_ids: vec![0; ids.len()],
            target: Target::Answer(vec![true; ids.len()]),
            ids,
            task: number % tasks,
        }
    };
    let rows = ids.chunks(width).zip(mask.chunks(width)).enumerate();
    let rows: Vec<Example> = rows.map(row).collect();
    Batch::from_examples(&rows.iter().collect::<Vec<_>>())
}

/// The optimizer that the case was made with.
fn stage() -> StageConfig {
    let mut stage = StageConfig::new("golden", 10, &[ParameterKind::Adapters]);
    stage.optimizer = OptimizerConfig {
        learning_rate: 1e-2,
        weight_decay: 0.01,
        clip_norm: 0.0,
        ..OptimizerConfig::default()
    };
    stage
}

#[test]
fn golden_training_equals_peft() {
    let device = autodiff_device();
    for case in cases() {
        let (expected, spec, stage) = (case.tensors(), spec(&case), stage());
        let mut model = stage.apply(model(&case, &spec, &device));
        let mut optimizer = stage.optimizer.init(&model);
        let mut batch = batch(&expected, 1);
        // All tokens count alike.
        batch.average_over_tokens();
        let mut losses = Vec::new();
        for index in 0..expected.shape("losses")[0] {
            let step = Step::new(&spec, &stage, Seed::new(0).index(index as u64), &device);
            let (next, values) = step.run(model, &mut optimizer, &batch).expect("a step");
            model = next;
            losses.push(values.loss as f32);
        }
        let losses = Tensor::<1>::from_floats(&losses[..], &device.clone().inner());
        expected.assert_close("losses", losses, LOSSES);
        for (path, adapter) in model.backbone.sites() {
            let bank = &adapter.bank;
            for (name, factor) in [("lora_A", &bank.a), ("lora_B", &bank.b)] {
                let name = format!("final.{path}.{name}.weight");
                let actual: Tensor<2> = factor.val().inner().transpose();
                let wanted: Tensor<2> = expected.tensor(&name, &actual.device());
                assert_close(actual, wanted, FACTORS, &format!("{}: {name}", case.name));
            }
        }
    }
}
