//! What stands beside a run's scores: the base model's, example answers, and what the experts do.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use molora_train::report::{
    BaseReport, BaseWay, ExampleKind, ExampleReport, ExpertReport, Predictions,
};
use molora_train::run;
use molora_train::train::Event;

use super::writer;
use crate::world::{World, assert_same_run, entries, own_files, read_json, resume_to_end, small};

/// Said when the base model is scored, and not when its scores are known.
const SCORING: &str = "scoring the base model on";

fn base(run: &Path) -> BaseReport {
    serde_json::from_value(read_json(&run.join("base.json"))).expect("a report")
}

fn examples(run: &Path) -> ExampleReport {
    serde_json::from_value(read_json(&run.join("examples.json"))).expect("a report")
}

/// Trains three steps with a cache of the world's own; what was said.
fn train(world: &World, recipe: &str, out: &str, more: &[&str]) -> String {
    let mut arguments = vec![
        "train", recipe, "--model", "model", "--data", "data", "--steps", "3", "--out", out,
    ];
    let short = [
        "data.max_length=24",
        "data.sampling.batch_size=8",
        "adapter.bank.rank=4",
    ];
    arguments.extend(short.iter().flat_map(|set| ["--set", set]));
    arguments.extend(more);
    let mut program = world.program(&arguments);
    program.env("XDG_CACHE_HOME", world.path("cache"));
    let output = program.output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    errors
}

#[test]
fn the_base_model_is_scored_once_for_model_data_and_settings() {
    let world = World::new();
    let said = train(&world, "lora", "first", &[]);
    assert_eq!(said.matches(SCORING).count(), 3, "{said}");
    let first = base(&world.path("first"));
    assert!(first.ways.values().all(|way| *way == BaseWay::Head));
    assert!(first.scores.tasks.values().all(|score| score.n == 24));
    // One word decides, so that a head on a frozen model of random weights tells most.
    assert!(first.scores.mean > 0.5, "{}", first.scores.mean);

    let said = train(&world, "samora", "second", &["--seed", "1"]);
    assert!(!said.contains(SCORING), "{said}");
    assert_eq!(base(&world.path("second")), first);

    // Another length is another question, and so are other records of one task.
    let said = train(&world, "lora", "third", &["--set", "data.max_length=6"]);
    assert_eq!(said.matches(SCORING).count(), 3, "{said}");
    let path = world.data("pets/train.jsonl");
    let text = std::fs::read_to_string(&path).expect("readable");
    let kept: Vec<&str> = text.lines().take(40).collect();
    std::fs::write(&path, kept.join("\n") + "\n").expect("writable");
    let said = train(&world, "lora", "fourth", &[]);
    assert_eq!(said.matches(SCORING).count(), 1, "{said}");
    assert!(said.contains("scoring the base model on pets"), "{said}");
}

#[test]
fn a_broken_cache_is_as_good_as_none() {
    let world = World::new();
    train(&world, "lora", "first", &[]);
    let cache = world.path("cache/molora/base");
    let files = entries(&cache);
    assert_eq!(files.len(), 3);
    std::fs::write(cache.join(&files[0]), "{").expect("writable");
    std::fs::write(cache.join(&files[1]), "{\"way\":\"head\"}").expect("writable");
    let said = train(&world, "lora", "second", &[]);
    assert_eq!(said.matches(SCORING).count(), 2, "{said}");
    assert_eq!(base(&world.path("second")), base(&world.path("first")));
}

#[test]
fn what_is_not_asked_for_is_not_there() {
    let world = World::new();
    let said = train(&world, "samora", "run", &["--set", "report.base=false"]);
    assert!(!said.contains(SCORING), "{said}");
    assert!(!world.path("run/base.json").exists());
    let without = examples(&world.path("run"));
    let all = || without.tasks.values().flatten();
    assert!(all().all(|example| example.base.is_none()));
    let changed = [ExampleKind::Gained, ExampleKind::Lost];
    assert!(all().all(|example| !changed.contains(&example.kind)));
}

/// Scores of other records, or of another model, do not stand beside a run's.
#[test]
fn scores_of_other_inputs_are_not_shown() {
    let world = World::new();
    train(&world, "lora", "run", &[]);
    let table = |arguments: &[&str]| {
        let output = world.run(&[&["eval", "run"], arguments].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(table(&[]).contains("base %"));
    for other in [
        &["--limit", "3"][..],
        &["--split", "validation"],
        &["--data", "data"],
    ] {
        assert!(!table(other).contains("base %"), "{other:?}");
    }
    let path = world.data("pets/test.jsonl");
    let text = std::fs::read_to_string(&path).expect("readable");
    std::fs::write(&path, text.replace("purr", "bark")).expect("writable");
    assert!(!table(&["--anyway"]).contains("base %"));
}

#[test]
fn files_that_change_while_a_run_begins_are_refused() {
    let world = World::new();
    let request = world.request(small("lora"), "run");
    let path = world.data("pets/test.jsonl");
    let text = std::fs::read_to_string(&path).expect("readable");
    let mut change = |event: Event<'_>| {
        // The tasks are read by now, and their digests are not.
        if matches!(event, Event::Phase("loading model and tasks")) {
            std::fs::write(&path, text.replace("purr", "bark")).expect("writable");
        }
    };
    let error = run::train(&request, &AtomicBool::new(false), &mut change);
    let error = error.expect_err("refused").to_string();
    let expected = "run: test.jsonl of task pets changed while the run began: train it again";
    assert!(error.ends_with(expected), "{error}");
    assert!(!request.out.exists());
}

/// A stop while the base model is scored loses nothing.
#[test]
fn a_run_that_stops_while_the_base_model_is_scored_goes_on() {
    let world = World::new();
    let mut recipe = small("samora");
    // Of no other test, so that nothing is kept yet.
    recipe.data.eval_batch_size = 61;
    let whole = world.train(&recipe, "whole");
    // Other words, other scores.
    let path = world.data("pets/train.jsonl");
    let text = std::fs::read_to_string(&path).expect("readable");
    let seed = std::process::id().to_string();
    std::fs::write(&path, text.replace("pets-train", &format!("p{seed}"))).expect("writable");
    let request = world.request(recipe, "run");
    let stop = AtomicBool::new(false);
    let mut at_scoring = |event: Event<'_>| {
        if matches!(event, Event::Phase(phase) if phase.starts_with(SCORING)) {
            stop.store(true, Ordering::SeqCst);
        }
    };
    let error = run::train(&request, &stop, &mut at_scoring).expect_err("stopped");
    let error = error.to_string();
    assert!(
        error.starts_with("stopped after step 20; continue with"),
        "{error}"
    );
    assert!(!request.out.join("summary.json").exists());
    resume_to_end(&request.out);
    assert_same_run(&request.out, &whole);
    assert_eq!(base(&request.out), base(&whole));
}

/// For private data: no text of a record in any file of the run.
#[test]
fn without_examples_a_run_has_no_text_of_its_records() {
    let world = World::new();
    let mark = "w9 w9 w9";
    for split in ["train", "validation", "test"] {
        let path = world.data(&format!("pets/{split}.jsonl"));
        let text = std::fs::read_to_string(&path).expect("readable");
        let text = text.replace("\"input\":\"", &format!("\"input\":\"{mark} "));
        std::fs::write(&path, text).expect("writable");
    }
    let holds = |run: &str| {
        let run = world.path(run);
        let text = |file: &String| std::fs::read(run.join(file)).expect("readable");
        let has = |file: &&String| {
            let text = text(file);
            text.windows(mark.len()).any(|part| part == mark.as_bytes())
        };
        let end = "stages/.end";
        let state = entries(&run.join(end)).into_iter();
        let mut files = own_files(&run);
        files.extend(state.map(|file| format!("{end}/{file}")));
        files.iter().filter(has).cloned().collect::<Vec<_>>()
    };
    train(&world, "samora", "open", &[]);
    assert!(holds("open").contains(&"examples.json".to_owned()));
    let closed = ["--set", "report.examples=0"];
    train(&world, "samora", "closed", &closed);
    assert_eq!(holds("closed"), Vec::<String>::new());
    assert!(!world.path("closed/examples.json").exists());
    let experts: ExpertReport =
        serde_json::from_value(read_json(&world.path("closed/experts.json"))).expect("a report");
    assert!(experts.sentences.is_empty() && !experts.similarity.is_empty());
}

#[test]
fn examples_are_what_was_answered() {
    let world = World::new();
    let run = world.train(&small("hydralora"), "run");
    let (found, base) = (examples(&run), base(&run));
    let predictions = read_json(&run.join("predictions.json"));
    let labels = ["cat", "dog"];
    assert!(!found.tasks["pets"].is_empty());
    for example in &found.tasks["pets"] {
        let row = example.record - 1;
        let class = predictions["tasks"]["pets"][row].as_u64().expect("a class");
        assert_eq!(example.answer, labels[class as usize]);
        assert_eq!(example.expected, labels[row % 2]);
        let Predictions::Classes(of_base) = &base.predictions.tasks["pets"] else {
            panic!("classes");
        };
        assert_eq!(example.base.as_deref(), Some(labels[of_base[row]]));
        let is_right = example.answer == example.expected;
        let was_right = example.base.as_deref() == Some(&example.expected[..]);
        let expected = match (is_right, was_right) {
            (true, false) => ExampleKind::Gained,
            (false, true) => ExampleKind::Lost,
            (false, false) => ExampleKind::Wrong,
            (true, true) => ExampleKind::Right,
        };
        assert_eq!(example.kind, expected);
    }
}

#[test]
fn experts_are_compared_and_tokens_weighed() {
    let world = World::new();
    let run = world.train(&small("hydralora"), "run");
    let found: ExpertReport =
        serde_json::from_value(read_json(&run.join("experts.json"))).expect("a report");
    assert_eq!(
        found.similarity.len(),
        16,
        "four sites in each of four layers"
    );
    for site in &found.similarity {
        assert_eq!(site.cosine.len(), 3);
        for (expert, row) in site.cosine.iter().enumerate() {
            assert!((row[expert] - 1.0).abs() < 1e-3, "{row:?}");
        }
    }
    assert_eq!(found.sentences.len(), 3);
    for sentence in &found.sentences {
        assert!(sentence.tokens.len() > 2 && sentence.sites.len() == 16);
        for site in &sentence.sites {
            assert_eq!(site.weights.len(), sentence.tokens.len());
            let whole = |row: &Vec<f64>| (row.iter().sum::<f64>() - 1.0).abs() < 1e-3;
            assert!(site.weights.iter().all(whole));
        }
    }
}

/// A model that writes is asked as it is, as `molora eval MODEL` does; one number of a task is told by a
/// probe.
#[test]
fn a_writer_is_scored_as_it_is() {
    let world = writer::world();
    let tasks = ["pets", "sky", "sums", "length"];
    let request = writer::request(&world, writer::recipe("samora", 4), &tasks, "run");
    run::train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let found = base(&world.path("run"));
    for (task, way) in &found.ways {
        let expected = match task.as_str() {
            "length" => BaseWay::Head,
            _ => BaseWay::Plain,
        };
        assert_eq!(*way, expected, "{task}");
    }
    let output = world.run(&[
        "eval",
        "writer",
        "--data",
        "texts",
        "--tasks",
        "pets,sky,sums",
        "--json",
        "--set",
        "data.writing.max_length=40",
        "--set",
        "data.writing.max_new_tokens=3",
    ]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let plain: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for task in ["pets", "sky", "sums"] {
        let value = plain["tasks"][task]["value"].as_f64().expect("a number");
        assert_eq!(found.scores.tasks[task].value, value, "{task}");
    }
    // The longer text has the larger number: even a frozen model's states tell that.
    assert!(found.scores.tasks["length"].value > 0.5);
    let shown = examples(&world.path("run"));
    assert!(!shown.tasks.contains_key("length"));
    let right = |text: &str| ["warm", "wet", "yes wet"].contains(&text);
    let sky = &shown.tasks["sky"];
    assert!(
        sky.iter().all(|e| right(&e.expected) && right(&e.answer)),
        "{sky:?}"
    );
}
