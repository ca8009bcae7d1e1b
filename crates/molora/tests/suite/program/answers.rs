//! How answers are searched, read and scored: beams, words for labels, several test splits, lengths.

use std::sync::atomic::AtomicBool;

use molora_train::data::Normalize;
use molora_train::report::EvalReport;
use molora_train::run::{evaluate_run, train};
use serde_json::json;

use super::writer::{self, request};
use crate::world::{World, read_json};

/// The scores of a run without losses, which differ in their last digits between a model that trains and one
/// that was read.
fn values(eval: &EvalReport) -> Vec<(f64, Option<f64>)> {
    let scores = eval.tasks.values();
    scores.map(|score| (score.value, score.accuracy)).collect()
}

#[test]
fn beams_find_what_was_learned() {
    let world = writer::world();
    World::edit(&world.path("texts/sums/task.json"), |meta| {
        meta["answer"] = json!({"regex": {"pattern": "[0-9]+", "take": "last"}});
    });
    let mut recipe = writer::recipe("lora", 120);
    recipe.data.writing.num_beams = 3;
    recipe.data.writing.length_penalty = 0.5;
    let request = request(&world, recipe, &["sums"], "run");
    let finished = train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let sums = &finished.eval.tasks["sums"];
    assert_eq!(sums.metric, "exact_match by regex");
    assert!(sums.value > 0.6, "{}", sums.value);
    let (again, _) = evaluate_run(&world.path("run"), None, None).expect("a finished run");
    assert_eq!(values(&again), values(&finished.eval));
    let mut refused = writer::recipe("lora", 1);
    refused.data.writing.num_beams = 0;
    let error = refused.check().expect_err("no beam").to_string();
    assert!(
        error.contains("data.writing.num_beams is 0, expected 1 to 64"),
        "{error}"
    );
}

/// A label is learned, scored and predicted by its word, and named by its name; test splits stand apart.
#[test]
fn words_for_labels_and_several_test_splits() {
    let world = writer::world();
    let folder = world.path("texts/pets");
    World::edit(&folder.join("task.json"), |meta| {
        meta["label_words"] = json!(["warm", "wet"]);
        meta["tests"] = json!(["near", "far"]);
    });
    let test = std::fs::read_to_string(folder.join("test.jsonl")).expect("readable");
    let (near, far): (Vec<_>, Vec<_>) = test.lines().enumerate().partition(|(n, _)| n % 3 > 0);
    for (name, lines) in [("near", near), ("far", far)] {
        let lines: String = lines
            .into_iter()
            .map(|(_, line)| format!("{line}\n"))
            .collect();
        std::fs::write(folder.join(format!("test_{name}.jsonl")), lines).expect("writable");
    }
    std::fs::remove_file(folder.join("test.jsonl")).expect("it was there");
    let mut recipe = writer::recipe("lora", 80);
    recipe.data.writing.normalize = Normalize::Tokens;
    let request = request(&world, recipe, &["pets"], "run");
    let finished = train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let pets = &finished.eval.tasks["pets"];
    assert!(pets.value > 0.9, "{}", pets.value);
    assert_eq!(pets.also["accuracy_per_token"], pets.value);
    let (near, far) = (&pets.tests["near"], &pets.tests["far"]);
    assert_eq!((near.n, far.n, pets.n), (16, 8, 24));
    let all = (near.value * 16.0 + far.value * 8.0) / 24.0;
    assert!((all - pets.value).abs() < 1e-12);
    let (again, _) = evaluate_run(&world.path("run"), None, None).expect("a finished run");
    assert_eq!(again.tasks["pets"].tests, pets.tests);
    let shown = world.run(&["eval", "run"]).stdout;
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(
        shown.contains("|   near ") && shown.contains("|   far "),
        "{shown}"
    );
    let run = std::fs::read_to_string(world.path("run/run.toml")).expect("readable");
    assert!(run.contains("label_words = [\"warm\", \"wet\"]"), "{run}");
    std::fs::write(world.path("new.jsonl"), "{\"input\": \"w0 bark w1\"}\n").expect("writable");
    let asked = [
        "predict",
        "run",
        "--input",
        "new.jsonl",
        "--output",
        "answers.jsonl",
    ];
    let found = world.run(&asked);
    assert!(
        found.status.success(),
        "{}",
        String::from_utf8_lossy(&found.stderr)
    );
    assert_eq!(read_json(&world.path("answers.jsonl"))["label"], "dog");
}
