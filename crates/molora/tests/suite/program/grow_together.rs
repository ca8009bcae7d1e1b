//! Mixtures that were trained together get one more task, or say why they cannot.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use molora_models::ParameterKind;
use molora_train::TrainError;
use molora_train::grow::{AddRequest, Removed, add_expert, remove_expert};
use molora_train::recipe::{self, GuardAction, GuardRule, Recipe, StageConfig, Watched};
use molora_train::run::{evaluate_run, train};
use molora_train::train::Event;
use molora_train::verify::{VerifyRequest, verify};

use super::refusal::assert_refused;
use super::writer;
use crate::world::{
    Tensors, World, assert_same_files, assert_same_run, copy_folder, read_json, read_tensors,
    small, steps,
};

/// Those that get an expert for the task.
const WITH_EXPERT: [&str; 17] = [
    "adamole",
    "hmora",
    "hydralora",
    "jiuzhang",
    "ld-mole",
    "lily",
    "loramoe",
    "malora",
    "mixlora",
    "mode",
    "moelora",
    "mola",
    "mole-topk",
    "mosld",
    "mtlora",
    "samora",
    "top-p",
];

/// Those whose tasks weigh experts apart.
const BY_TASK: [&str; 4] = ["mhr", "mod-squad", "mtl-lora", "poly"];

/// Those that have no place for another expert, and a part of the reason.
const REFUSED: [(&str, &str); 10] = [
    (
        "duo-lora",
        "its experts are the sizes into which one LoRA is divided",
    ),
    ("flylora", "balances all experts after every step"),
    ("goat", "its experts began as parts of the frozen weight"),
    (
        "lora",
        "has one expert, and no router that could choose another; `molora train --init`",
    ),
    ("mixlora-cfs", "its experts are the lines of a grid"),
    (
        "mocle",
        "knows the clusters of the texts that it was trained with",
    ),
    ("mor1e", "its experts are the lines of a grid"),
    ("olora", "has one expert"),
    ("omoe", "are made orthogonal to each other"),
    ("pissa", "has one expert"),
];

/// Those whose experts train alone, see `grow.rs`.
const APART: [&str; 6] = ["arrow", "at-moe", "glider", "moa", "phatgoose", "x-lora"];

/// A run on `answer` and `pets`.
fn two(world: &World, recipe: Recipe, out: &str) -> PathBuf {
    let mut request = world.request(recipe, out);
    request.tasks = Some(vec!["answer".into(), "pets".into()]);
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    request.out
}

/// A small recipe that also decays weights.
fn decaying(name: &str) -> Recipe {
    let mut recipe = small(name);
    for stage in &mut recipe.stages {
        stage.optimizer.weight_decay = 0.1;
        stage.optimizer.up_weight_decay = Some(0.2);
    }
    recipe
}

fn request(run: &Path, task: &str) -> AddRequest {
    AddRequest {
        run: run.to_owned(),
        task: task.into(),
        data: None,
        group: None,
        device: None,
    }
}

fn add(run: &Path, task: &str) {
    add_expert(&request(run, task), &AtomicBool::new(false), &mut |_| {}).expect("one more task");
}

fn remove(run: &Path, task: &str) -> Removed {
    remove_expert(run, task, None, &mut |_| {}).expect("one task less")
}

/// Stops the addition after each of these numbers of steps, counted from where it goes on.
fn add_until(run: &Path, task: &str, count: usize) {
    let stop = AtomicBool::new(false);
    let mut done = 0;
    let error = add_expert(&request(run, task), &stop, &mut |event| {
        if let Event::Step(..) = event {
            done += 1;
            stop.store(done == count, Ordering::SeqCst);
        }
    });
    let error = error.expect_err("the addition was stopped");
    let is_stop = matches!(error, TrainError::GrowthInterrupted { .. });
    assert!(is_stop, "{error}");
}

fn adapter(run: &Path) -> Tensors {
    read_tensors(&run.join("adapter_model.safetensors"))
}

/// The place in a grown tensor of a value of the old one, whose axes are longer by entries at the end of each
/// of as many blocks as there are new entries.
fn place(mut old: usize, shape: &[usize], grown: &[usize]) -> usize {
    let (mut place, mut stride) = (0, 1);
    for (&size, &wider) in shape.iter().zip(grown).rev() {
        let (index, added) = (old % size, wider - size);
        old /= size;
        let index = match added {
            0 => index,
            blocks => index / (size / blocks) * (wider / blocks) + index % (size / blocks),
        };
        place += index * stride;
        stride *= wider;
    }
    place
}

/// Every value of a run's adapter and heads is in the grown one.
fn assert_kept(run: &Path, before: &Path, name: &str) {
    let (found, old) = (adapter(run), adapter(before));
    assert!(found.keys().eq(old.keys()), "{name}");
    let mut wider = 0;
    for (path, (shape, values)) in &old {
        let (grown, new) = &found[path];
        wider += usize::from(grown != shape);
        for (index, value) in values.iter().enumerate() {
            let now = new[place(index, shape, grown)];
            assert_eq!(
                now.to_bits(),
                value.to_bits(),
                "{name}: {path}, value {index}"
            );
        }
    }
    assert!(wider > 0, "{name} has something new");
    if before.join("heads.safetensors").exists() {
        let heads = |run: &Path| read_tensors(&run.join("heads.safetensors"));
        let (found, old) = (heads(run), heads(before));
        assert!(old.iter().all(|(path, old)| found[path] == *old), "{name}");
    }
}

/// A finished run that can be read again, verified and used.
fn assert_works(world: &World, run: &Path, name: &str) {
    let (scores, _) = evaluate_run(run, None, None).expect("a finished run");
    let eval = read_json(&run.join("eval.json"));
    assert_eq!(scores.tasks.len(), 3, "{name}");
    for (task, score) in &scores.tasks {
        let expected = &eval["tasks"][task]["value"];
        assert_eq!(*expected, score.value, "{name}: {task}");
    }
    let request = VerifyRequest {
        folder: run.to_owned(),
        model: None,
        device: None,
    };
    let found = verify(&request, &mut |_| {}).expect("a folder with a manifest");
    assert!(found.is_well(), "{name}: {found:?}");
    let output = world.run(&["report", run.to_str().expect("UTF-8")]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {errors}");
}

/// A run that got `weather`, which works and has every old value, and what it was before.
fn with_weather(name: &str) -> (World, PathBuf, PathBuf) {
    let world = World::new();
    let run = two(&world, decaying(name), "run");
    let before = world.path("before");
    copy_folder(&run, &before);
    add(&run, "weather");
    assert_kept(&run, &before, name);
    assert_works(&world, &run, name);
    (world, run, before)
}

#[test]
fn every_recipe_is_on_one_of_the_lists() {
    let mut listed: Vec<&str> = [&WITH_EXPERT[..], &BY_TASK, &APART].concat();
    listed.extend(REFUSED.iter().map(|(name, _)| name));
    listed.sort_unstable();
    assert!(recipe::names().eq(listed));
}

#[test]
fn an_expert_joins_and_the_others_keep_every_bit() {
    for name in WITH_EXPERT {
        let (_world, run, before) = with_weather(name);
        let names: Vec<String> = steps(&run).into_iter().map(|step| step.stage).collect();
        // Half of the run's steps, as there were two tasks, and as many on the data of all.
        assert_eq!(names.len(), 40, "{name}");
        assert!(
            names[20..30].iter().all(|stage| stage == "joint-weather"),
            "{name}"
        );
        assert!(
            names[30..].iter().all(|stage| stage == "joint-weather-all"),
            "{name}"
        );
        let restored = matches!(remove(&run, "weather"), Removed::Restored);
        assert!(restored, "{name}");
        assert_same_files(&run, &before);
    }
}

#[test]
fn a_task_that_weighs_experts_apart_leaves_the_others_as_they_are() {
    for name in BY_TASK {
        let (_world, run, before) = with_weather(name);
        for file in ["eval.json", "predictions.json"] {
            let tasks = |run: &Path| read_json(&run.join(file))["tasks"].clone();
            let (found, old) = (tasks(&run), tasks(&before));
            for task in ["answer", "pets"] {
                assert_eq!(found[task], old[task], "{name}: {file}");
            }
        }
        assert_eq!(steps(&run).len(), 30, "{name}");
        let restored = matches!(remove(&run, "weather"), Removed::Restored);
        assert!(restored, "{name}");
        assert_same_files(&run, &before);
    }
}

#[test]
fn a_method_without_a_place_for_an_expert_says_why() {
    for (name, reason) in REFUSED {
        let world = World::new();
        let run = two(&world, small(name), "run");
        copy_folder(&run, &world.path("before"));
        let arguments = ["add-expert", "run", "--task", "weather"];
        let whose = format!("recipe {name} cannot get another expert: ");
        assert_refused(&world, &arguments, name, &[&whose, reason]);
        assert_same_files(&run, &world.path("before"));
    }
}

#[test]
fn an_addition_to_a_mixture_goes_on_where_it_was_stopped() {
    for name in ["mixlora", "mtl-lora", "samora"] {
        let world = World::new();
        let run = two(&world, small(name), "run");
        copy_folder(&run, &world.path("whole"));
        copy_folder(&run, &world.path("before"));
        add(&world.path("whole"), "weather");
        // In the middle, and where mtl-lora has one step left and the others have begun with all tasks.
        for count in [3, 6] {
            add_until(&run, "weather", count);
            copy_folder(&run, &world.path("stopped"));
            let stopped = world.path("stopped");
            std::fs::remove_dir_all(stopped.join(".growing-weather")).expect("it was begun");
            assert_same_files(&stopped, &world.path("before"));
            std::fs::remove_dir_all(&stopped).expect("a folder");
        }
        add(&run, "weather");
        assert_same_run(&run, &world.path("whole"));
    }
}

#[test]
fn what_was_added_goes_in_turn_and_nothing_else_does() {
    let world = World::new();
    let mut request = world.request(small("mola"), "run");
    request.tasks = Some(vec!["answer".into()]);
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let run = request.out;
    let refused = |task: &str, expected: &[&str]| {
        let arguments = ["remove-expert", "run", "--task", task];
        assert_refused(&world, &arguments, task, expected);
    };
    refused("answer", &["answer is its only expert"]);
    copy_folder(&run, &world.path("one"));
    add(&run, "pets");
    copy_folder(&run, &world.path("both"));
    add(&run, "weather");
    assert_kept(&run, &world.path("both"), "mola");
    let last = ["recipe mola trains no expert alone", "which is weather"];
    refused("answer", &last);
    refused("pets", &last);
    refused("sums", &["has no expert of sums"]);
    remove(&run, "weather");
    assert_same_files(&run, &world.path("both"));
    refused("answer", &["which is pets"]);
    remove(&run, "pets");
    assert_same_files(&run, &world.path("one"));
    let run = two(&world, small("mola"), "two");
    let error = remove_expert(&run, "pets", None, &mut |_| {}).expect_err("it was not added");
    assert!(error.to_string().contains("and none was"), "{error}");
}

/// A recipe whose own stage of growth moves nothing: what is evaluated is how the new expert begins.
fn motionless(mut recipe: Recipe) -> Recipe {
    let mut stage = StageConfig {
        name: "begin".into(),
        steps: 1,
        ..recipe.stages[0].clone()
    };
    stage.optimizer.learning_rate = 1e-30;
    stage.optimizer.learning_rates.clear();
    recipe.growth = vec![stage];
    recipe
}

/// The losses of `answer` and `pets`.
fn losses(run: &Path) -> [f64; 2] {
    let eval = read_json(&run.join("eval.json"));
    ["answer", "pets"].map(|task| eval["tasks"][task]["loss"].as_f64().expect("a loss"))
}

#[test]
fn a_fresh_expert_adds_nothing_and_takes_what_the_router_gives() {
    let world = World::new();
    // Without a router every expert has weight 1: the others' tasks are what they were.
    let mut recipe = motionless(small("hydralora"));
    recipe.adapter.router = None;
    let run = two(&world, recipe, "sum");
    let old = losses(&run);
    add(&run, "weather");
    for (new, old) in losses(&run).into_iter().zip(old) {
        assert!((new - old).abs() < 1e-5, "{new}, {old} before");
    }
    // A softmax shares the weights: the others' deltas shrink a little.
    let run = two(&world, motionless(small("hydralora")), "shared");
    let old = losses(&run);
    add(&run, "weather");
    assert_eq!(steps(&run).len(), 21, "the recipe's own stage of growth");
    for (new, old) in losses(&run).into_iter().zip(old) {
        assert!(new != old && (new - old).abs() < 0.2, "{new}, {old} before");
    }
}

#[test]
fn a_new_task_is_learned_beside_the_others() {
    for name in ["mole-topk", "mtl-lora", "samora"] {
        let world = World::new();
        let mut recipe = small(name);
        recipe.set_total_steps(160);
        let run = two(&world, recipe, "run");
        let value = |task: &str| {
            let eval = read_json(&run.join("eval.json"));
            eval["tasks"][task]["value"].as_f64().expect("a score")
        };
        let old = ["answer", "pets"].map(value);
        add(&run, "weather");
        assert!(value("weather") > 0.6, "{name}: {}", value("weather"));
        for (task, old) in ["answer", "pets"].into_iter().zip(old) {
            let new = value(task);
            assert!(new >= old - 0.1, "{name}: {task} fell from {old} to {new}");
        }
    }
}

#[test]
fn a_guard_restarts_no_expert_that_was_there() {
    let world = World::new();
    let mut recipe = small("mole-topk");
    recipe.guard.every = 2;
    // Nearly every expert counts as dead.
    recipe.guard.rules = vec![GuardRule {
        watch: Watched::LoadShare,
        below: Some(0.9),
        above: None,
        action: GuardAction::RestartDead,
    }];
    let run = two(&world, recipe, "run");
    copy_folder(&run, &world.path("before"));
    add(&run, "weather");
    assert_kept(&run, &world.path("before"), "mole-topk");
}

#[test]
fn a_mixture_on_a_decoder_grows_and_writes() {
    let world = writer::world();
    for name in ["mole-topk", "mtl-lora"] {
        let request = writer::request(&world, writer::recipe(name, 24), &["pets", "sky"], name);
        train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
        let (run, before) = (request.out, world.path(&format!("{name}-before")));
        copy_folder(&run, &before);
        add(&run, "sums");
        assert_kept(&run, &before, name);
        assert_works(&world, &run, name);
        let arguments = ["generate", name, "--task", "sums", "--prompt", "1 plus 2"];
        let output = world.run(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        remove(&run, "sums");
        assert_same_files(&run, &before);
    }
}

#[test]
fn a_stage_that_would_train_nothing_new_is_named() {
    let world = World::new();
    let mut recipe = motionless(small("poly"));
    recipe.growth[0].trainable = vec![ParameterKind::Adapters];
    let run = two(&world, recipe, "run");
    copy_folder(&run, &world.path("before"));
    let stop = AtomicBool::new(false);
    let error = add_expert(&request(&run, "weather"), &stop, &mut |_| {});
    let error = error.expect_err("no new adapter").to_string();
    let expected = "stage begin would train nothing that is new";
    assert!(error.contains(expected), "{error}");
    assert_same_files(&run, &world.path("before"));
}
