//! Experts that cannot be put together.

use super::decoder::Llama;
use crate::world::{World, read_tensors, write_tensors};

/// Runs `assemble` with these experts, under `arrow` unless the rest says otherwise.
fn refused(world: &Llama, experts: &[&str], more: &[&str], words: &[&str]) {
    let mut arguments = vec!["assemble", "--base", "base", "--out", "out"];
    for expert in experts {
        arguments.extend(["--expert", expert]);
    }
    if !more.contains(&"--router") {
        arguments.extend(["--router", "arrow"]);
    }
    arguments.extend(more);
    world.refused(&arguments, words);
}

#[test]
fn names_and_folders() {
    let world = Llama::new();
    std::fs::create_dir(world.path("empty")).expect("a new folder");
    for (experts, words) in [
        (
            ["law=law", "law=med"],
            "two experts are called law: law and med",
        ),
        (["law=law", "again=law"], "law: is given twice"),
        (["law=law", "med=nowhere"], "nowhere"),
        (["law=law", "med=empty"], "empty: no adapter_config.json"),
        (["law=law", "a/b=med"], "`a/b` cannot be the name"),
        (["law=law", "d=dora"], "dora: is a DoRA adapter"),
    ] {
        refused(&world, &experts, &[], &[words]);
    }
    let twice = ["--instruction", "law=Judge.", "--instruction", "law=Plead."];
    refused(
        &world,
        &["law=law", "med=med"],
        &twice,
        &["--instruction law: is given twice"],
    );
    let output = world.run(&[
        "assemble", "--base", "base", "--router", "arrow", "--expert", "law",
    ]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("expected NAME=VALUE"), "{error}");
}

#[test]
fn adapters_of_other_models() {
    let world = Llama::new();
    World::edit(&world.path("med/adapter_config.json"), |config| {
        config["base_model_name_or_path"] = "org/other".into();
    });
    let words = [
        "med: belongs to the base model org/other",
        "expert law to golden/llama",
    ];
    refused(&world, &["law=law", "med=med"], &[], &words);
    let path = world.path("law/adapter_model.safetensors");
    let tensors = read_tensors(&path);
    let renamed = tensors
        .iter()
        .map(|(name, value)| (name.replace("self_attn", "mixer"), value.clone()));
    write_tensors(&path, &renamed.collect());
    let words = [
        "law",
        "none of the 8 tensors belongs to this model",
        "q_proj",
    ];
    refused(&world, &["law=law"], &[], &words);
    let narrow = tensors
        .into_iter()
        .map(|(name, (shape, values))| match name.contains("lora_A") {
            true => (name, (vec![shape[0], 16], values[..shape[0] * 16].to_vec())),
            false => (name, (shape, values)),
        });
    write_tensors(&path, &narrow.collect());
    refused(&world, &["law=law"], &[], &["law", "[4, 16]", "[4, 32]"]);
}

#[test]
fn what_a_router_lacks() {
    let world = Llama::new();
    let both = ["law=law", "med=med"];
    let words = ["law: has no gate.safetensors", "--router arrow needs none"];
    refused(&world, &both, &["--router", "phatgoose"], &words);
    let words = ["law has none: give --instruction law=TEXT"];
    refused(&world, &both, &["--router", "glider"], &words);
    let more = ["--instruction", "tax=Taxes."];
    let words = ["--instruction tax: no expert is called so; there are: law, med"];
    refused(&world, &both, &more, &words);
    refused(&world, &both, &["--top-k", "3"], &["top_k 3 exceeds"]);
    let words = ["uniform weights have nothing to select or to train"];
    refused(
        &world,
        &both,
        &["--router", "uniform", "--top-k", "1"],
        &words,
    );
    let words = ["--steps needs --data"];
    refused(&world, &both, &["--steps", "3"], &words);
}

#[test]
fn folders_are_not_written_over() {
    let world = Llama::new();
    world.assemble("uniform", &[]);
    let words = ["base: exists already and is not empty"];
    world.refused(&["export", "run", "--out", "base"], &words);
    world.refused(&["merge", "run", "--out", "base"], &words);
    world.refused(&["export", "base"], &["base: holds no run.toml"]);
    world.refused(
        &["distill", "base", "--rank", "2"],
        &["base: holds no run.toml"],
    );
}
