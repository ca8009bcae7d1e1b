//! Whole models with their mixtures for transformers: what is written, and what is refused.

use std::sync::atomic::AtomicBool;

use molora_models::ModelWeights;
use molora_models::transformers::PYTHON;
use molora_train::run::train;

use crate::program::writer;
use crate::world::{World, entries, read_json, read_tensors, small};

const EXPORT: [&str; 4] = ["export", "run", "--format", "transformers"];

/// A world with a run of a recipe for the tiny decoder.
fn written(recipe: &str) -> World {
    let world = writer::world();
    let recipe = writer::recipe(recipe, 4);
    let request = writer::request(&world, recipe, &["pets", "sky"], "run");
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    world
}

fn done(world: &World, more: &[&str]) -> String {
    let output = world.run(&[&EXPORT, more].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Fails with one line that has these words, and writes nothing new.
fn refused(world: &World, more: &[&str], words: &[&str]) {
    let before = entries(&world.path("."));
    let output = world.run(&[&EXPORT, more].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let line = errors.lines().last().unwrap_or_default();
    assert!(line.starts_with("error: "), "{errors}");
    for word in words {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert_eq!(entries(&world.path(".")), before);
}

#[test]
fn a_decoder_with_a_router_at_every_site() {
    let world = written("hydralora");
    let text = done(&world, &["out", "--task", "sky"]);
    let words =
        "out: a whole model for transformers with trust_remote_code=True, mixtures on 14 modules";
    assert!(text.starts_with(words), "{text}");
    let mut files = vec![
        "config.json",
        "manifest.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    files.extend(PYTHON.map(|(name, _)| name));
    files.sort_unstable();
    assert_eq!(entries(&world.path("out")), files);
    for (name, text) in PYTHON {
        let found = std::fs::read_to_string(world.path("out").join(name)).expect("readable");
        assert_eq!(found, text, "{name}");
    }

    let [base, config] =
        ["writer", "out"].map(|name| read_json(&world.path(name).join("config.json")));
    for (key, value) in base.as_object().expect("an object") {
        let key = if key == "model_type" {
            "base_model_type"
        } else {
            key
        };
        assert_eq!(config[key], *value, "{key}");
    }
    assert_eq!(config["model_type"], "molora");
    assert_eq!(
        config["auto_map"]["AutoConfig"],
        "configuration_molora.MoloraConfig"
    );
    assert_eq!(
        config["auto_map"]["AutoModelForCausalLM"],
        "modeling_molora.MoloraForCausalLM"
    );
    assert!(
        config["auto_map"]
            .get("AutoModelForSequenceClassification")
            .is_none()
    );
    let molora = &config["molora"];
    let adapter = &read_json(&world.path("run/adapter_config.json"))["adapter"];
    assert_eq!(&molora["adapter"], adapter);
    assert_eq!(
        (&molora["kind"], &molora["task"]),
        (&"decoder".into(), &"sky".into())
    );
    assert_eq!(molora["sites"].as_array().map(Vec::len), Some(14));
    assert_eq!(molora["tasks"][0]["name"], "pets");

    // The base's file as it is, and the run's tensors by their names.
    let bytes = |path: &str| std::fs::read(world.path(path)).expect("readable");
    let own = bytes("out/model-00001-of-00002.safetensors");
    assert!(own == bytes("writer/model.safetensors"));
    let found = read_tensors(&world.path("out/model-00002-of-00002.safetensors"));
    let expected = read_tensors(&world.path("run/adapter_model.safetensors"));
    assert_eq!(found.len(), expected.len());
    for (name, tensor) in &expected {
        let name = name
            .strip_prefix("base_model.model.")
            .expect("PEFT's prefix");
        let (site, part) = name.split_once("_proj.").expect("a linear layer");
        assert_eq!(
            &found[&format!("{site}_proj.molora.{part}")],
            tensor,
            "{name}"
        );
    }
    let weights = ModelWeights::open(&world.path("out")).expect("an index of both files");
    assert!(weights.has("model.layers.1.mlp.up_proj.weight"));

    // What is there stays.
    refused(&world, &["--out", "out"], &["out", "is not empty"]);
    let verified = world.run(&["verify", "out"]);
    assert!(verified.status.success(), "{verified:?}");
}

#[test]
fn an_encoder_with_heads_and_routers_of_layers() {
    let world = World::new();
    world.train(&small("moa"), "run");
    let text = done(&world, &[]);
    assert!(text.contains("heads of 3 tasks"), "{text}");
    let out = world.path("run/transformers");
    let config = read_json(&out.join("config.json"));
    let class = &config["auto_map"]["AutoModelForSequenceClassification"];
    assert_eq!(class, "modeling_molora.MoloraForSequenceClassification");
    let tasks = &config["molora"]["tasks"];
    assert_eq!(
        (&tasks[2]["name"], &tasks[2]["head"]),
        (&"weather".into(), &3.into())
    );
    let found = read_tensors(&out.join("model-00002-of-00002.safetensors"));
    assert_eq!(found["heads.2.weight"].0[0], 3);
    assert!(found.contains_key("encoder.layer.0.molora_router.weight"));
}

#[test]
fn mixtures_elsewhere_are_refused_by_name() {
    for (recipe, words) in [
        (
            "mixlora",
            "mixlora: its experts are whole feed-forward parts (adapter.composition is feed_forward)",
        ),
        (
            "jiuzhang",
            "jiuzhang: its experts are whole feed-forward parts",
        ),
        (
            "mtlora",
            "mtlora: its experts stand beside whole feed-forward parts (adapter.composition is block)",
        ),
        (
            "lily",
            "lily: its layers share their experts (adapter.composition is pool)",
        ),
        (
            "x-lora",
            "x-lora: a first pass decides for all layers (adapter.router_scope is first_pass)",
        ),
    ] {
        let world = written(recipe);
        let words = [
            words,
            "the Python of --format transformers does not compute this run",
        ];
        refused(&world, &["out"], &words);
    }
}

#[test]
fn options_of_other_formats_are_refused() {
    let world = written("lora");
    refused(
        &world,
        &["out", "--name", "mine"],
        &["--name is for --format peft"],
    );
    refused(
        &world,
        &["out", "--expert", "0"],
        &["--expert is for --format peft and gguf"],
    );
    refused(
        &world,
        &["out", "--dtype", "f16"],
        &["--model and --dtype are for --format gguf"],
    );
    refused(&world, &["out", "--task", "sums"], &["sums", "pets, sky"]);
}
