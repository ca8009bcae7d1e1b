//! Runs that get one more expert, and give it back.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use molora_train::grow::{AddRequest, Removed, add_expert, remove_expert};
use molora_train::run::{Event, evaluate_run, read_config, train};
use molora_train::{Recipe, TrainError};

use crate::world::{
    Tensors, World, assert_same_files, copy_folder, entries, read_json, read_tensors, small, steps,
};

/// The recipes whose experts are trained one by one.
const RECIPES: [&str; 4] = ["at-moe", "glider", "moa", "phatgoose"];

/// A run on `answer` and `pets`.
fn two(world: &World, recipe: Recipe, out: &str) -> PathBuf {
    let mut request = world.request(recipe, out);
    request.tasks = Some(vec!["answer".into(), "pets".into()]);
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    request.out
}

/// A request for an expert of `weather`, in the group of all where there are groups.
fn weather(run: &Path) -> AddRequest {
    let groups = &read_config(run).expect("a run").recipe.adapter.groups;
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
        assert_eq!(
            serde_json::to_value(&scores).expect("plain"),
            eval,
            "{name}"
        );
        let config = read_config(&run).expect("a run");
        let names: Vec<&str> = config.tasks.iter().map(|task| &task.name[..]).collect();
        assert_eq!(names, ["answer", "pets", "weather"]);
    }
}
