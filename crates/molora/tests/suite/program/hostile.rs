//! Files that are made or happen to hurt: numbers that are none, states that contradict themselves,
//! text that steers a terminal.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::refusal::assert_refused;
use super::writer;
use crate::world::{
    World, copy_folder, edit_tensors, read_tensors, small, train_until, write_tensors,
};

/// Makes the last number of the first tensor of a file that is called like this one NaN.
fn spoil(path: &Path, name: &str) {
    let mut tensors = read_tensors(path);
    let mut named = tensors.iter_mut().filter(|(found, _)| found.contains(name));
    let (_, (_, values)) = named.next().expect("a tensor of that name");
    *values.last_mut().expect("not empty") = f32::NAN;
    write_tensors(path, &tensors);
}

#[test]
fn numbers_that_are_none_are_refused_wherever_they_are_read() {
    let world = World::new();
    let run = world.train(&small("samora"), "run");
    for (file, name) in [
        ("adapter_model.safetensors", "lora_B"),
        ("adapter_model.safetensors", "router"),
        ("heads.safetensors", "pets"),
    ] {
        let whole = fs::read(run.join(file)).expect("readable");
        spoil(&run.join(file), name);
        for arguments in [
            &["eval", "run"][..],
            &["eval", "run", "--unseen", "--data", "more"],
            &["distill", "run", "--rank", "2", "--out", "small"],
            &["merge", "run", "--out", "whole"],
            &["export", "run", "--out", "peft"],
        ] {
            copy_folder(&world.path("data"), &world.path("more"));
            fs::rename(world.data("../more/pets"), world.data("../more/other")).expect("a task");
            let expected = [file, "of tensor `", "is NaN, expected finite numbers"];
            let output = world.run(arguments);
            let error = String::from_utf8_lossy(&output.stderr);
            // Some refuse the run for another reason first.
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
            if arguments[..] == ["eval", "run"] {
                assert!(expected.iter().all(|text| error.contains(text)), "{error}");
            }
            fs::remove_dir_all(world.path("more")).expect("there");
        }
        fs::write(run.join(file), whole).expect("writable");
    }
}

/// Weights that are numbers may still lead to none.
#[test]
fn scores_that_are_none_choose_nothing() {
    let world = World::new();
    let run = world.train(&small("lora"), "run");
    let path = run.join("heads.safetensors");
    let mut tensors = read_tensors(&path);
    for (_, values) in tensors.values_mut() {
        let huge = |value: &mut f32| *value = 3e38_f32.copysign(*value);
        values.iter_mut().for_each(huge);
    }
    write_tensors(&path, &tensors);
    let expected = [": the output of the head is ", "expected finite numbers"];
    assert_refused(&world, &["eval", "run"], "huge heads", &expected);
}

#[test]
fn probes_are_for_encoders() {
    let world = writer::world();
    let request = writer::request(&world, writer::recipe("lora", 4), &["pets"], "run");
    let stop = std::sync::atomic::AtomicBool::new(false);
    molora_train::run::train(&request, &stop, &mut |_| {}).expect("a whole run");
    let expected = ["run.toml: the model writes its answers and needs no probe"];
    let eval = ["eval", "run", "--unseen", "--tasks", "sky"];
    let output = world.run(&eval);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    let compare = [
        "compare", "lora", "samora", "--model", "model", "--data", "data", "--steps", "4", "--out",
        "cmp", "--unseen", "pets", "--tasks", "sky",
    ];
    let output = world.run(&compare);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("needs no probe") || error.contains("pets"),
        "{error}"
    );
    assert!(!error.contains("panicked"), "{error}");
    assert!(!world.path("cmp/runs").exists(), "before anything trains");
    let eval = ["eval", "run", "--unseen", "--tasks", "pets"];
    assert_refused(&world, &eval, "its own task", &["is not unseen"]);
    let eval = ["eval", "run", "--unseen", "--tasks", "colors"];
    if world.data("colors").exists() {
        assert_refused(&world, &eval, "a probe", &expected);
    }
}

/// One value of `state.json` at a time, and the optimizer's file.
#[test]
fn checkpoints_that_contradict_themselves_are_refused() {
    let world = World::new();
    let request = world.request(small("samora"), "run");
    train_until(&request, 3);
    let checkpoint = world.path("run/checkpoints/step-00000003");
    let state = checkpoint.join("state.json");
    let whole = fs::read(&state).expect("a checkpoint");
    let resume = ["train", "--resume", "run"];
    for (pointer, value, expected) in [
        ("/leg", json!(9), "leg is 9, but the run has"),
        ("/leg_step", json!(900), "leg_step is 900, but leg 0 has"),
        (
            "/step",
            json!(u64::MAX),
            "step is 18446744073709551615, expected 3",
        ),
        ("/sampler", Value::Null, "sampler is missing"),
        (
            "/tokens",
            json!(u64::MAX),
            "tokens, padded_tokens and seconds",
        ),
        ("/seconds", json!(-1.0), "tokens, padded_tokens and seconds"),
        (
            "/sampler/config/batch_size",
            json!(1_u64 << 60),
            "config is not that",
        ),
        ("/sampler/rng/s", json!([0, 0, 0, 0]), "rng is all zeros"),
        ("/sampler/weights/0", json!(0), "weights are not"),
        (
            "/sampler/decks/0/next",
            json!(1_u64 << 60),
            "deck 0 does not",
        ),
        (
            "/sampler/pending",
            json!([[[0, 999_999]]]),
            "pending are not",
        ),
        (
            "/optimizer_sha256",
            json!("00"),
            "optimizer.bpk: has SHA-256",
        ),
    ] {
        let mut changed: Value = serde_json::from_slice(&whole).expect("JSON");
        *changed.pointer_mut(pointer).expect(pointer) = value;
        fs::write(&state, changed.to_string()).expect("writable");
        assert_refused(&world, &resume, pointer, &[expected]);
    }
    // A checkpoint of an earlier version knows no hash; its broken optimizer is an error too.
    let mut old: Value = serde_json::from_slice(&whole).expect("JSON");
    old.as_object_mut()
        .expect("an object")
        .remove("optimizer_sha256");
    fs::write(&state, old.to_string()).expect("writable");
    let optimizer = checkpoint.join("optimizer.bpk");
    let bytes = fs::read(&optimizer).expect("a checkpoint");
    fs::write(&optimizer, &bytes[..bytes.len() / 3]).expect("writable");
    assert_refused(&world, &resume, "half an optimizer", &["optimizer.bpk: "]);
    fs::write(&optimizer, bytes).expect("writable");
    let output = world.run(&resume);
    assert!(output.status.success(), "an older checkpoint goes on");
}

#[test]
fn text_of_files_does_not_steer_the_terminal() {
    let world = World::new();
    let name = "a\u{1b}]0;x\u{7}\u{1b}[31m\nerror: all is well";
    World::edit(&world.data("pets/task.json"), |meta| {
        meta["metric"] = name.into()
    });
    let train = [
        "train", "lora", "--model", "model", "--data", "data", "--out", "run", "--steps", "2",
    ];
    let line = assert_refused(
        &world,
        &train,
        "a metric",
        &["\\u{1b}[31m", "\\nerror: all"],
    );
    assert!(!line.contains('\u{1b}'));
    let long = "x".repeat(200_000);
    World::edit(&world.data("pets/task.json"), |meta| {
        meta["metric"] = long.into()
    });
    let line = assert_refused(&world, &train, "a long metric", &["characters left out"]);
    assert!(line.len() < 3000, "{}", line.len());
}

#[test]
fn warnings_have_no_colours_in_a_pipe() {
    let world = World::new();
    edit_tensors(&world, |tensors| {
        tensors.insert("other\u{1b}[31m\nhead".into(), (vec![1], vec![1.0]));
    });
    let train = [
        "train",
        "lora",
        "--model",
        "model",
        "--data",
        "data",
        "--out",
        "run",
        "--steps",
        "2",
        "--set",
        "data.max_length=24",
    ];
    let output = world.run(&train);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!error.contains('\u{1b}'), "{error}");
    assert!(error.contains("is not used"), "{error}");
    assert!(
        !error.lines().any(|line| line.starts_with("head")),
        "{error}"
    );
}

#[test]
fn the_current_folder_is_no_new_run() {
    let world = World::new();
    let train = [
        "train", "lora", "--model", "model", "--data", "data", "--steps", "2", "--force", "--out",
        ".",
    ];
    let expected = [".: is no name of a new folder; choose another --out"];
    assert_refused(&world, &train, "the current folder", &expected);
}
