//! Going on behind the end of a finished run.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use molora_train::Recipe;
use molora_train::recipe::{Decay, FinalState};
use molora_train::run::{ResumeOptions, Schedule, resume};

use crate::world::{World, assert_same_run, resume_to_end, small, steps, train_until, validations};

/// With a rate that does not depend on the number of steps.
fn constant(name: &str, total: usize) -> Recipe {
    let mut recipe = small(name);
    for stage in &mut recipe.stages {
        stage.schedule.warmup = 0.0;
        stage.schedule.decay = Decay::Constant;
    }
    let last = recipe.stages.last_mut().expect("a stage");
    last.steps = total;
    recipe.validation.every = Some(4);
    recipe
}

fn go_on(run: &Path, steps: usize, schedule: Schedule) {
    let part = ResumeOptions {
        steps: Some(steps),
        schedule,
        ..ResumeOptions::default()
    };
    resume(run, &part, &AtomicBool::new(false), &mut |_| {}).expect("more steps");
}

#[test]
fn a_run_that_goes_on_is_the_longer_run() {
    for (name, more) in [("samora", 0), ("moa", 8)] {
        for state in [FinalState::Best, FinalState::Last] {
            let world = World::new();
            let recipe = |total| {
                let mut recipe = constant(name, total);
                recipe.checkpoint.final_state = state;
                recipe
            };
            let whole = world.train(&recipe(20), "whole");
            let run = world.train(&recipe(12), "run");
            assert_eq!(steps(&run).len(), 12 + more);
            go_on(&run, 20 + more, Schedule::Extend);
            assert_same_run(&run, &whole);
            // And once more, so that what was kept of the first time is not taken for the newest.
            go_on(&run, 24 + more, Schedule::Extend);
            let longer = world.train(&recipe(24), "longer");
            assert_same_run(&run, &longer);
        }
    }
}

#[test]
fn a_run_that_is_stopped_on_its_way_goes_on() {
    let world = World::new();
    let whole = world.train(&constant("samora", 24), "whole");
    let run = world.train(&constant("samora", 12), "run");
    let stop = AtomicBool::new(false);
    let part = ResumeOptions {
        steps: Some(24),
        ..ResumeOptions::default()
    };
    let stopped = resume(&run, &part, &stop, &mut |event| {
        if matches!(event, molora_train::run::Event::Step(record, _) if record.step == 17) {
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    });
    assert!(stopped.is_err());
    // The same command, and one that says nothing of the steps.
    go_on(&run, 24, Schedule::Extend);
    assert_same_run(&run, &whole);
}

#[test]
fn the_rate_goes_on_falling_or_rises_anew() {
    let world = World::new();
    let mut recipe = small("lora");
    recipe.stages[0].schedule.warmup = 0.0;
    let rates = |schedule, out: &str| -> Vec<f64> {
        let run = world.train(&recipe, out);
        go_on(&run, 40, schedule);
        let peak = recipe.stages[0].optimizer.learning_rate;
        let steps = steps(&run);
        steps.iter().map(|step| step.learning_rate / peak).collect()
    };
    let extended = rates(Schedule::Extend, "extended");
    assert!((extended[19] - 0.05).abs() < 1e-9 && (extended[20] - 0.5).abs() < 1e-9);
    let restarted = rates(Schedule::Restart, "restarted");
    assert_eq!(restarted[..20], extended[..20]);
    assert_eq!(restarted[20..], restarted[..20]);
}

#[test]
fn early_stopping_does_not_end_what_goes_on() {
    let world = World::new();
    let mut recipe = constant("samora", 20);
    recipe.validation.every = Some(2);
    recipe.validation.patience = 1;
    // Nothing gets better.
    recipe.stages[0].optimizer.learning_rate = 1e-9;
    recipe.stages[0].optimizer.learning_rates.clear();
    let run = world.train(&recipe, "run");
    let made = steps(&run).len();
    assert!(made < 20, "{made}");
    go_on(&run, 22, Schedule::Extend);
    assert!(steps(&run).len() > made);
    assert!(validations(&run).len() > made / 2);
}

#[test]
fn what_cannot_go_on_is_said() {
    let world = World::new();
    let refused = |run: &str, steps: &str, words: &str| {
        let output = world.run(&["train", "--resume", run, "--steps", steps]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(words), "{text}");
    };
    world.train(&small("phatgoose"), "alone");
    refused("alone", "99", "it ends with experts that train one by one");
    let run = world.train(&small("lora"), "run");
    let alone = world.run(&["train", "--resume", "run", "--schedule", "restart"]);
    let text = String::from_utf8_lossy(&alone.stderr);
    assert!(
        text.contains("--schedule needs --resume and --steps"),
        "{text}"
    );
    refused(
        "run",
        "20",
        "has 20 steps, and is to have 20 in all: expected more",
    );
    std::fs::remove_dir_all(run.join("stages")).expect("removed");
    refused("run", "30", "the state at its end is not there");
    let request = world.request(small("lora"), "unfinished");
    train_until(&request, 3);
    refused("unfinished", "30", "it has 20 steps before it");
    resume_to_end(&request.out);
}
