//! Adapters on encoders of every family.

use burn::module::Param;
use burn::tensor::Tensor;
use molora_adapters::BankConfig;
use molora_kernels::random::Seed;
use molora_models::peft::{
    MergedDtype, PeftAbout, PeftAdapter, attach, detach, merge_into, save_merged, static_mixture,
    write_adapter,
};
use molora_models::{
    Adaptable, AdapterSpec, Backbone, Composition, Encoder, RouterScope, TaskModel, TextInput,
};
use molora_routing::{Granularity, RouterConfig, Selection};
use molora_testkit::{assert_close, autodiff_device, device};

use super::world::{CASES, adapted, context, folder, hidden, input, model};

fn spec(experts: usize, router: Option<RouterConfig>) -> AdapterSpec {
    AdapterSpec {
        targets: vec!["all-linear".into()],
        bank: BankConfig {
            num_experts: experts,
            rank: 2,
            ..Default::default()
        },
        router,
        ..Default::default()
    }
}

/// Mixtures that decide for tokens, for sequences in layers, and for feed-forward parts.
fn mixtures() -> Vec<AdapterSpec> {
    let top_2 = RouterConfig {
        selection: Selection::TopK(2),
        ..Default::default()
    };
    let by_sequence = RouterConfig {
        granularity: Granularity::Sequence,
        ..top_2.clone()
    };
    let in_layers = AdapterSpec {
        router_scope: RouterScope::Layer,
        ..spec(3, Some(by_sequence))
    };
    let in_parts = AdapterSpec {
        composition: Composition::FeedForward,
        ..spec(3, Some(top_2.clone()))
    };
    vec![spec(3, Some(top_2)), in_layers, in_parts]
}

/// One LoRA and two experts without a router, at every linear layer of the files: those of positions,
/// of the embeddings and the parts of fused ones too.
#[test]
fn adapters_everywhere_equal_their_merge() {
    let device = device();
    let input = input(&device);
    for case in CASES {
        let base = hidden(&model(case, &device), &input);
        for experts in [1, 2] {
            let adapted = adapted(case, &spec(experts, None), &device);
            assert_eq!(adapted.sites().len(), adapted.linears().len(), "{case}");
            let before = hidden(&adapted, &input);
            let change = (before.clone() - base.clone()).abs().max();
            assert!(change.into_scalar::<f32>() > 1e-2, "{case}");
            let adapter = static_mixture(&adapted).expect("no router");
            let mut merged = adapted.clone();
            detach(&mut merged);
            merge_into(&mut merged, &adapter);
            let what = format!("{case}: {experts} experts");
            assert_close(hidden(&merged, &input), before, 1e-5, &what);
            // And the whole model as it is written.
            let out = tempfile::tempdir().expect("a folder");
            save_merged(&merged, &folder(case), out.path(), MergedDtype::Float32)
                .expect("writable");
            let read = Encoder::from_folder(out.path(), &device).expect("a whole model");
            assert_close(hidden(&read, &input), hidden(&merged, &input), 0.0, &what);
        }
    }
}

#[test]
fn adapters_are_read_as_they_are_written_for_peft() {
    let device = device();
    let input = input(&device);
    for case in CASES {
        let adapted = adapted(case, &spec(1, None), &device);
        let adapter = static_mixture(&adapted).expect("no router");
        let about = PeftAbout {
            name: "default".into(),
            base_model: case.into(),
            task_type: Some(adapted.task_type().into()),
        };
        let out = tempfile::tempdir().expect("a folder");
        let mut read = model(case, &device);
        let written = write_adapter(out.path(), &read, &adapter, &about).expect("writable");
        let resolved = PeftAdapter::open(&written).expect("two files");
        let resolved = resolved.resolve(&read).expect("of this model");
        attach(&mut read, &resolved);
        assert_close(hidden(&read, &input), hidden(&adapted, &input), 1e-5, case);
    }
}

#[test]
fn fresh_mixtures_change_nothing_and_trained_ones_do() {
    let device = device();
    let input = input(&device);
    for case in CASES {
        let base = model(case, &device);
        let before = hidden(&base, &input);
        for spec in mixtures() {
            let mut fresh = base.clone();
            let sites = fresh.attach(&spec, 2, Seed::new(2), &device);
            let sites = sites.unwrap_or_else(|error| panic!("{case}: {error}"));
            // Routers have no place where no tokens of a layer are read.
            let left_out = fresh.linears().into_iter().map(|(path, _)| path);
            let left_out: Vec<String> = left_out.filter(|path| !sites.contains(path)).collect();
            let is_apart = |path: &String| path.contains("pos_") || path.contains("project");
            assert!(left_out.iter().all(is_apart), "{case}: {left_out:?}");
            assert_close(hidden(&fresh, &input), before.clone(), 1e-6, case);
            let after = hidden(&adapted(case, &spec, &device), &input);
            let change = (after - before.clone()).abs().max().into_scalar::<f32>();
            assert!(change > 1e-2, "{case}: {change}");
        }
    }
}

/// PEFT knows a fused layer by one name.
#[test]
fn the_name_of_a_fused_layer_is_all_its_parts() {
    let device = device();
    let sites = |targets: &[&str]| {
        let named = AdapterSpec {
            targets: targets.iter().map(|&target| target.into()).collect(),
            ..spec(1, None)
        };
        let mut model = model("modernbert", &device);
        model.attach(&named, 1, Seed::new(1), &device)
    };
    let all = sites(&["all-linear"]).expect("every layer");
    assert_eq!(sites(&["Wqkv", "Wi", "Wo"]).expect("every layer"), all);
    let one = sites(&["layers.1.attn.Wqkv", "mlp.Wi.up"]).expect("some");
    let parts = ["q", "k", "v"].map(|part| format!("layers.1.attn.Wqkv.{part}"));
    assert!(parts.iter().all(|part| one.contains(part)));
    assert_eq!(one.len(), 3 + 4);
    assert!(sites(&["qkv"]).is_err());
}

/// As gradient checkpointing computes it.
#[test]
fn layers_one_by_one_give_the_whole_pass() {
    let device = device();
    let input = input(&device);
    for case in CASES {
        for spec in mixtures() {
            let model = adapted(case, &spec, &device);
            let whole = model.forward(&input, &context(&input.mask));
            let model = TaskModel {
                backbone: Backbone::Encoder(model),
                heads: Vec::new(),
            };
            let text = TextInput {
                ids: input.ids.clone(),
                type_ids: input.type_ids.clone(),
                mask: input.mask.clone(),
                segments: None,
                target: None,
            };
            let (mut states, mut state) = model.begin(&text, &context(&input.mask));
            let mut routes = 0;
            for index in 0..model.num_blocks().expect("an encoder") {
                let (next, decided) = model.block(index, states, &mut state);
                routes += decided.len();
                states = next;
            }
            assert_eq!(routes, whole.routes.len(), "{case}");
            assert_close(model.end(states).hidden, whole.hidden, 0.0, case);
        }
    }
}

/// The gradients of the experts' up-projections against differences of the loss along them.
#[test]
fn gradients_are_those_of_differences() {
    let device = autodiff_device();
    let input = input(&device);
    let loss = |model: &Encoder| hidden(model, &input).powi_scalar(2).mean();
    for case in CASES {
        // Without a selection, which jumps.
        for spec in [spec(1, None), spec(3, Some(RouterConfig::default()))] {
            let model = adapted(case, &spec, &device);
            let gradients = loss(&model).backward();
            let of_sites = model.sites().into_iter().map(|(path, adapter)| {
                let gradient = adapter.bank.b.val().grad(&gradients);
                gradient.unwrap_or_else(|| panic!("{case}: {path}: no gradient"))
            });
            let of_sites: Vec<Tensor<2>> = of_sites.collect();
            let squares = of_sites.iter().map(|gradient| {
                let square = gradient.clone().powi_scalar(2).sum().into_scalar::<f32>();
                assert!(square > 0.0, "{case}");
                f64::from(square)
            });
            let slope = squares.sum::<f64>().sqrt();
            let [up, down] = [STEP, -STEP].map(|step| {
                let mut moved = model.clone();
                for ((_, site), gradient) in moved.sites_mut().into_iter().zip(&of_sites) {
                    let step = gradient.clone().mul_scalar(step / slope);
                    let b = site.bank.b.val().inner() + step;
                    site.bank.b = Param::from_tensor(b.autodiff());
                }
                f64::from(loss(&moved).into_scalar::<f32>())
            });
            let found = (up - down) / (2.0 * STEP);
            let error = (found - slope).abs() / slope;
            assert!(error < 1e-2, "{case}: {found} along a slope of {slope}");
        }
    }
}

/// Along the gradient, small enough for the curve and large enough for f32.
const STEP: f64 = 2e-3;
