//! Every family of decoders learns: a LoRA and a mixture with auxiliary terms, the same with layers computed
//! again.

use std::path::Path;

use burn::tensor::Device;
use molora_adapters::BankConfig;
use molora_kernels::random::Seed;
use molora_models::{Adaptable, AdapterSpec, Backbone, DecoderConfig, ParameterKind, TaskModel};
use molora_regularize::ObjectiveConfig;
use molora_routing::Guidance;
use molora_testkit::autodiff_device;
use molora_testkit::golden::{self, Case};
use molora_train::data::{Batch, Example, Target};
use molora_train::recipe::{self, BaseKind, StageConfig};
use molora_train::train::Step;

/// Bundled cases of decoders with their own weights.
fn cases() -> Vec<Case> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../molora-models/tests/golden");
    let cases = golden::cases(&bundled, golden::MOLORA_GOLDEN);
    golden::of_kind(cases, "decoder", |case| {
        let config = case.json("config.json").unwrap_or_default();
        let family = config["model_type"].as_str().unwrap_or_default();
        DecoderConfig::families().any(|name| name == family) && case.tensors().has("lm_loss")
    })
}

fn batch(case: &Case) -> Batch {
    let expected = case.tensors();
    let width = expected.shape("input_ids")[1];
    let (ids, mask) = (expected.ints("input_ids"), expected.ints("attention_mask"));
    let row = |(ids, mask): (&[i64], &[i64])| {
        let real = ids.iter().zip(mask).filter(|(_, is_real)| **is_real != 0);
        let ids: Vec<u32> = real.map(|(id, _)| *id as u32).collect();
        Example {
            type_ids: vec![0; ids.len()],
            target: Target::Answer(vec![true; ids.len()]),
            ids,
            task: 0,
        }
    };
    let rows: Vec<Example> = ids.chunks(width).zip(mask.chunks(width)).map(row).collect();
    Batch::from_examples(&rows.iter().collect::<Vec<_>>())
}

/// What is trained, with the terms beside the loss.
fn mixtures() -> [(AdapterSpec, ObjectiveConfig); 2] {
    let targets = vec!["all-linear".to_owned()];
    let lora = AdapterSpec {
        targets: targets.clone(),
        bank: BankConfig {
            rank: 2,
            ..BankConfig::default()
        },
        ..AdapterSpec::default()
    };
    let samora = recipe::find_for("samora", BaseKind::Writer).expect("a recipe");
    let mut spec = AdapterSpec {
        targets,
        ..samora.adapter
    };
    spec.bank.rank = 3;
    spec.bank.dropout = 0.0;
    [(lora, ObjectiveConfig::default()), (spec, samora.objective)]
}

/// The losses of some steps.
fn losses(
    case: &Case,
    (spec, objective): &(AdapterSpec, ObjectiveConfig),
    gradient_checkpointing: bool,
    device: &Device,
) -> Vec<f64> {
    let mut backbone = Backbone::from_folder(&case.dir, device).expect("the base");
    let attached = backbone.attach(spec, 1, Seed::new(0), device);
    attached.expect("the sites are there");
    let heads = vec![None];
    let mut stage = StageConfig::new(
        "families",
        4,
        &[
            ParameterKind::Adapters,
            ParameterKind::Routers,
            ParameterKind::Gates,
        ],
    );
    stage.optimizer.learning_rate = 2e-2;
    stage.gradient_checkpointing = gradient_checkpointing;
    let mut model = stage.apply(TaskModel { backbone, heads });
    let mut optimizer = stage.optimizer.init(&model);
    let batch = batch(case);
    let steps = (0..4).map(|index| {
        let step = Step {
            task_weights: &[],
            spec,
            objective: Some(objective),
            stage: &stage,
            only: None,
            rate_factor: 1.0,
            dropout: Seed::new(0).index(index),
            device,
            rules: &[],
            guidance: &|_| Ok(Guidance::default()),
        };
        let (next, values) = step
            .run(model.clone(), &mut optimizer, &batch)
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        model = next;
        values.loss
    });
    steps.collect()
}

#[test]
fn every_family_learns_and_layers_may_be_computed_again() {
    let device = autodiff_device();
    for case in cases() {
        for mixture in mixtures() {
            let plain = losses(&case, &mixture, false, &device);
            let [first, .., last] = plain[..] else {
                unreachable!("four steps")
            };
            let name = &case.name;
            assert!(last < 0.99 * first, "{name}: {plain:?}");
            let again = losses(&case, &mixture, true, &device);
            for (plain, again) in plain.iter().zip(&again) {
                let apart = (plain - again).abs() / plain;
                assert!(apart < 1e-4, "{name}: {plain} and, computed again, {again}");
            }
        }
    }
}
