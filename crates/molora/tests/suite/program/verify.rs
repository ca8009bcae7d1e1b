//! Manifests of runs and exports: kept true by every command, and what differs is named.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use molora_train::grow::{AddRequest, add_expert, remove_expert};
use molora_train::recipe::Recipe;
use molora_train::run::train;
use molora_train::verify::{BaseState, ProbeState, Verified, VerifyRequest, verify};

use crate::exchange::decoder::Llama;
use crate::world::{
    World, assert_same_files, copy_folder, edit_tensors, entries, read_json, read_tensors, small,
    train_until, write_tensors,
};

fn found(folder: &Path) -> Verified {
    let request = VerifyRequest {
        folder: folder.to_owned(),
        model: None,
        device: None,
    };
    verify(&request, &mut |_| {}).expect("a folder with a manifest")
}

/// Everything is as it was, and the probe gives the same bits.
#[track_caller]
fn assert_well(folder: &Path) {
    let found = found(folder);
    assert!(found.is_well(), "{}: {found:?}", folder.display());
    let bits = matches!(found.probe, ProbeState::BitEqual { outputs } if outputs > 0);
    assert!(bits, "{}: {:?}", folder.display(), found.probe);
}

fn done(world: &World, arguments: &[&str]) -> String {
    let output = world.run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A run on two of the three tasks.
fn on_two(world: &World, recipe: Recipe) -> std::path::PathBuf {
    let mut request = world.request(recipe, "run");
    request.tasks = Some(vec!["answer".into(), "pets".into()]);
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    request.out
}

#[test]
fn every_command_keeps_the_manifest_of_a_run_true() {
    let world = World::new();
    let run = on_two(&world, small("lora"));
    assert_well(&run);
    let text = done(&world, &["verify", "run"]);
    for words in [
        "a run, by molora",
        "files: ",
        "is the same",
        "every bit the same",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let unseen = ["eval", "run", "--unseen", "--tasks", "weather"];
    for command in [&["report", "run"][..], &unseen, &["eval", "run"]] {
        done(&world, command);
        assert_well(&run);
    }
    assert!(read_json(&run.join("manifest.json"))["files"]["unseen.json"].is_string());
    for (command, out) in [("export", "peft"), ("merge", "merged")] {
        done(&world, &[command, "run", "--out", out]);
        assert_well(&world.path(out));
        // Within a run it is no part of it.
        done(&world, &[command, "run", "--out", &format!("run/{out}")]);
        assert_well(&run);
    }
    done(&world, &["train", "--resume", "run", "--steps", "24"]);
    assert_well(&run);
    let json = done(&world, &["verify", "merged", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json["kind"], &json["probe"]["state"]),
        (&"model".into(), &"bit_equal".into())
    );
}

#[test]
fn what_differs_is_named_tensor_by_tensor() {
    let world = World::new();
    let run = on_two(&world, small("samora"));
    let path = run.join("adapter_model.safetensors");
    let mut tensors = read_tensors(&path);
    let name = tensors
        .keys()
        .find(|name| name.contains("layer.1") && name.contains("lora_B"));
    let name = name.expect("an expert of the second layer").clone();
    tensors.get_mut(&name).expect("there").1[3] += 0.5;
    write_tensors(&path, &tensors);
    std::fs::remove_file(run.join("routing.json")).expect("there");
    std::fs::write(run.join("notes.txt"), "mine").expect("writable");
    let output = world.run(&["verify", "run"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    let tensor = format!("    {name}: differs by about 5.000e-1 in all");
    for words in [
        "  changed: adapter_model.safetensors",
        &tensor[..],
        "  missing: routing.json",
        "  extra: notes.txt",
        "outputs differ",
        "  site encoder.layer.1.",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // The first layer computes what it did.
    assert!(!text.contains("  site encoder.layer.0."), "{text}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("error: run: is not what its manifest.json says"),
        "{error}"
    );
    let found = found(&run);
    let changed = &found.files.changed["adapter_model.safetensors"];
    assert_eq!((changed.len(), &changed[0].name), (1, &name));
    assert!((changed[0].difference.expect("numbers") - 0.5).abs() < 1e-6);
}

#[test]
fn another_base_is_told() {
    let world = World::new();
    let run = on_two(&world, small("lora"));
    done(&world, &["export", "run", "--out", "peft"]);
    edit_tensors(&world, |tensors| {
        let table = tensors.get_mut("embeddings.word_embeddings.weight");
        table
            .expect("there")
            .1
            .iter_mut()
            .for_each(|value| *value *= 1.5);
    });
    for folder in [&run, &world.path("peft")] {
        let found = found(folder);
        assert!(!found.is_well());
        let BaseState::Changed { files, .. } = &found.base else {
            panic!("{:?}", found.base);
        };
        assert_eq!(files, &["model.safetensors of the base model"]);
        assert!(
            matches!(found.probe, ProbeState::Differs { .. }),
            "{:?}",
            found.probe
        );
        assert!(found.files.is_same());
    }
    std::fs::remove_dir_all(world.path("model")).expect("there");
    let found = found(&world.path("peft"));
    assert!(matches!(found.base, BaseState::NotFound { .. }) && !found.is_well());
    assert!(matches!(found.probe, ProbeState::NotComputed { .. }));
}

#[test]
fn experts_come_and_go_with_the_manifest() {
    for name in ["phatgoose", "glider"] {
        let world = World::new();
        let run = on_two(&world, small(name));
        assert_well(&run);
        copy_folder(&run, &world.path("before"));
        let request = AddRequest {
            run: run.clone(),
            task: "weather".into(),
            data: None,
            group: None,
            device: None,
        };
        let stop = AtomicBool::new(false);
        add_expert(&request, &stop, &mut |_| {}).expect("one more expert");
        assert_well(&run);
        let files = &read_json(&run.join("manifest.json"))["files"];
        for file in [
            "run.toml",
            "experts/pets/head.safetensors",
            "before/weather/run.toml",
        ] {
            assert!(files[file].is_string(), "{name}: {file}");
        }
        copy_folder(&run, &world.path("grown"));
        remove_expert(&run, "weather", None, &mut |_| {}).expect("as it was");
        assert_well(&run);
        assert_same_files(&run, &world.path("before"));
        let grown = world.path("grown");
        remove_expert(&grown, "answer", None, &mut |_| {}).expect("without another");
        assert_well(&grown);
    }
}

#[test]
fn a_run_that_is_not_finished_has_none_and_an_older_one_opens() {
    let world = World::new();
    let request = world.request(small("lora"), "run");
    train_until(&request, 6);
    assert!(!entries(&request.out).contains(&"manifest.json".into()));
    let refused = |arguments: &[&str], words: &str| {
        let output = world.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(error.contains(words), "{words}: {error}");
    };
    refused(&["verify", "run"], "not finished");
    refused(&["verify", "none"], "none: no such folder");
    done(&world, &["train", "--resume", "run"]);
    assert_well(&request.out);
    std::fs::remove_file(request.out.join("manifest.json")).expect("there");
    refused(&["verify", "run"], "run: has no manifest.json");
    for command in [
        &["eval", "run"][..],
        &["report", "run"],
        &["export", "run", "--out", "peft"],
    ] {
        done(&world, command);
    }
    assert!(!entries(&request.out).contains(&"manifest.json".into()));
    assert_well(&world.path("peft"));
}

#[test]
fn exports_of_a_decoder_are_certified() {
    let world = Llama::new();
    world.assemble("arrow", &[]);
    assert_well(&world.path("run"));
    world.done(&["export", "run", "--expert", "med", "--out", "peft"]);
    world.done(&[
        "export", "run", "--expert", "law", "--out", "named", "--name", "law",
    ]);
    world.done(&[
        "combine", "law", "med", "--base", "base", "--how", "svd", "--out", "lora",
    ]);
    let whole = ["--how", "svd", "--whole", "--out", "whole"];
    world.done(&[&["combine", "law", "med", "--base", "base"][..], &whole].concat());
    world.done(&["merge", "run", "--expert", "law", "--out", "merged"]);
    world.done(&["merge", "law", "--model", "base", "--out", "of-peft"]);
    for folder in ["peft", "named/law", "lora", "whole", "merged", "of-peft"] {
        assert_well(&world.path(folder));
    }
    // PEFT's own methods are certified by their files.
    world.done(&["export", "run", "--out", "arrow"]);
    let found = found(&world.path("arrow"));
    assert!(found.is_well(), "{found:?}");
    let ProbeState::None { why } = &found.probe else {
        panic!("{:?}", found.probe);
    };
    assert!(why.contains("as a run only"), "{why}");
    // The scores of the next token are among what is compared.
    let text = world.run(&["verify", "merged", "--json"]).stdout;
    assert!(
        String::from_utf8(text)
            .expect("UTF-8")
            .contains("\"kind\":\"model\"")
    );
    let manifest = read_json(&world.path("merged/manifest.json"));
    let outputs = manifest["probe"]["recorded"]["outputs"]
        .as_array()
        .expect("outputs");
    let has = |name: &str| outputs.iter().any(|output| output["name"] == name);
    assert!(has("next token") && has("pooled state"));
}
