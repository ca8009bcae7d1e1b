//! Runs as adapters and as whole models.

use burn::tensor::Tensor;
use molora_adapters::GateConfig;
use molora_models::peft::{PeftAdapter, attach};
use molora_models::{Backbone, EncoderInput, ForwardContext};
use molora_testkit::{assert_close, device};
use molora_train::recipe::Recipe;

use super::decoder::{Llama, logits};
use crate::world::{World, entries, read_json, read_tensors, small};

const TOLERANCE: f32 = 1e-5;

/// Hidden states of an encoder on two padded texts.
fn hidden(model: &Backbone) -> Tensor<3> {
    let Backbone::Encoder(model) = model else {
        panic!("the world's model is an encoder");
    };
    let ids = Tensor::from_data([[2, 9, 11, 3], [2, 5, 3, 0]], &device());
    let mask = Tensor::from_data(
        [[true, true, true, true], [true, true, true, false]],
        &device(),
    );
    let input = EncoderInput {
        type_ids: Tensor::zeros([2, 4], &device()),
        ids,
        mask: mask.clone(),
    };
    let context = ForwardContext::new(mask.float());
    model.forward(&input, &context).hidden.narrow(1, 0, 3)
}

/// The base model of a world with the adapter in a folder.
fn adapted(world: &World, folder: &str) -> Backbone {
    let mut model = Backbone::from_folder(&world.path("model"), &device()).expect("a model");
    let adapter = PeftAdapter::open(&world.path(folder)).expect("an adapter");
    let adapter = adapter.resolve(&model).expect("of this model");
    attach(&mut model, &adapter);
    model
}

fn done(world: &World, arguments: &[&str]) -> String {
    let output = world.run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn refusal(world: &World, arguments: &[&str]) -> String {
    let output = world.run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn a_lora_is_exported_as_it_is_and_merged() {
    let world = World::new();
    world.train(&small("lora"), "run");
    let text = done(&world, &["export", "run", "--out", "peft"]);
    assert!(text.contains("a LoRA of rank 4 on 16 modules"), "{text}");
    let files = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "heads.safetensors",
        "manifest.json",
    ];
    assert_eq!(entries(&world.path("peft")), files);
    // A plain LoRA's own file is PEFT's already.
    let tensors = |folder: &str| read_tensors(&world.path(folder).join(files[1]));
    assert_eq!(tensors("peft"), tensors("run"));
    let config = read_json(&world.path("peft/adapter_config.json"));
    assert_eq!(config["peft_type"], "LORA");
    done(&world, &["merge", "run", "--out", "merged"]);
    let merged = Backbone::from_folder(&world.path("merged"), &device()).expect("a whole model");
    let expected = hidden(&adapted(&world, "peft"));
    assert_close(hidden(&merged), expected, TOLERANCE, "hidden states");
    assert!(world.path("merged/tokenizer.json").is_file());
}

#[test]
fn what_a_token_routed_mixture_offers_instead() {
    let world = World::new();
    world.train(&small("hydralora"), "run");
    for command in ["export", "merge"] {
        let error = refusal(&world, &[command, "run", "--out", "out"]);
        for words in [
            "error: run: no single LoRA computes what this mixture does",
            "its routers weigh the experts anew for each token",
            "molora distill run --rank 4",
            "molora export run --expert N (0 to 2)",
        ] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
    let error = refusal(&world, &["export", "run", "--expert", "3"]);
    assert!(error.contains("has no expert `3`; expected a number from 0 to 2"));
    let text = done(&world, &["export", "run", "--expert", "2"]);
    assert!(text.starts_with("run/peft-2: a LoRA of rank 4"), "{text}");
    // The expert is the bank's third, beside the common A.
    let bank = read_tensors(&world.path("run/adapter_model.safetensors"));
    let site = "base_model.model.encoder.layer.0.attention.self.query";
    let [(_, b), (_, a)] =
        ["experts.lora_B", "experts.lora_A"].map(|name| bank[&format!("{site}.{name}")].clone());
    let expert = read_tensors(&world.path("run/peft-2/adapter_model.safetensors"));
    assert_eq!(expert[&format!("{site}.lora_A.weight")].1, a);
    let third = &b[b.len() / 3 * 2..];
    assert_eq!(expert[&format!("{site}.lora_B.weight")].1, third);
    assert!(!world.path("out").exists());
}

#[test]
fn experts_of_tasks_have_names() {
    let world = World::new();
    world.train(&small("phatgoose"), "run");
    let error = refusal(&world, &["export", "run", "--expert", "cars"]);
    let known = "there are answer, pets, weather, or a number from 0 to 2";
    assert!(error.contains(known), "{error}");
    done(
        &world,
        &["export", "run", "--expert", "pets", "--out", "pets"],
    );
    let tensors =
        |folder: &str| read_tensors(&world.path(folder).join("adapter_model.safetensors"));
    assert_eq!(tensors("pets"), tensors("run/experts/pets"));
}

/// A LoRA that a gate scales by task.
fn gated() -> Recipe {
    let mut recipe = small("lora");
    recipe.adapter.gate = Some(GateConfig {
        width: 3,
        bias: true,
    });
    recipe
}

#[test]
fn a_task_fixes_a_gate() {
    let world = World::new();
    world.train(&gated(), "run");
    let error = refusal(&world, &["export", "run"]);
    let words = "its gates scale the adapter by task, which --task fixes to one of answer, pets";
    assert!(error.contains(words), "{error}");
    let error = refusal(&world, &["export", "run", "--task", "cars"]);
    assert!(error.contains("has no task `cars`; there are: answer, pets, weather"));
    for task in ["pets", "weather"] {
        done(&world, &["export", "run", "--task", task]);
        let out = format!("{task}-merged");
        done(&world, &["merge", "run", "--task", task, "--out", &out]);
        let merged = Backbone::from_folder(&world.path(&out), &device()).expect("a whole model");
        let exported = adapted(&world, &format!("run/peft-{task}"));
        assert_close(hidden(&merged), hidden(&exported), TOLERANCE, task);
    }
    let [one, other] = ["pets", "weather"].map(|task| adapted(&world, &format!("run/peft-{task}")));
    let difference = (hidden(&one) - hidden(&other)).abs().max();
    assert!(difference.into_scalar::<f32>() > 1e-4, "tasks differ");
}

#[test]
fn a_static_mixture_is_an_exact_concatenation() {
    let world = Llama::new();
    world.assemble("uniform", &[]);
    let text = world.done(&["export", "run", "--out", "peft"]);
    // Ranks 4 and 3 on q and v, 3 on the others, without what filled the bank up.
    assert!(
        text.contains("a LoRA of ranks 3 to 7 on 14 modules"),
        "{text}"
    );
    world.done(&["merge", "run", "--out", "merged"]);
    let found = logits(&world.model(Some(&world.path("peft"))));
    assert_close(
        logits(&world.read("merged")),
        found.clone(),
        TOLERANCE,
        "merged",
    );
    // The mean of two deltas: PEFT's own files, each at half its scale.
    for name in ["law", "med"] {
        let path = world.path(name).join("adapter_config.json");
        World::edit(&path, |config| {
            let alpha = config["lora_alpha"].as_f64().expect("a number");
            config["lora_alpha"] = (alpha / 2.0).into();
        });
    }
    let mut expected = world.model(None);
    for name in ["law", "med"] {
        let adapter = PeftAdapter::open(&world.path(name)).expect("an adapter");
        let adapter = adapter.resolve(&expected).expect("of this model");
        molora_models::peft::merge_into(&mut expected, &adapter);
    }
    assert_close(found, logits(&expected), TOLERANCE, "mean of the experts");
}

/// PEFT itself does not survive such names.
#[test]
fn names_of_adapters_survive_a_round_trip() {
    for name in ["0", "layers", "lora_A"] {
        let world = Llama::new();
        world.assemble("uniform", &[]);
        let arguments = ["export", "run", "--expert", "law", "--out", "peft"];
        world.done(&[&arguments[..], &["--name", name]].concat());
        assert_eq!(entries(&world.path("peft")), [name]);
        let found = logits(&world.model(Some(&world.path("peft"))));
        let expected = logits(&world.model(Some(&world.path("law"))));
        assert_close(found, expected, TOLERANCE, name);
        let again = ["assemble", "--base", "base", "--expert", "law=peft"];
        world.done(&[&again[..], &["--router", "uniform", "--out", "again"]].concat());
    }
}
