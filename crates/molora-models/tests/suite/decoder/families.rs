//! What every family has to do: train, merge, export, and name what is wrong with its files.

use std::convert::Infallible;

use burn::tensor::{Device, Tensor};
use molora_adapters::{BankConfig, Slices};
use molora_kernels::random::{Seed, uniform};
use molora_models::peft::{
    MergedDtype, PeftAbout, PeftAdapter, attach, merge_into, save_merged, static_mixture,
    write_adapter,
};
use molora_models::{
    Adaptable, AdapterSpec, Composition, Decoder, DecoderInput, ModelWeights, RouterScope,
};
use molora_routing::scorer::CosineConfig;
use molora_routing::{Granularity, RouteFrom, RouterConfig, Selection};
use molora_testkit::{assert_close, autodiff_device, device};
use serde_json::Value;

use super::world::{
    FAMILIES, Tensors, bundled, context, folder, logits, refusal, sequence, write_file,
};

/// Those whose positions depend on the length of a text, too.
fn all() -> impl Iterator<Item = &'static str> {
    let others = ["llama_dynamic", "phi3_longrope", "qwen2_window"];
    FAMILIES.into_iter().chain(others)
}

fn read(name: &str, device: &Device) -> Decoder {
    let (config, tensors) = bundled(name);
    Decoder::from_folder(folder(&config, &tensors).path(), device).expect("a whole folder")
}

fn input(device: &Device) -> DecoderInput {
    let rows = [(11, 1), (7, 2), (9, 3)].map(|(length, seed)| sequence(length, seed));
    DecoderInput::from_sequences(&rows, device)
}

/// A LoRA at every linear layer, and of a mixture of experts its routers.
fn lora() -> AdapterSpec {
    let targets = ["all-linear", "regex:.*[.]gate"];
    AdapterSpec {
        targets: targets.map(str::to_owned).to_vec(),
        bank: BankConfig {
            rank: 2,
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Experts that share a factor under a router per token that reads the low-rank code.
fn mixture() -> AdapterSpec {
    AdapterSpec {
        targets: vec!["all-linear".into()],
        bank: BankConfig {
            num_experts: 3,
            rank: 2,
            slices: Slices::Shared,
            ..Default::default()
        },
        router: Some(RouterConfig {
            scorer: CosineConfig.into(),
            route_from: RouteFrom::LowRank,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The model with adapters that act: fresh ones are zero.
fn adapted(model: &Decoder, mut spec: AdapterSpec, device: &Device) -> Decoder {
    let (mut model, seed) = (model.clone(), Seed::new(2));
    let paths: Vec<String> = model.linears().into_iter().map(|(path, _)| path).collect();
    // Only families with experts have routers.
    if !paths.iter().any(|path| path.ends_with(".gate")) {
        spec.targets.truncate(1);
    }
    model.attach(&spec, 1, seed, device).expect("targets match");
    move_by(&mut model, "experts.lora_B", 0.2, seed);
    model
}

/// Adds random numbers to the tensors of a name.
fn move_by(model: &mut Decoder, name: &str, size: f64, seed: Seed) {
    let visited = model.visit_tensors(|path, mut tensor| {
        if tensor.name() == name {
            let mut values = tensor.values();
            let step: Tensor<1> = uniform([values.len()], size, seed.child(path), &device());
            let step = step.into_data().try_to_vec::<f32>().expect("f32");
            values
                .iter_mut()
                .zip(step)
                .for_each(|(value, step)| *value += step);
            tensor.set(&values);
        }
        Ok::<_, Infallible>(())
    });
    let Ok(()) = visited;
}

fn loss(model: &Decoder, input: &DecoderInput) -> Tensor<1> {
    let real = input.mask.clone().float().unsqueeze_dim::<3>(2);
    (logits(model, input).square() * real).mean()
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    for name in all() {
        let model = read(name, &device());
        let input = input(&device());
        let before = logits(&model, &input);
        for spec in [lora(), mixture()] {
            let mut fresh = adapted(&model, spec.clone(), &device());
            let targets = spec.targets[..1].to_vec();
            let spec = AdapterSpec { targets, ..spec };
            fresh
                .attach(&spec, 1, Seed::new(3), &device())
                .expect("targets match");
            assert_close(logits(&fresh, &input), before.clone(), 0.0, name);
        }
    }
}

/// The gradient of all sites together along a random direction is the difference of the losses there.
#[test]
fn gradients_are_those_of_the_loss() {
    const SIZE: f64 = 3e-4;
    let device = autodiff_device();
    for name in all() {
        let base = read(name, &device);
        let input = input(&device);
        for spec in [lora(), mixture()] {
            let model = adapted(&base, spec, &device);
            let gradients = loss(&model, &input).backward();
            let moved = |size| {
                let mut moved = model.clone();
                move_by(&mut moved, "experts.lora_B", size, Seed::new(5));
                moved
            };
            let [back, forth] = [-SIZE, SIZE].map(moved);
            let mut along = 0.0;
            for ((path, site), (_, end)) in model.sites().into_iter().zip(forth.sites()) {
                let b = site.bank.b.val();
                // An expert of the base without a token has none.
                let Some(gradient) = b.grad(&gradients) else {
                    assert!(path.contains(".experts."), "{name}: no gradient at {path}");
                    continue;
                };
                let step = (end.bank.b.val() - b).inner();
                along += (gradient * step).sum().into_scalar::<f32>();
            }
            let [before, after] =
                [back, forth].map(|model| loss(&model, &input).into_scalar::<f32>());
            let here = loss(&model, &input).into_scalar::<f32>();
            let is_near = |found: f32, part: f32| {
                (found - along).abs() < part * found.abs().max(1e-4 * here.abs())
            };
            // A token whose experts change on one side is a step of the loss there.
            let has_step = ["mixtral", "qwen3_moe"].contains(&name)
                && (is_near(after - here, 0.05) || is_near(here - before, 0.05));
            assert!(
                is_near((after - before) / 2.0, 0.02) || has_step,
                "{name}: {along} along the gradient, losses {before}, {here} and {after}"
            );
        }
    }
}

#[test]
fn a_merged_and_an_exported_lora_are_the_same() {
    for name in all() {
        let base = read(name, &device());
        let input = input(&device());
        let mut spec = lora();
        if name == "qwen3_moe" {
            // PEFT has no place for its layer without experts.
            spec.targets[0] = "regex:.*(self_attn|experts).*".into();
        }
        let model = adapted(&base, spec, &device());
        let wanted = logits(&model, &input);
        let changed = (wanted.clone() - logits(&base, &input)).abs().max();
        assert!(changed.into_scalar::<f32>() > 1e-2, "{name}");

        let adapter = static_mixture(&model).expect("a plain LoRA");
        let mut merged = base.clone();
        merge_into(&mut merged, &adapter);
        assert_close(logits(&merged, &input), wanted.clone(), 2e-5, name);

        let to = tempfile::tempdir().expect("a folder");
        let about = PeftAbout {
            name: "default".into(),
            base_model: "base".into(),
            task_type: Some("CAUSAL_LM".into()),
        };
        write_adapter(to.path(), &base, &adapter, &about).expect("writable");
        let found = PeftAdapter::open(to.path()).expect("readable");
        let found = found.resolve(&base).expect("of this model");
        let mut again = base.clone();
        attach(&mut again, &found);
        assert_close(logits(&again, &input), wanted, 2e-5, name);
    }
}

/// PEFT holds the experts of a layer as one matrix, gate and up together, and takes other layers of these names for
/// them: what it has no place for is refused.
#[test]
fn a_lora_of_some_experts_is_not_exported() {
    let about = PeftAbout {
        name: "default".into(),
        base_model: "base".into(),
        task_type: None,
    };
    let as_one = "hold the matrices of all experts";
    let no_expert = "model.layers.0.mlp.gate_proj, which is no expert and has the name of one";
    for (name, targets, refused) in [
        ("mixtral", vec!["w2"], ""),
        ("mixtral", vec!["w1", "w3"], ""),
        ("mixtral", vec!["w1"], as_one),
        ("qwen3_moe", vec!["experts.*.down_proj", "mlp.gate"], ""),
        ("qwen3_moe", vec!["experts.*.up_proj"], as_one),
        ("qwen3_moe", vec!["experts.2.down_proj"], as_one),
        ("qwen3_moe", vec!["all-linear"], no_expert),
        ("qwen3_moe", vec!["layers.0.mlp.gate_proj"], no_expert),
    ] {
        let base = read(name, &device());
        let spec = AdapterSpec {
            targets: targets.iter().map(|&target| target.into()).collect(),
            ..lora()
        };
        let mut model = base.clone();
        model
            .attach(&spec, 1, Seed::new(1), &device())
            .expect("targets match");
        let adapter = static_mixture(&model).expect("a plain LoRA");
        let to = tempfile::tempdir().expect("a folder");
        let written = write_adapter(to.path(), &base, &adapter, &about);
        let refusal = written
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert_eq!(
            refusal.is_empty(),
            refused.is_empty(),
            "{name}: {targets:?}: {refusal}"
        );
        assert!(refusal.contains(refused), "{refusal}");
    }
}

/// A merged model is a folder that is read again; what was not changed keeps its bits.
#[test]
fn a_merged_model_is_a_folder_of_its_family() {
    for name in all() {
        let (config, tensors) = bundled(name);
        let source = folder(&config, &tensors);
        let base = Decoder::from_folder(source.path(), &device()).expect("a whole folder");
        let model = adapted(&base, lora(), &device());
        let mut merged = base.clone();
        merge_into(&mut merged, &static_mixture(&model).expect("a plain LoRA"));
        let out = tempfile::tempdir().expect("a folder");
        save_merged(&merged, source.path(), out.path(), MergedDtype::AsSource).expect("written");
        let again = Decoder::from_folder(out.path(), &device()).expect("a whole folder");
        let input = input(&device());
        assert_close(logits(&again, &input), logits(&merged, &input), 0.0, name);
        let written = ModelWeights::open(out.path()).expect("readable");
        for (tensor, (shape, values)) in &tensors {
            let is_table = tensor.contains("embed") || tensor.starts_with("lm_head");
            let is_kept = shape.len() == 1 || is_table;
            let found = written.values(tensor, shape).expect("as in the source");
            assert_eq!(found == *values, is_kept, "{name}: {tensor}");
        }
    }
}

/// Every tensor of a family is needed, and no other one fits.
#[test]
fn what_is_wrong_with_the_tensors_of_a_family_is_named() {
    for name in all() {
        let (config, tensors) = bundled(name);
        let whole = folder(&config, &tensors);
        let path = whole.path().join("model.safetensors");
        let problem = |change: &dyn Fn(&mut Tensors)| {
            let mut bad = tensors.clone();
            change(&mut bad);
            write_file(&path, &bad);
            refusal(whole.path())
        };
        for tensor in tensors.keys() {
            let text = problem(&|all| drop(all.remove(tensor)));
            let expected = format!("tensor `{tensor}` is missing");
            assert!(text.contains(&expected), "{name}: {text}");
        }
        let (first, (shape, values)) = tensors
            .iter()
            .find(|(tensor, _)| tensor.contains("layers.0."))
            .expect("a layer");
        let beyond = first.replace("layers.0.", "layers.99.");
        let twice = format!("{first}_2");
        for extra in [beyond, twice] {
            let text = problem(&|all| {
                all.insert(extra.clone(), (shape.clone(), values.clone()));
            });
            let expected = format!("tensor `{extra}` has no place");
            assert!(text.contains(&expected), "{name}: {text}");
        }
        let text = problem(&|all| all.get_mut(first).expect("there").0.insert(0, 1));
        assert!(text.contains("has shape [1, "), "{name}: {text}");
    }
}

/// Files of a model without its head, where that is the table of tokens, have a word less in front.
#[test]
fn names_without_a_head_are_read() {
    for name in all() {
        let (config, tensors) = bundled(name);
        let bare = |name: &String| match name.split_once('.') {
            Some((first, rest)) if !["lm_head", "embed_out"].contains(&first) => rest.to_owned(),
            _ => name.clone(),
        };
        let shorter = tensors
            .iter()
            .map(|(name, value)| (bare(name), value.clone()));
        let folder = folder(&config, &shorter.collect());
        let model = Decoder::from_folder(folder.path(), &device()).expect("a whole folder");
        let (input, whole) = (input(&device()), read(name, &device()));
        assert_close(logits(&model, &input), logits(&whole, &input), 0.0, name);
    }
}

/// A field that nobody knows is no reason to stop; one of another architecture is.
#[test]
fn fields_that_are_not_known_are_told_from_those_of_others() {
    for name in all() {
        let (config, tensors) = bundled(name);
        let with = |field: &str, value: Value| {
            let mut config = config.clone();
            config[field] = value;
            folder(&config, &tensors)
        };
        let unknown = with("unheard_of", 3.into());
        assert!(
            Decoder::from_folder(unknown.path(), &device()).is_ok(),
            "{name}"
        );
        for (field, value) in [("kv_lora_rank", 8), ("n_routed_experts", 4), ("alibi", 1)] {
            let text = refusal(with(field, value.into()).path());
            let expected = format!("{field} is {value}, expected null");
            assert!(text.contains(&expected), "{name}: {text}");
        }
    }
}

#[test]
fn sites_of_experts_are_their_matrices() {
    let base = read("qwen3_moe", &device());
    let paths = |targets: &[&str]| {
        let targets = targets.iter().map(|&target| target.into()).collect();
        let spec = AdapterSpec { targets, ..lora() };
        base.clone()
            .attach(&spec, 1, Seed::new(1), &device())
            .expect("targets match")
    };
    // Layer 0 is dense; all-linear leaves the router alone.
    assert_eq!(paths(&["all-linear"]).len(), 4 + 3 + 4 + 3 * 4);
    assert_eq!(paths(&["gate"]), ["model.layers.1.mlp.gate"]);
    let gates = [0, 1, 2, 3].map(|n| format!("model.layers.1.mlp.experts.{n}.gate_proj"));
    assert_eq!(paths(&["experts.*.gate_proj"]), gates);
    let mixtral = read("mixtral", &device()).clone();
    let spec = AdapterSpec {
        targets: vec!["block_sparse_moe.experts.3.w2".into()],
        ..lora()
    };
    let found = mixtral.clone().attach(&spec, 1, Seed::new(1), &device());
    let layers = [0, 1].map(|n| format!("model.layers.{n}.block_sparse_moe.experts.3.w2"));
    assert_eq!(found.expect("targets match"), layers);
}

/// Routers of layers decide at experts too; what needs whole sequences is refused.
#[test]
fn choices_at_experts_that_have_no_place_are_named() {
    let base = read("mixtral", &device());
    let attach = |spec: AdapterSpec| base.clone().attach(&spec, 1, Seed::new(1), &device());
    let by_sequence = RouterConfig {
        granularity: Granularity::Sequence,
        ..Default::default()
    };
    let routed = |router: RouterConfig, router_scope| AdapterSpec {
        router: Some(router),
        router_scope,
        ..mixture()
    };
    let error = attach(routed(by_sequence.clone(), RouterScope::Site)).expect_err("by sequence");
    let text = error.to_string();
    assert!(
        text.contains("adapter.router.granularity is sequence"),
        "{text}"
    );
    let composition = Composition::FeedForward;
    let router_scope = RouterScope::Site;
    let top_2 = RouterConfig {
        selection: Selection::TopK(2),
        ..Default::default()
    };
    let spec = AdapterSpec {
        composition,
        ..routed(top_2, router_scope)
    };
    let text = attach(spec).expect_err("whole parts").to_string();
    assert!(
        text.contains("adapter.composition is feed_forward"),
        "{text}"
    );
    // At attention alone, all is as in other families.
    let spec = AdapterSpec {
        targets: vec!["all-attention".into()],
        ..routed(by_sequence.clone(), RouterScope::Site)
    };
    attach(spec).expect("no target in an expert");
    for granularity in [Granularity::Token, Granularity::Sequence] {
        let router = RouterConfig {
            granularity,
            ..by_sequence.clone()
        };
        let model = adapted(&base, routed(router, RouterScope::Layer), &device());
        let input = input(&device());
        // A decision of a row holds for its tokens, whatever stands beside them.
        let all = logits(&model, &input);
        let row = |index: usize| DecoderInput {
            ids: input.ids.clone().narrow(0, index, 1),
            mask: input.mask.clone().narrow(0, index, 1),
            segments: None,
        };
        for index in 0..3 {
            let real = [11, 7, 9][index];
            let alone = logits(&model, &row(index)).narrow(1, 11 - real, real);
            let beside = all.clone().narrow(0, index, 1).narrow(1, 11 - real, real);
            assert_close(alone, beside, 1e-5, "a row alone");
        }
    }
}

/// A token that goes to an expert finds the experts of its own row's task there.
#[test]
fn tasks_go_with_their_tokens_to_the_experts() {
    let base = read("qwen3_moe", &device());
    let spec = AdapterSpec {
        router: Some(RouterConfig {
            granularity: Granularity::Task,
            ..Default::default()
        }),
        ..mixture()
    };
    let mut model = base.clone();
    let seed = Seed::new(7);
    model
        .attach(&spec, 2, seed, &device())
        .expect("targets match");
    let visited = model.visit_tensors(|path, mut tensor| {
        let count = tensor.shape().iter().product();
        let values: Tensor<1> = uniform([count], 0.5, seed.child(path), &device());
        tensor.set(&values.into_data().try_to_vec::<f32>().expect("f32"));
        Ok::<_, Infallible>(())
    });
    let Ok(()) = visited;
    let rows = [sequence(6, 1), sequence(6, 1)];
    let both = DecoderInput::from_sequences(&rows, &device());
    let with_tasks = |tasks: Tensor<2>, input: &DecoderInput| {
        let mut context = context(input);
        context.tasks = Some(tasks);
        model.logits(model.forward(input, &context).hidden)
    };
    let tasks = Tensor::<2>::from_floats([[1.0, 0.0], [0.0, 1.0]], &device());
    let together = with_tasks(tasks.clone(), &both);
    let one = DecoderInput::from_sequences(&rows[..1], &device());
    for row in 0..2 {
        let alone = with_tasks(tasks.clone().narrow(0, row, 1), &one);
        assert_close(alone, together.clone().narrow(0, row, 1), 1e-5, "a task");
    }
    let [first, second] = [0, 1].map(|row| together.clone().narrow(0, row, 1));
    let difference = (first - second).abs().max().into_scalar::<f32>();
    assert!(difference > 1e-3, "{difference}");
}
