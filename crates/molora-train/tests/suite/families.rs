//! Every family of decoders learns: a LoRA and a mixture with auxiliary terms, the same with layers computed
//! again.

use std::path::Path;

use burn::tensor::Device;
use molora_adapters::BankConfig;
use molora_kernels::random::Seed;
use molora_models::{
    Adaptable, AdapterSpec, Backbone, DecoderConfig, ParameterKind, TaskHead, TaskModel,
};
use molora_regularize::ObjectiveConfig;
use molora_testkit::autodiff_device;
use molora_testkit::golden::{self, Case};
use molora_train::recipe::{self, BaseKind, StageConfig};
use molora_train::train::{Step, StepValues};

use crate::golden_train::batch;

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

/// What is trained, with the terms beside the loss.
pub(crate) type Mixture = (AdapterSpec, ObjectiveConfig);

/// Classes that a head tells apart.
pub(crate) const CLASSES: usize = 3;

/// A LoRA, and a mixture as SAMoRA's.
pub(crate) fn mixtures() -> [Mixture; 2] {
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

/// A stage that trains everything beside the base model.
pub(crate) fn stage(gradient_checkpointing: bool) -> StageConfig {
    let mut stage = StageConfig::new(
        "families",
        4,
        &[
            ParameterKind::Adapters,
            ParameterKind::Routers,
            ParameterKind::Gates,
            ParameterKind::Heads,
        ],
    );
    stage.optimizer.learning_rate = 2e-2;
    stage.gradient_checkpointing = gradient_checkpointing;
    stage
}

/// One task, with a head where it has one.
pub(crate) fn heads(backbone: &Backbone, has_head: bool, device: &Device) -> Vec<Option<TaskHead>> {
    vec![has_head.then(|| TaskHead::new(backbone.width(), CLASSES, Seed::new(1), device))]
}

/// Some steps on so many tasks.
fn train(
    case: &Case,
    (spec, objective): &Mixture,
    tasks: usize,
    gradient_checkpointing: bool,
    device: &Device,
) -> Vec<StepValues> {
    let mut backbone = Backbone::from_folder(&case.dir, device).expect("the base");
    let attached = backbone.attach(spec, tasks, Seed::new(0), device);
    attached.expect("the sites are there");
    let heads = vec![None; tasks];
    let stage = stage(gradient_checkpointing);
    let mut model = stage.apply(TaskModel { backbone, heads });
    let mut optimizer = stage.optimizer.init(&model);
    let batch = batch(&case.tensors(), tasks);
    let steps = (0..4).map(|index| {
        let step = Step {
            objective: Some(objective),
            ..Step::new(spec, &stage, Seed::new(0).index(index), device)
        };
        let (next, values) = step
            .run(model.clone(), &mut optimizer, &batch)
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        model = next;
        values
    });
    steps.collect()
}

#[test]
fn every_family_learns_and_layers_may_be_computed_again() {
    let device = autodiff_device();
    for case in cases() {
        for mixture in mixtures() {
            let losses = |checkpointing| -> Vec<f64> {
                let steps = train(&case, &mixture, 1, checkpointing, &device);
                steps.iter().map(|step| step.loss).collect()
            };
            let plain = losses(false);
            let [first, .., last] = plain[..] else {
                unreachable!("four steps")
            };
            let name = &case.name;
            assert!(last < 0.99 * first, "{name}: {plain:?}");
            let again = losses(true);
            for (plain, again) in plain.iter().zip(&again) {
                let apart = (plain - again).abs() / plain;
                assert!(apart < 1e-4, "{name}: {plain} and, computed again, {again}");
            }
        }
    }
}

/// At the experts of a base every token is a row: what a term reads of a sequence goes with its tokens.
#[test]
fn terms_by_task_are_read_at_experts_of_the_base() {
    let device = autodiff_device();
    let recipe = recipe::find_for("mod-squad", BaseKind::Writer).expect("a recipe");
    let mut spec = recipe.adapter;
    spec.targets = vec!["all-linear".to_owned()];
    spec.bank.dropout = 0.0;
    let mixture = (spec, recipe.objective);
    let cases = cases();
    for name in ["mixtral", "qwen3_moe"] {
        let of_name = cases.iter().filter(|case| case.name.contains(name));
        for case in of_name.clone() {
            for checkpointing in [false, true] {
                for step in train(case, &mixture, 2, checkpointing, &device) {
                    let value = step.terms["task_information"];
                    assert!(value.is_finite() && value != 0.0, "{name}: {value}");
                }
            }
        }
        assert!(of_name.count() > 0, "no case of {name}");
    }
}
