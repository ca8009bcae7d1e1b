//! Beginning with the weights of a run, or of an adapter.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use molora_train::Recipe;
use molora_train::recipe::Transform;
use molora_train::run::train;

use crate::world::{
    World, assert_same_run, entries, read_tensors, resume_to_end, small, train_until, write_json,
    write_tensors,
};

/// A step that changes next to nothing.
fn still(name: &str) -> Recipe {
    let mut recipe = small(name);
    for stage in &mut recipe.stages {
        stage.steps = 1;
        stage.optimizer.learning_rate = 1e-9;
        stage.optimizer.learning_rates.clear();
    }
    recipe
}

fn begin(world: &World, recipe: Recipe, init: &Path, tasks: &[&str], out: &str) -> PathBuf {
    let mut request = world.request(recipe, out);
    request.init = Some(init.to_owned());
    if !tasks.is_empty() {
        request.tasks = Some(tasks.iter().map(|task| (*task).to_owned()).collect());
    }
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    request.out
}

fn assert_near(found: &Path, expected: &Path, file: &str, only: &str) {
    let [found, expected] = [found, expected].map(|run| read_tensors(&run.join(file)));
    let mut count = 0;
    for (name, (shape, values)) in found.iter().filter(|(name, _)| name.starts_with(only)) {
        let (other, numbers) = &expected[name];
        assert_eq!(shape, other, "{name}");
        let far = values
            .iter()
            .zip(numbers)
            .any(|(a, b)| (a - b).abs() > 1e-6);
        assert!(!far, "{name}");
        count += 1;
    }
    assert!(count > 0, "{file} has nothing of {only}");
}

#[test]
fn a_run_begins_where_another_ended() {
    for name in ["samora", "lora", "mixlora"] {
        let world = World::new();
        let run = world.train(&small(name), "run");
        let next = begin(&world, still(name), &run, &[], "next");
        assert_near(&next, &run, "adapter_model.safetensors", "");
        assert_near(&next, &run, "heads.safetensors", "");
        let predictions = |run: &Path| std::fs::read(run.join("predictions.json")).expect("there");
        assert!(predictions(&next) == predictions(&run), "{name}");
    }
}

#[test]
fn heads_are_those_of_tasks_of_the_same_name() {
    let world = World::new();
    let mut request = world.request(small("lora"), "run");
    request.tasks = Some(vec!["pets".into(), "weather".into()]);
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let run = request.out;
    let next = begin(&world, still("lora"), &run, &["weather", "answer"], "next");
    assert_near(&next, &run, "adapter_model.safetensors", "");
    assert_near(&next, &run, "heads.safetensors", "weather");
}

#[test]
fn a_lora_of_peft_is_a_beginning() {
    let world = World::new();
    let run = world.train(&small("lora"), "run");
    let output = world.run(&["export", "run", "--out", "adapter"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let next = begin(&world, still("lora"), &world.path("adapter"), &[], "next");
    assert_near(&next, &run, "adapter_model.safetensors", "");
}

#[test]
fn a_run_that_began_with_another_goes_on_to_the_same_end() {
    let world = World::new();
    let run = world.train(&small("samora"), "run");
    let whole = begin(&world, small("samora"), &run, &[], "whole");
    for step in [1, 7] {
        let mut request = world.request(small("samora"), "stopped");
        request.init = Some(run.clone());
        request.force = true;
        train_until(&request, step);
        resume_to_end(&request.out);
        assert_same_run(&request.out, &whole);
    }
}

#[test]
fn what_cannot_be_begun_with_is_named() {
    let world = World::new();
    let run = world.train(&small("lora"), "run");
    let refused = |recipe: Recipe, init: &Path, tasks: Option<&str>, words: &str| {
        let mut request = world.request(recipe, "next");
        request.init = Some(init.to_owned());
        request.tasks = tasks.map(|task| vec![task.to_owned()]);
        let never = AtomicBool::new(false);
        let error = train(&request, &never, &mut |_| {})
            .expect_err(words)
            .to_string();
        assert!(error.contains(words), "{error}");
        assert!(!request.out.exists(), "{words}");
    };
    refused(
        small("phatgoose"),
        &run,
        None,
        "stage experts trains experts one by one",
    );
    refused(
        small("samora"),
        &run,
        None,
        "its adapter is another one than the recipe's, in adapter.",
    );
    let mut wide = small("lora");
    wide.adapter.bank.rank = 5;
    refused(wide, &run, None, "in adapter.bank.rank: set these");
    refused(
        small("lora"),
        &world.path("data"),
        None,
        "holds neither a run nor an adapter_config.json",
    );
    let adapter = world.path("adapter");
    std::fs::create_dir(&adapter).expect("a new folder");
    write_json(
        &adapter.join("adapter_config.json"),
        &serde_json::json!({"r": 4}),
    );
    refused(
        small("samora"),
        &adapter,
        None,
        "recipe samora has several experts or a router",
    );
}

/// Nor does what comes before the first step, where that fails.
#[test]
fn a_text_encoder_that_is_not_there_leaves_nothing_behind() {
    let world = World::new();
    let before = entries(&world.path("."));
    let mut request = world.request(small("mocle"), "run");
    for stage in &mut request.recipe.stages {
        if let Some(Transform::Cluster(config)) = &mut stage.transform {
            config.encoder = world.path("nowhere").to_string_lossy().into_owned();
        }
    }
    let error = train(&request, &AtomicBool::new(false), &mut |_| {});
    let error = error.expect_err("no encoder").to_string();
    assert!(error.contains("nowhere"), "{error}");
    assert_eq!(entries(&world.path(".")), before);
}

/// What is found out only when the weights are read leaves nothing either, and an older run as it was.
#[test]
fn an_adapter_of_another_model_leaves_nothing_behind() {
    let world = World::new();
    let run = world.train(&small("lora"), "run");
    let output = world.run(&["export", "run", "--out", "adapter"]);
    assert!(output.status.success());
    let path = world.path("adapter/adapter_model.safetensors");
    let tensors = read_tensors(&path).into_iter();
    let renamed = tensors.map(|(name, value)| (name.replace("attention", "mixer"), value));
    write_tensors(&path, &renamed.collect());
    let before = (entries(&world.path(".")), entries(&run));
    let summary = std::fs::read(run.join("summary.json")).expect("readable");
    for (out, force) in [("a/new/run", false), ("run", true)] {
        let mut request = world.request(small("lora"), out);
        (request.init, request.force) = (Some(world.path("adapter")), force);
        let error = train(&request, &AtomicBool::new(false), &mut |_| {});
        let error = error.expect_err("another model").to_string();
        assert!(error.contains("mixer"), "{error}");
        assert_eq!(
            (entries(&world.path(".")), entries(&run)),
            before,
            "{error}"
        );
    }
    assert_eq!(std::fs::read(run.join("summary.json")).ok(), Some(summary));
}
