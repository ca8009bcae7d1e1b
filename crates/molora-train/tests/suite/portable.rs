//! Gradients of adapters on every family of base models: those of the fused operations of `flex` against those of
//! the portable definitions, which the backend `ndarray` goes through.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use molora_kernels::random::{Seed, uniform};
use molora_models::{
    Adaptable, Backbone, Family, FamilyKind, TaskModel, load_adapter, save_adapter, with_stable_ids,
};
use molora_routing::Guidance;
use molora_testkit::GRADIENT;
use molora_testkit::golden::{self, Case};
use molora_train::base::DeviceSpec;
use molora_train::data::{Batch, Example, Target};
use molora_train::model::inputs;
use molora_train::train::Step;

use crate::families::{self, Mixture};

/// Steps of training before gradients are compared: fresh up-projections are zero.
const STEPS: u64 = 5;

/// Cases of all families, those of the environment too.
fn cases() -> Vec<(Case, FamilyKind)> {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../molora-models/tests/golden");
    let cases = golden::cases(&bundled, golden::MOLORA_GOLDEN).into_iter();
    let known = cases.filter(|case| case.tensors().has("input_ids"));
    let of_family =
        known.filter_map(|case| Family::of(&case.dir).ok().map(|family| (case, family.kind)));
    of_family.collect()
}

/// The rows of a case, as a model of its kind reads and answers them.
fn batch(case: &Case, kind: FamilyKind) -> Batch {
    let expected = case.tensors();
    let width = expected.shape("input_ids")[1];
    let (ids, mask) = (expected.ints("input_ids"), expected.ints("attention_mask"));
    let row = |(ids, mask): (&[i64], &[i64])| {
        let real = ids.iter().zip(mask).filter(|(_, is_real)| **is_real != 0);
        let ids: Vec<u32> = real.map(|(id, _)| *id as u32).collect();
        Example {
            type_ids: vec![0; ids.len()],
            target: match kind {
                FamilyKind::Encoder => Target::Class(ids.len() % families::CLASSES),
                FamilyKind::Decoder => Target::Answer(vec![true; ids.len()]),
                FamilyKind::EncoderDecoder => Target::Text(ids.iter().rev().copied().collect()),
            },
            ids,
            task: 0,
        }
    };
    let rows = ids.chunks(width).zip(mask.chunks(width));
    let rows: Vec<Example> = rows.map(row).collect();
    Batch::from_examples(&rows.iter().collect::<Vec<_>>())
}

/// Gradients by the paths of their parameters.
struct Collect<'a> {
    gradients: &'a GradientsParams,
    path: Vec<String>,
    found: BTreeMap<String, TensorData>,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.found.insert(self.path.join("."), gradient.into_data());
        }
    }

    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }
}

/// A loss of all hidden states and scores, whose gradient goes through all layers.
fn gradients(model: &TaskModel, batch: &Batch, device: &Device) -> BTreeMap<String, TensorData> {
    let (input, context) =
        inputs(batch, model.heads.len(), None, Guidance::default(), device).expect("one task");
    let output = model.forward(&input, &context);
    // What padding holds is nobody's.
    let states = match (output.written, &input.target) {
        (None, _) => model.pool(output.hidden, &input.mask),
        (Some(written), target) => {
            let mask = target.as_ref().map_or(&input.mask, |target| &target.mask);
            let [rows, tokens, width] = written.dims();
            let real = mask.clone().float().unsqueeze_dim::<3>(2);
            let states = (written * real).reshape([rows * tokens, width]);
            model.logits(states).expect("it writes")
        }
    };
    let weights: Tensor<2> = uniform(states.dims(), 1.0, Seed::new(9), device);
    let gradients = (states * weights).sum().backward();
    let gradients = GradientsParams::from_grads(gradients, model);
    let mut collect = Collect {
        gradients: &gradients,
        path: Vec::new(),
        found: BTreeMap::new(),
    };
    model.visit(&mut collect);
    collect.found
}

/// A model that was trained for some steps on `flex`.
fn trained(mut model: TaskModel, mixture: &Mixture, batch: &Batch, device: &Device) -> TaskModel {
    let (spec, objective) = mixture;
    let stage = families::stage(false);
    let mut optimizer = stage.optimizer.init(&model);
    for index in 0..STEPS {
        let step = Step {
            objective: Some(objective),
            ..Step::new(spec, &stage, Seed::new(0).index(index), device)
        };
        model = step.run(model, &mut optimizer, batch).expect("a step").0;
    }
    model
}

fn model(case: &Case, mixture: &Mixture, kind: FamilyKind, device: &Device) -> TaskModel {
    let mut backbone = Backbone::from_folder(&case.dir, device).expect("the base");
    let attached = backbone.attach(&mixture.0, 1, Seed::new(0), device);
    attached.unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let heads = families::heads(&backbone, kind == FamilyKind::Encoder, device);
    with_stable_ids(families::stage(false).apply(TaskModel { backbone, heads }))
}

fn largest(data: &TensorData) -> f64 {
    data.iter::<f64>()
        .fold(0.0, |most, value| most.max(value.abs()))
}

fn difference(found: &TensorData, expected: &TensorData) -> f64 {
    let pairs = found.iter::<f64>().zip(expected.iter::<f64>());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn gradients_on_every_family_are_those_of_the_portable_definitions() {
    let Ok(other) = DeviceSpec::NdArray.open() else {
        assert!(!DeviceSpec::NdArray.is_built());
        return;
    };
    let (flex, other) = (Device::flex().autodiff(), other.autodiff());
    for (case, kind) in cases() {
        for (number, mixture) in families::mixtures().iter().enumerate() {
            let batch = batch(&case, kind);
            let fast = trained(model(&case, mixture, kind, &flex), mixture, &batch, &flex);
            let folder = tempfile::tempdir().expect("a folder");
            save_adapter(folder.path(), &fast.backbone, &mixture.0, "base").expect("writable");
            let mut portable = model(&case, mixture, kind, &other);
            load_adapter(folder.path(), &mut portable.backbone, &mixture.0).expect("its own files");
            let found = gradients(&fast, &batch, &flex);
            let expected = gradients(&portable, &batch, &other);
            assert!(found.keys().eq(expected.keys()), "{}", case.name);
            assert!(found.len() >= 4, "{}: {} gradients", case.name, found.len());
            // Of a tensor that next to nothing depends on, rounding is all that is left.
            let least = 1e-3 * expected.values().map(largest).fold(0.0, f64::max);
            for (path, gradient) in &found {
                let expected = &expected[path];
                let apart = difference(gradient, expected) / largest(expected).max(least);
                assert!(
                    apart < f64::from(GRADIENT),
                    "{}, mixture {number}: {path}: {apart:e} of the largest value {:e}",
                    case.name,
                    largest(expected)
                );
            }
        }
    }
}
