//! A resumed run is the uninterrupted one, bit for bit.

use std::io::Write;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use molora_models::{BaseDtype, ParameterKind};
use molora_train::data::Strategy;
use molora_train::recipe;
use molora_train::recipe::{Recipe, StageConfig};
use molora_train::run::{Request, ResumeOptions, evaluate_run, resume, train};
use molora_train::store::read_config;
use molora_train::train::Event;

use crate::world::{
    World, assert_same_run, copy_folder, read_json, resume_to_end, resume_until, small, steps,
    train_until, without_losses,
};

/// Trains once without a stop, and for each list with a stop after each of its steps, and compares.
fn check(recipe: &Recipe, lists: &[&[usize]]) {
    let world = World::new();
    let whole = world.train(recipe, "whole");
    for (number, stops) in lists.iter().enumerate() {
        let request = world.request(recipe.clone(), &format!("stopped-{number}"));
        train_until(&request, stops[0]);
        assert_eq!(steps(&request.out), steps(&whole)[..stops[0]]);
        for &step in &stops[1..] {
            resume_until(&request.out, step);
        }
        resume_to_end(&request.out);
        assert_same_run(&request.out, &whole);
    }
}

#[test]
fn every_recipe_goes_on_where_it_was_stopped() {
    for name in recipe::names() {
        // Inside the warm-up of four steps, beside a checkpoint of its own, and again.
        check(&small(name), &[&[2, 7]]);
    }
}

/// Experts are trained in shares of 3, 3 and 2 steps, gates and mixtures in 8.
#[test]
fn experts_gates_and_mixtures_go_on_at_and_around_their_borders() {
    for name in ["at-moe", "moa", "glider"] {
        check(&small(name), &[&[3], &[8], &[1, 6, 9, 11, 15]]);
    }
}

#[test]
fn a_base_in_bf16_is_remembered() {
    let world = World::new();
    let request = |out: &str| Request {
        base_dtype: BaseDtype::Bf16,
        ..world.request(small("samora"), out)
    };
    let (whole, stopped) = (request("whole"), request("stopped"));
    train(&whole, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    train_until(&stopped, 3);
    resume_to_end(&stopped.out);
    assert_same_run(&stopped.out, &whole.out);
    let config = read_config(&whole.out).expect("a run");
    assert_eq!(config.base_dtype, BaseDtype::Bf16);
    // Evaluation reads the same base: it finds what the run found.
    let (found, _) = evaluate_run(&whole.out, None, None).expect("a finished run");
    let found = serde_json::to_value(&found).expect("plain");
    let expected = read_json(&whole.out.join("eval.json"));
    assert_eq!(without_losses(found), without_losses(expected));
}

#[test]
fn a_stage_can_be_begun_again_and_gives_the_same_run() {
    for (name, stages) in [
        ("at-moe", vec!["general", "experts", "routers"]),
        ("moa", vec!["experts", "routers"]),
        ("glider", vec!["experts", "gates"]),
        // The last stage that trains: what follows is done when the run goes on.
        ("phatgoose", vec!["gates", "experts"]),
    ] {
        let world = World::new();
        let whole = world.train(&small(name), "whole");
        let mut request = world.request(small(name), "again");
        request.until = Some(stages[0].into());
        let never = AtomicBool::new(false);
        let stopped = train(&request, &never, &mut |_| {}).expect_err("it stops");
        assert!(
            stopped.to_string().starts_with(match stages[0] {
                "gates" => "stopped after step 16;",
                _ => "stopped after step 8;",
            }),
            "{stopped}"
        );
        resume_to_end(&request.out);
        assert_same_run(&request.out, &whole);
        for stage in stages {
            let part = ResumeOptions {
                from: Some(stage.into()),
                until: None,
                ..ResumeOptions::default()
            };
            resume(&request.out, &part, &never, &mut |_| {}).expect("the rest of the run");
            assert_same_run(&request.out, &whole);
        }
    }
}

#[test]
fn stages_that_cannot_be_begun_again_are_named() {
    let world = World::new();
    let request = world.request(small("moa"), "run");
    train_until(&request, 2);
    for (stage, expected) in [
        (
            "assemble",
            "stage assemble trains nothing: name the one after it",
        ),
        (
            "routers",
            "the run did not reach stage routers; go on without --from-stage",
        ),
        (
            "rooters",
            "no stage is named rooters; there are: experts, assemble, routers",
        ),
    ] {
        let part = ResumeOptions {
            from: Some(stage.into()),
            until: None,
            ..ResumeOptions::default()
        };
        let never = AtomicBool::new(false);
        let error = resume(&request.out, &part, &never, &mut |_| {}).expect_err(stage);
        assert!(error.to_string().contains(expected), "{error}");
    }
    resume_to_end(&request.out);
}

#[test]
fn a_run_may_be_stopped_at_any_step() {
    let mut recipe = small("samora");
    check(&recipe, &[&[1], &[5], &[13], &[19]]);
    recipe.checkpoint_every = 1000;
    check(&recipe, &[&[6, 7, 8]]);
}

#[test]
fn mixed_batches_micro_batches_and_temperature_go_on() {
    let mut recipe = small("samora");
    recipe.stages[0].micro_batch_size = 3;
    recipe.data.sampling.mixed = true;
    recipe.data.sampling.strategy = Strategy::Temperature { temperature: 2.0 };
    check(&recipe, &[&[3, 11]]);
    recipe.data.sampling.mixed = false;
    check(&recipe, &[&[8]]);
}

#[test]
fn stages_go_on_at_and_around_their_border() {
    let mut recipe = small("samora");
    let heads = StageConfig {
        name: "heads".into(),
        trainable: vec![ParameterKind::Heads],
        ..recipe.stages[0].clone()
    };
    recipe.stages[0].steps = 9;
    recipe.stages.push(StageConfig { steps: 8, ..heads });
    check(&recipe, &[&[8], &[9], &[10], &[4, 9, 16]]);
}

/// By the clock there is one after a slow step, and the run is as it was without.
#[test]
fn checkpoints_may_come_by_the_clock() {
    let world = World::new();
    let mut recipe = small("lora");
    recipe.checkpoint_every = 1000;
    let whole = world.train(&recipe, "whole");
    recipe.checkpoint.every_seconds = NonZeroU64::new(1);
    let request = world.request(recipe, "run");
    // No state that is scored, and so kept as one of the best.
    let checkpoint = request.out.join("checkpoints/step-00000003");
    let mut found = Vec::new();
    let mut on_event = |event: Event<'_>| {
        if let Event::Step(record, _) = event {
            found.push(checkpoint.exists());
            if record.step == 3 {
                std::thread::sleep(Duration::from_millis(1100));
            }
        }
    };
    train(&request, &AtomicBool::new(false), &mut on_event).expect("a whole run");
    assert!(!found[2] && found[3], "{found:?}");
    assert_same_run(&request.out, &whole);
}

/// What a kill may leave behind beside whole checkpoints: steps after the newest of them, a line
/// that is half written, and checkpoints that are.
fn damage(run: &Path) {
    let path = run.join("steps.jsonl");
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(path)
        .expect("a file of steps");
    file.write_all(br#"{"version":1,"step":"#)
        .expect("writable");
    for name in [
        ".step-00000010.tmp",
        ".step-00000020.tmp",
        ".step-00000099.tmp",
    ] {
        let folder = run.join("checkpoints").join(name);
        std::fs::create_dir_all(&folder).expect("a new folder");
        std::fs::write(folder.join("state.json"), b"{\"step\":").expect("writable");
    }
    std::fs::write(run.join("adapter_model.safetensors"), b"half").expect("writable");
}

#[test]
fn a_kill_at_any_step_leaves_a_run_that_goes_on() {
    let world = World::new();
    let request = world.request(small("samora"), "whole");
    let copy = |step: usize| world.path(&format!("killed-{step}"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    train(&request, &stop, &mut |event| {
        // Between a step's line and its checkpoint.
        if let Event::Step(record, _) = event {
            copy_folder(&request.out, &copy(record.step));
        }
    })
    .expect("a whole run");
    for step in [1, 4, 5, 6, 10, 12, 19, 20] {
        let run = copy(step);
        damage(&run);
        resume_to_end(&run);
        assert_same_run(&run, &request.out);
    }
}

#[test]
fn a_kill_after_a_resume_leaves_a_run_that_goes_on() {
    let world = World::new();
    let whole = world.train(&small("hydralora"), "whole");
    let request = world.request(small("hydralora"), "run");
    train_until(&request, 7);
    copy_folder(&request.out, &world.path("killed"));
    resume_until(&world.path("killed"), 12);
    // The newest checkpoint of 12 is lost; what is left is the one of 7 and steps up to 12.
    let checkpoints = world.path("killed").join("checkpoints");
    std::fs::remove_dir_all(&checkpoints).expect("a folder");
    copy_folder(&request.out.join("checkpoints"), &checkpoints);
    damage(&world.path("killed"));
    resume_to_end(&world.path("killed"));
    assert_same_run(&world.path("killed"), &whole);
}

/// A backend of graphics processors may be compiled in where no such processor is.
#[test]
fn a_run_on_the_processor_opens_no_other_device() {
    let world = World::new();
    let request = world.request(small("lora"), "run");
    train_until(&request, 7);
    let mut program = world.program(&["train", "--resume", "run"]);
    program.env_remove("BURN_DEVICE");
    // What finds such a processor, and computes as one where there is none, cannot be loaded on Linux.
    let folder = world.path("libraries");
    std::fs::create_dir(&folder).expect("a new folder");
    for name in ["libvulkan.so", "libvulkan.so.1", "libEGL.so", "libEGL.so.1"] {
        std::fs::write(folder.join(name), "").expect("writable");
    }
    program.env("LD_LIBRARY_PATH", &folder);
    let output = program.output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(read_json(&world.path("run/summary.json"))["steps"], 20);
}
