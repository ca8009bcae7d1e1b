//! Scores on the validation split while a run trains, and the states that it keeps.

use std::path::Path;

use molora_train::recipe::{FinalState, Recipe};
use molora_train::report::{KeptState, RunSummary, StateMetric, ValidationRecord};
use molora_train::store::read_config;

use crate::world::{
    World, assert_same_run, entries, read_json, resume_to_end, resume_until, small, train_until,
    validations,
};

/// A recipe that is scored every so many steps.
fn scored(name: &str, every: usize) -> Recipe {
    let mut recipe = small(name);
    recipe.validation.every = Some(every);
    recipe
}

fn summary(run: &Path) -> RunSummary {
    serde_json::from_value(read_json(&run.join("summary.json"))).expect("a summary")
}

fn state(run: &Path) -> KeptState {
    summary(run).states.pop().expect("one stage")
}

fn score(record: &ValidationRecord) -> f64 {
    record.validation.mean_score
}

#[test]
fn an_encoder_is_scored_ten_times_and_keeps_its_best_state() {
    let world = World::new();
    let run = world.train(&small("samora"), "run");
    let found = validations(&run);
    let at: Vec<usize> = found.iter().map(|record| record.step).collect();
    assert_eq!(at, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]);
    let mut best = f64::NEG_INFINITY;
    for record in &found {
        assert_eq!(record.is_best, score(record) > best, "step {}", record.step);
        best = best.max(score(record));
        let tasks: Vec<_> = record.validation.tasks.keys().map(String::as_str).collect();
        assert_eq!(tasks, ["answer", "pets", "weather"]);
        assert!(record.validation.tasks.values().all(|task| task.n == 6));
    }
    let first = found.iter().find(|record| score(record) == best);
    let state = state(&run);
    assert_eq!(state.step, first.expect("one of them").step);
    assert_eq!((state.value, state.last_step), (best, 20));
    let page = std::fs::read_to_string(run.join("report.html")).expect("a page");
    assert!(page.contains("<h2>Validation</h2>"));
}

/// What was kept is what was scored: it gives the same scores.
#[test]
fn the_final_adapter_is_the_best_state() {
    let world = World::new();
    let mut recipe = scored("hydralora", 3);
    recipe.validation.limit = Some(4);
    recipe.checkpoint.metric = StateMetric::Loss;
    // So large a rate that the last state is not the best.
    recipe.stages[0].optimizer.learning_rate = 0.05;
    for (final_state, out) in [(FinalState::Best, "best"), (FinalState::Last, "last")] {
        recipe.checkpoint.final_state = final_state;
        let run = world.train(&recipe, out);
        let state = state(&run);
        let records = validations(&run);
        let is_kept = |record: &&ValidationRecord| record.step == state.step;
        let kept = records.iter().find(is_kept).expect("scored");
        assert_eq!(state.value, kept.validation.loss);
        let output = world.run(&[
            "eval",
            out,
            "--split",
            "validation",
            "--limit",
            "4",
            "--json",
        ]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(found["split"], "validation");
        for (task, score) in &kept.validation.tasks {
            assert_eq!(found["tasks"][task]["value"], score.value, "{out}: {task}");
            let loss = found["tasks"][task]["loss"].as_f64().expect("a loss");
            assert!((loss - score.loss).abs() < 1e-6, "{out}: {task}");
            assert_eq!(found["tasks"][task]["n"], 4, "{out}: {task}");
        }
        match final_state {
            FinalState::Best => assert!(state.step < 20, "{state:?}"),
            FinalState::Last => assert_eq!(state.step, 20),
        }
    }
}

#[test]
fn scores_change_nothing_of_the_training() {
    let world = World::new();
    let mut recipe = scored("samora", 2);
    recipe.checkpoint.final_state = FinalState::Last;
    let watched = world.train(&recipe, "watched");
    let plain = world.train(&scored("samora", 0), "plain");
    assert!(validations(&plain).is_empty());
    assert!(summary(&plain).states.is_empty());
    for file in [
        "adapter_model.safetensors",
        "heads.safetensors",
        "eval.json",
    ] {
        let bytes = |run: &Path| std::fs::read(run.join(file)).expect("a file");
        assert!(bytes(&watched) == bytes(&plain), "{file}");
    }
}

#[test]
fn a_run_that_is_scored_goes_on_where_it_was_stopped() {
    for (name, lists) in [
        ("samora", [vec![2, 7], vec![6, 13]]),
        ("moa", [vec![3], vec![1, 6, 9, 11]]),
        ("glider", [vec![8], vec![2, 12, 17]]),
    ] {
        let mut recipe = scored(name, 2);
        recipe.validation.patience = 2;
        recipe.checkpoint.keep_best = 2;
        recipe.checkpoint.keep_last = 2;
        recipe.checkpoint.metric = StateMetric::Loss;
        for stage in &mut recipe.stages {
            stage.optimizer.learning_rate = 0.03;
        }
        let world = World::new();
        let whole = world.train(&recipe, "whole");
        let total = summary(&whole).steps;
        for (number, stops) in lists.iter().enumerate() {
            let stops: Vec<usize> = stops.iter().copied().filter(|&step| step < total).collect();
            let request = world.request(recipe.clone(), &format!("stopped-{number}"));
            train_until(&request, stops[0]);
            for &step in &stops[1..] {
                resume_until(&request.out, step);
            }
            resume_to_end(&request.out);
            assert_same_run(&request.out, &whole);
            let kept = |run: &Path| entries(&run.join("checkpoints"));
            assert_eq!(kept(&request.out), kept(&whole), "{name}");
        }
    }
}

#[test]
fn a_stage_ends_when_its_scores_get_no_better() {
    let world = World::new();
    let mut recipe = scored("lora", 1);
    recipe.validation.patience = 3;
    recipe.checkpoint.metric = StateMetric::Loss;
    recipe.stages[0].steps = 200;
    recipe.stages[0].optimizer.learning_rate = 0.05;
    let run = world.train(&recipe, "run");
    let state = state(&run);
    assert!(state.last_step < 200, "{state:?}");
    assert_eq!(state.last_step, state.step + 3);
    assert_eq!(summary(&run).steps, state.last_step);
}

#[test]
fn each_expert_and_stage_has_its_own_best_state() {
    let world = World::new();
    let run = world.train(&scored("moa", 1), "run");
    let states = summary(&run).states;
    let parts: Vec<_> = states
        .iter()
        .map(|state| (&state.stage[..], state.expert.as_deref(), state.last_step))
        .collect();
    assert_eq!(
        parts,
        [
            ("experts", Some("answer"), 3),
            ("experts", Some("pets"), 6),
            ("experts", Some("weather"), 8),
            ("routers", None, 16),
        ]
    );
    for record in validations(&run) {
        let tasks: Vec<_> = record.validation.tasks.keys().collect();
        match &record.expert {
            Some(expert) => assert_eq!(tasks, [expert]),
            None => assert_eq!(tasks.len(), 3),
        }
    }
}

#[test]
fn checkpoints_that_are_asked_for_stay() {
    let world = World::new();
    let mut recipe = scored("lora", 4);
    recipe.checkpoint.keep_last = 2;
    let run = world.train(&recipe, "newest");
    // Beside those of every fifth step the state that was the best when it was scored.
    assert_eq!(entries(&run.join("checkpoints")).len(), 2);
    recipe.checkpoint.keep_last = 0;
    recipe.checkpoint.keep_best = 3;
    let run = world.train(&recipe, "best");
    let mut records = validations(&run);
    records.sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.step.cmp(&b.step)));
    let mut expected: Vec<String> = records[..3]
        .iter()
        .map(|record| format!("step-{:08}", record.step))
        .collect();
    expected.sort();
    assert_eq!(entries(&run.join("checkpoints")), expected);
    // Commands that write into the run later leave them.
    assert!(world.run(&["recover", "best"]).status.success());
    assert_eq!(entries(&run.join("checkpoints")), expected);
    let plain = world.train(&scored("lora", 4), "plain");
    assert!(!plain.join("checkpoints").exists());
}

#[test]
fn options_and_contradictions_are_named() {
    let world = World::new();
    let train = |more: &[&str]| {
        let base = "train lora --model model --data data --steps 4 --set data.max_length=24";
        let mut arguments: Vec<&str> = base.split(' ').collect();
        arguments.extend(more);
        world.run(&arguments)
    };
    let output = train(&["--out", "run", "--eval-every", "2", "--eval-limit", "5"]);
    assert!(output.status.success(), "{output:?}");
    let run = world.path("run");
    let config = read_config(&run).expect("a run");
    assert_eq!(config.recipe.validation.every, Some(2));
    assert_eq!(config.recipe.validation.limit, Some(5));
    let found = validations(&run);
    assert_eq!(
        found.iter().map(|record| record.step).collect::<Vec<_>>(),
        [2, 4]
    );
    assert!(
        found
            .iter()
            .all(|record| record.validation.tasks["pets"].n == 5)
    );
    for (more, expected) in [
        (&["--eval-limit", "0"][..], "--eval-limit"),
        (
            &["--eval-every", "0", "--set", "validation.patience=2"],
            "validation.patience is 2, but validation.every is 0",
        ),
        (
            &["--set", "checkpoint.metric=best"],
            "unknown variant `best`",
        ),
        (
            &["--set", "checkpoint.final=first"],
            "unknown variant `first`",
        ),
    ] {
        let mut arguments = vec!["--out", "other"];
        arguments.extend(more);
        let output = train(&arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(expected),
            "{text}"
        );
    }
    let output = world.run(&["eval", "run", "--split", "dev"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("expected test, validation or train"),
        "{text}"
    );
    for (split, n) in [("train", 48), ("validation", 6), ("test", 24)] {
        let output = world.run(&["eval", "run", "--split", split, "--json"]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(
            (&found["split"], &found["tasks"]["pets"]["n"]),
            (&split.into(), &n.into())
        );
    }
}
