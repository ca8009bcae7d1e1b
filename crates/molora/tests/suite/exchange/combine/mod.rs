//! Merging of experts through the program.

mod learned;
mod refusal;

use burn::tensor::Tensor;
use molora_adapters::merge::{Join, MergeMethod, Rule, Sign, Sparsify};
use molora_models::peft::{PeftAdapter, ResolvedAdapter, combine, merge_into};
use molora_models::{Backbone, Decoder};
use molora_testkit::{assert_close, device};

use super::decoder::{Llama, logits};
use crate::world::{World, copy_folder, read_json, read_tensors, small};

/// The adapters `law` and `other`, which differ in their numbers alone.
pub(super) fn world() -> Llama {
    let world = Llama::new();
    copy_folder(&world.path("law"), &world.path("other"));
    let path = world.path("other/adapter_model.safetensors");
    let mut tensors = read_tensors(&path);
    for (name, (_, values)) in &mut tensors {
        let shift = if name.contains("lora_A") { 0.3 } else { -0.2 };
        for (index, value) in values.iter_mut().enumerate() {
            *value = -0.5 * *value + shift * ((index % 5) as f32 - 2.0) / 2.0;
        }
    }
    crate::world::write_tensors(&path, &tensors);
    world
}

fn adapter(world: &Llama, name: &str, model: &Decoder) -> ResolvedAdapter {
    let adapter = PeftAdapter::open(&world.path(name)).expect("an adapter");
    adapter.resolve(model).expect("of this model")
}

/// The scores of the base with these adapters merged by the library.
fn merged(world: &Llama, names: &[&str], weights: &[f64], method: MergeMethod) -> Tensor<3> {
    let mut model = world.model(None);
    let adapters: Vec<_> = names
        .iter()
        .map(|name| adapter(world, name, &model))
        .collect();
    let parts: Vec<_> = adapters.iter().zip(weights.iter().copied()).collect();
    let merged = combine(&parts, method).expect("plain adapters");
    merge_into(&mut model, &merged);
    logits(&model)
}

/// What the program writes computes what the library merges.
#[test]
fn every_method_that_one_lora_holds() {
    let world = world();
    let [largest, random] = [0.4, 0.6].map(|density| (density, density.to_string()));
    let pruned = Sparsify::Largest { density: largest.0 };
    let dropped = Sparsify::Random {
        density: random.0,
        seed: 7,
    };
    let rule = |sparsify, join| Rule { sparsify, join };
    let mean = Join::Mean(Sign::Frequency);
    let both: &[&str] = &["law", "other"];
    for (number, (how, experts, weights, more, method)) in [
        ("linear", both, [0.7, -0.4], vec![], MergeMethod::LINEAR),
        (
            "cat",
            &["law", "med"][..],
            [0.7, -0.4],
            vec![],
            MergeMethod::Cat,
        ),
        (
            "task-arithmetic",
            both,
            [0.3, 0.3],
            vec![],
            MergeMethod::Cat,
        ),
        (
            "svd",
            &["law", "med"][..],
            [0.5, 0.5],
            vec!["--rank", "2"],
            MergeMethod::Svd { rank: 2 },
        ),
        (
            "ties",
            both,
            [0.7, 0.4],
            vec!["--density", &largest.1, "--sign", "frequency"],
            MergeMethod::Factors(rule(pruned, mean)),
        ),
        (
            "ties",
            &["law", "med"][..],
            [0.7, 0.4],
            vec![
                "--density",
                &largest.1,
                "--sign",
                "frequency",
                "--rank",
                "3",
            ],
            MergeMethod::Products {
                rule: rule(pruned, mean),
                rank: 3,
            },
        ),
        (
            "magnitude",
            both,
            [0.7, -0.4],
            vec!["--density", &largest.1],
            MergeMethod::Factors(rule(pruned, Join::Sum)),
        ),
        (
            "dare",
            both,
            [0.7, -0.4],
            vec!["--density", &random.1, "--seed", "7"],
            MergeMethod::Factors(rule(dropped, Join::Sum)),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("out{number}");
        let given = weights.map(|weight| weight.to_string()).join(",");
        let mut arguments = vec!["combine"];
        arguments.extend(experts);
        arguments.extend(["--base", "base", "--how", how, "--out", &out]);
        if how != "task-arithmetic" {
            arguments.extend(["--weights", &given]);
        }
        arguments.extend(more);
        let text = world.done(&arguments);
        assert!(text.contains(&format!("{out}: a LoRA of rank")), "{text}");
        let found = logits(&world.model(Some(&world.path(&out))));
        let expected = merged(&world, experts, &weights, method);
        assert_close(found, expected, 1e-5, how);
        let config = read_json(&world.path(&out).join("adapter_config.json"));
        assert_eq!(config["base_model_name_or_path"], "golden/llama", "{how}");
        assert_eq!(config["peft_type"], "LORA", "{how}");
    }
}

/// Where no LoRA holds the result it is a whole model, and the exact sum is the same both ways.
#[test]
fn whole_models() {
    let world = world();
    let common = ["--base", "base", "--whole", "--out"];
    let mut arguments = vec!["combine", "law", "med", "--how", "cat"];
    arguments.extend(common);
    world.done(&[&arguments[..], &["sum"]].concat());
    let expected = merged(&world, &["law", "med"], &[0.5, 0.5], MergeMethod::Cat);
    assert_close(logits(&world.read("sum")), expected, 1e-5, "cat");
    let mut arguments = vec!["combine", "law", "med", "--how", "ties"];
    arguments.extend(common);
    let text = world.done(&[&arguments[..], &["ties"]].concat());
    assert!(
        text.contains("ties: a whole model with 14 changed modules"),
        "{text}"
    );
    // Uncut, so that a LoRA of the full rank computes the same.
    let rule = Rule {
        sparsify: Sparsify::Largest { density: 0.2 },
        join: Join::Mean(Sign::Total),
    };
    let method = MergeMethod::Products { rule, rank: 32 };
    let expected = merged(&world, &["law", "med"], &[1.0, 1.0], method);
    assert_close(logits(&world.read("ties")), expected, 1e-5, "ties");
}

/// Experts of a run bring their base model, their heads and how they read texts.
#[test]
fn experts_of_a_run() {
    let world = World::new();
    world.train(&small("phatgoose"), "run");
    let done = |arguments: &[&str]| {
        let output = world.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let experts = ["answer", "pets", "weather"].map(|name| format!("run/experts/{name}"));
    let mut arguments = vec!["combine"];
    arguments.extend(experts.iter().map(String::as_str));
    arguments.extend(["--how", "cat", "--data", "data", "--out", "out"]);
    let text = done(&arguments);
    for word in [
        "answer",
        "pets",
        "weather",
        "mean",
        "0.333  run/experts/pets",
        "rank 12",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let heads = |path: &str| read_tensors(&world.path(path));
    let all = heads("out/heads.safetensors");
    assert_eq!(all.len(), 6);
    for name in ["answer", "pets", "weather"] {
        for (key, value) in heads(&format!("run/experts/{name}/head.safetensors")) {
            assert_eq!(all[&key], value, "{key}");
        }
    }
    // One expert of weight 1 is itself.
    let one = [
        "combine",
        "run/experts/pets",
        "--how",
        "cat",
        "--weights",
        "1",
        "--out",
        "one",
    ];
    done(&one);
    let backbone = |folder: &str| {
        let base = world.path("model");
        let mut model = Backbone::from_folder(&base, &device()).expect("a model");
        let adapter = PeftAdapter::open(&world.path(folder)).expect("an adapter");
        let adapter = adapter.resolve(&model).expect("of this model");
        merge_into(&mut model, &adapter);
        adapter
    };
    let [found, expected] = ["one", "run/experts/pets"].map(backbone);
    for (found, expected) in found.loras.iter().zip(&expected.loras) {
        assert_eq!(found.path, expected.path);
        assert_close(found.delta(), expected.delta(), 1e-6, &found.path);
    }
}

/// A run of one LoRA is an expert; two of the same tasks bring heads that are not merged.
#[test]
fn runs_of_one_lora() {
    let world = World::new();
    for (run, seed) in [("one", 1), ("two", 2)] {
        let mut request = world.request(small("lora"), run);
        request.seed = seed;
        let stop = std::sync::atomic::AtomicBool::new(false);
        molora_train::run::train(&request, &stop, &mut |_| {}).expect("a run");
    }
    let output = world.run(&["combine", "one", "two", "--how", "linear", "--out", "out"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let words = "several experts have a head for answer, pets, weather: none of those was written";
    assert!(text.contains(words), "{text}");
    assert!(!world.path("out/heads.safetensors").exists());
}
