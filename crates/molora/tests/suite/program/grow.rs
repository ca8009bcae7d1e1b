//! Runs that get one more expert, and give it back.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use molora_routing::scorer::ArrowConfig;
use molora_train::TrainError;
use molora_train::grow::{AddRequest, Removed, add_expert, remove_expert};
use molora_train::recipe::{QuerySource, Recipe, Scope, StageConfig, Transform};
use molora_train::run::{evaluate_run, train};
use molora_train::store::read_config;
use molora_train::train::Event;
use serde_json::Value;

use super::refusal::assert_refused;
use crate::world::{
    Tensors, World, assert_same_files, assert_same_run, copy_folder, read_json, read_tensors,
    small, train_until, without_losses,
};

/// The recipes whose experts are trained one by one.
const RECIPES: [&str; 6] = ["arrow", "at-moe", "glider", "moa", "phatgoose", "x-lora"];

/// A run on `answer` and `pets`.
fn two(world: &World, recipe: Recipe, out: &str) -> PathBuf {
    let mut request = world.request(recipe, out);
    request.tasks = Some(vec!["answer".into(), "pets".into()]);
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    request.out
}

/// A request for an expert of `weather`, in the group of all where there are groups.
fn weather(run: &Path) -> AddRequest {
    let config = read_config(run).expect("a run");
    let groups = config.recipe.adapter.task_groups().unwrap_or_default();
    AddRequest {
        run: run.to_owned(),
        task: "weather".into(),
        data: None,
        group: groups.keys().next().cloned(),
        device: None,
    }
}

fn add(request: &AddRequest) {
    add_expert(request, &AtomicBool::new(false), &mut |_| {}).expect("one more expert");
}

/// Stops the addition after each of these numbers of steps, counted from where it goes on.
fn add_until(request: &AddRequest, count: usize) {
    let stop = AtomicBool::new(false);
    let mut done = 0;
    let error = add_expert(request, &stop, &mut |event| {
        if let Event::Step(..) = event {
            done += 1;
            stop.store(done == count, Ordering::SeqCst);
        }
    });
    let error = error.expect_err("the addition was stopped");
    assert!(
        matches!(error, TrainError::GrowthInterrupted { .. }),
        "{error}"
    );
}

fn remove(run: &Path, task: &str) -> Removed {
    remove_expert(run, task, None, &mut |_| {}).expect("one expert less")
}

fn tensors(run: &Path) -> Tensors {
    read_tensors(&run.join("adapter_model.safetensors"))
}

/// A tensor's first axis at some indices.
fn part(tensor: &(Vec<usize>, Vec<f32>), indices: impl IntoIterator<Item = usize>) -> Vec<f32> {
    let size = tensor.1.len() / tensor.0[0];
    let row = |index: usize| tensor.1[index * size..(index + 1) * size].to_vec();
    indices.into_iter().flat_map(row).collect()
}

#[test]
fn old_experts_keep_every_bit() {
    for name in RECIPES {
        let world = World::new();
        let run = two(&world, small(name), "run");
        copy_folder(&run, &world.path("before"));
        let before = world.path("before");
        add(&weather(&run));
        for task in ["answer", "pets"] {
            let folder = Path::new("experts").join(task);
            assert_same_files(&run.join(&folder), &before.join(&folder));
        }
        assert_same_files(&run.join("general"), &before.join("general"));
        let (found, old) = (tensors(&run), tensors(&before));
        assert!(found.keys().eq(old.keys()), "{name}");
        for (path, old) in &old {
            let new = &found[path];
            if path.contains(".experts.") {
                assert_eq!(part(new, [0, 1]), part(old, [0, 1]), "{name}: {path}");
                // A general expert stays the last.
                let general = (2..old.0[0]).map(|index| (index + 1, index));
                for (now, then) in general {
                    assert_eq!(part(new, [now]), part(old, [then]), "{name}: {path}");
                }
            } else if path.ends_with(".prototypes") {
                assert_eq!(part(new, [0, 1]), part(old, [0, 1]), "{name}: {path}");
            }
        }
        let heads = |run: &Path| read_tensors(&run.join("heads.safetensors"));
        let (found, old) = (heads(&run), heads(&before));
        assert_eq!(found.len(), old.len() + 2);
        // AT-MoE's growth trains the heads too.
        let same = old.iter().all(|(path, old)| found[path] == *old);
        assert_eq!(same, name != "at-moe", "{name}");
        let eval = read_json(&run.join("eval.json"));
        assert_eq!(eval["tasks"].as_object().expect("tasks").len(), 3, "{name}");
        let (scores, _) = evaluate_run(&run, None, None).expect("a finished run");
        let scores = serde_json::to_value(&scores).expect("plain");
        assert_eq!(without_losses(scores), without_losses(eval), "{name}");
        let config = read_config(&run).expect("a run");
        let names: Vec<&str> = config.tasks.iter().map(|task| &task.name[..]).collect();
        assert_eq!(names, ["answer", "pets", "weather"]);
    }
}

#[test]
fn a_prototype_mixture_grows_to_what_training_together_gives() {
    let world = World::new();
    let with_steps = |steps: usize| {
        let mut recipe = small("phatgoose");
        let stages = recipe.stages.iter_mut();
        for stage in stages.filter(|stage| stage.transform.is_none()) {
            stage.steps = steps;
        }
        recipe
    };
    let together = world.train(&with_steps(12), "together");
    let run = two(&world, with_steps(8), "run");
    add(&weather(&run));
    assert_same_files(&run.join("experts"), &together.join("experts"));
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "heads.safetensors",
        "eval.json",
        "routing.json",
    ] {
        let bytes = |run: &Path| std::fs::read(run.join(file)).expect("a file");
        assert!(bytes(&run) == bytes(&together), "{file}");
    }
    let summary = |run: &Path| read_json(&run.join("summary.json"));
    for key in ["steps", "tasks", "parameters"] {
        assert_eq!(summary(&run)[key], summary(&together)[key], "{key}");
    }
}

#[test]
fn adding_and_removing_leaves_every_byte() {
    for name in RECIPES {
        let world = World::new();
        let run = two(&world, small(name), "run");
        copy_folder(&run, &world.path("before"));
        add(&weather(&run));
        assert!(
            matches!(remove(&run, "weather"), Removed::Restored),
            "{name}"
        );
        assert_same_files(&run, &world.path("before"));
    }
}

#[test]
fn an_addition_goes_on_where_it_was_stopped() {
    for name in ["glider", "moa"] {
        let world = World::new();
        let run = two(&world, small(name), "run");
        copy_folder(&run, &world.path("whole"));
        copy_folder(&run, &world.path("before"));
        add(&weather(&world.path("whole")));
        // Moa: 4 steps of the expert, 8 of the routers; glider: 4 and 4 of the gate.
        for count in [2, 3, 1] {
            add_until(&weather(&run), count);
            copy_folder(&run, &world.path("stopped"));
            let stopped = world.path("stopped");
            std::fs::remove_dir_all(stopped.join(".growing-weather")).expect("it was begun");
            assert_same_files(&stopped, &world.path("before"));
            std::fs::remove_dir_all(&stopped).expect("a folder");
        }
        add(&weather(&run));
        assert_same_run(&run, &world.path("whole"));
    }
}

#[test]
fn any_expert_can_go_and_the_others_keep_every_bit() {
    for name in ["at-moe", "glider", "moa"] {
        let world = World::new();
        let run = world.train(&small(name), "run");
        let old = tensors(&run);
        assert!(
            matches!(remove(&run, "pets"), Removed::Rebuilt(_)),
            "{name}"
        );
        assert!(!run.join("experts/pets").exists());
        let new = tensors(&run);
        for (path, new) in new.iter().filter(|(path, _)| path.contains(".experts.")) {
            let stay = (0..old[path].0[0]).filter(|&index| index != 1);
            assert_eq!(new.1, part(&old[path], stay), "{name}: {path}");
        }
        let (scores, _) = evaluate_run(&run, None, None).expect("a finished run");
        let eval = read_json(&run.join("eval.json"));
        assert_eq!(
            serde_json::to_value(&scores).expect("plain"),
            eval,
            "{name}"
        );
        assert!(eval["tasks"]["pets"].is_null());
        // What is gone can come back, with as many steps as each of the others had.
        let request = AddRequest {
            task: "pets".into(),
            ..weather(&run)
        };
        add(&request);
        let names = |run: &Path| read_json(&run.join("summary.json"))["tasks"].clone();
        assert_eq!(
            names(&run),
            serde_json::json!(["answer", "weather", "pets"])
        );
    }
}

/// Moves a task into a folder of its own.
fn apart(world: &World, task: &str) {
    let to = world.path("more").join(task);
    copy_folder(&world.data(task), &to);
    std::fs::remove_dir_all(world.data(task)).expect("a folder");
}

#[test]
fn the_new_task_may_lie_elsewhere() {
    let world = World::new();
    let run = two(&world, small("phatgoose"), "run");
    apart(&world, "weather");
    let request = AddRequest {
        data: Some(world.path("more").to_str().expect("UTF-8").into()),
        ..weather(&run)
    };
    add(&request);
    evaluate_run(&run, None, None).expect("both folders are known");
    remove(&run, "answer");
    let error = remove_expert(&run, "pets", None, &mut |_| {}).expect_err("two for each token");
    assert!(error.to_string().contains("top_k"), "{error}");
    evaluate_run(&run, None, None).expect("the run is as it was");
}

/// Command, run, task and more arguments, and what the error has to contain.
const REFUSED: [(&str, &[&str], &[&str]); 9] = [
    (
        "add-expert",
        &["nowhere", "weather"],
        &["nowhere", "not a run folder"],
    ),
    (
        "add-expert",
        &["unfinished", "weather"],
        &["not finished", "--resume"],
    ),
    (
        "add-expert",
        &["samora", "weather", "--group", "sky"],
        &["recipe samora has no groups"],
    ),
    (
        "add-expert",
        &["moa", "pets"],
        &["has an expert of pets already"],
    ),
    ("add-expert", &["moa", "wether"], &["wether", "weather"]),
    (
        "add-expert",
        &["at-moe", "weather"],
        &["no group", "--group", "all"],
    ),
    (
        "add-expert",
        &["moa", "weather", "--group", "sky"],
        &["recipe moa has no groups"],
    ),
    (
        "remove-expert",
        &["moa", "weather"],
        &["has no expert of weather; there are: answer, pets"],
    ),
    (
        "remove-expert",
        &["samora", "pets"],
        &["trains no expert alone", "and none was"],
    ),
];

#[test]
fn what_cannot_be_added_or_removed_is_named() {
    let world = World::new();
    two(&world, small("moa"), "moa");
    two(&world, small("at-moe"), "at-moe");
    two(&world, small("samora"), "samora");
    let mut request = world.request(small("moa"), "unfinished");
    request.tasks = Some(vec!["answer".into(), "pets".into()]);
    train_until(&request, 2);
    for (command, arguments, expected) in REFUSED {
        let (run, task, more) = (arguments[0], arguments[1], &arguments[2..]);
        let all = [&[command, run, "--task", task], more].concat();
        assert_refused(&world, &all, command, expected);
    }
    World::edit(&world.data("weather/task.json"), |task| {
        task["labels"] = serde_json::Value::Null;
    });
    let all = ["add-expert", "moa", "--task", "weather"];
    assert_refused(&world, &all, "labels", &["weather", "labels"]);
    remove(&world.path("moa"), "pets");
    let all = ["remove-expert", "moa", "--task", "answer"];
    assert_refused(&world, &all, "the last", &["answer is its only expert"]);
}

#[test]
fn an_expert_of_another_base_model_is_refused() {
    let world = World::new();
    let run = two(&world, small("moa"), "run");
    // In the middle of the routers' stage; the expert is read again when it goes on.
    add_until(&weather(&run), 6);
    let config = run.join(".growing-weather/experts/weather/adapter_config.json");
    World::edit(&config, |config| {
        config["base_model_name_or_path"] = "another".into();
    });
    let error = add_expert(&weather(&run), &AtomicBool::new(false), &mut |_| {});
    let error = error.expect_err("a foreign expert").to_string();
    assert!(
        error.contains("experts/weather") && error.contains("another"),
        "{error}"
    );
    let other = AddRequest {
        data: Some(world.path("model").to_str().expect("UTF-8").into()),
        ..weather(&run)
    };
    add_expert(&other, &AtomicBool::new(false), &mut |_| {}).expect_err("no tasks there");
    evaluate_run(&run, None, None).expect("the run is as it was");
}

#[test]
fn queries_of_requests_meet_the_new_instruction() {
    let world = World::new();
    let mut recipe = small("glider");
    let instructions = recipe.instructions_mut().expect("glider compares texts");
    instructions.query = QuerySource::Request;
    let run = two(&world, recipe, "run");
    let meta = world.data("weather/task.json");
    World::edit(&meta, |task| task["instruction"] = " ".into());
    let error = add_expert(&weather(&run), &AtomicBool::new(false), &mut |_| {});
    let error = error.expect_err("nothing to compare by").to_string();
    assert!(error.contains("task weather has"), "{error}");
    assert!(!run.join(".growing-weather").exists());
    World::edit(&meta, |task| task["instruction"] = "Which?".into());
    add(&weather(&run));
    remove(&run, "answer");
    let found = read_json(&run.join("instructions.json"));
    let names: Vec<&Value> = (0..2).map(|i| &found["experts"][i]["name"]).collect();
    assert_eq!(names, ["pets", "weather"]);
    assert!(found["experts"][2].is_null());
}

/// Experts of each task with Arrow's routers: nothing trains the directions.
fn arrow() -> Recipe {
    let mut recipe = small("phatgoose");
    let router = recipe.adapter.router.as_mut().expect("a router");
    router.scorer = ArrowConfig.into();
    recipe
        .stages
        .retain(|stage| stage.scope == Scope::EachTask || stage.transform.is_some());
    let directions = StageConfig::transform("directions", Transform::CollectDirections);
    *recipe.stages.last_mut().expect("prototypes") = directions;
    recipe
}

#[test]
fn a_new_expert_brings_its_direction() {
    let world = World::new();
    let run = two(&world, arrow(), "run");
    let tensors = |run: &Path| read_tensors(&run.join("adapter_model.safetensors"));
    let old = tensors(&run);
    add(&weather(&run));
    let mut compared = 0;
    for (name, (shape, values)) in tensors(&run) {
        if !name.ends_with(".router.prototypes") {
            continue;
        }
        let (old_shape, old_values) = &old[&name];
        assert_eq!((shape[0], shape[1]), (3, old_shape[1]), "{name}");
        let (kept, new) = values.split_at(old_values.len());
        assert_eq!(kept, old_values, "{name}: rows of the old experts");
        let norm: f32 = new.iter().map(|value| value * value).sum();
        assert!(
            (norm - 1.0).abs() < 1e-4,
            "{name}: a direction of length {norm}"
        );
        compared += 1;
    }
    assert!(compared > 0, "sites have routers");
    evaluate_run(&run, None, None).expect("a run of three experts");
}
