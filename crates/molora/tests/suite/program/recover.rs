//! Runs that a kill, or somebody who means harm, has left in a strange state.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use molora_train::grow::{AddRequest, add_expert};
use molora_train::run::{evaluate_run, train};
use molora_train::store::{read_config, recover};

use super::refusal::assert_refused;
use crate::world::{
    World, assert_same_files, copy_folder, entries, resume_to_end, small, train_until,
};

/// A run of `moa` on two of the tasks.
fn two(world: &World, out: &str) -> PathBuf {
    let mut request = world.request(small("moa"), out);
    request.tasks = Some(vec!["answer".into(), "pets".into()]);
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    request.out
}

fn add(run: &Path) {
    let request = AddRequest {
        run: run.into(),
        task: "weather".into(),
        data: None,
        group: None,
        device: None,
    };
    add_expert(&request, &AtomicBool::new(false), &mut |_| {}).expect("one more expert");
}

/// Makes the change from one run to a grown one pending, as a kill right after the commit does.
fn make_pending(run: &Path, grown: &Path) {
    let new = run.join(".swap/new");
    for name in entries(grown) {
        match &name[..] {
            "experts" => {
                let to = new.join("experts/weather");
                copy_folder(&grown.join("experts/weather"), &to);
            }
            "before" => copy_folder(&grown.join("before"), &new.join("before")),
            _ if grown.join(&name).is_file() => {
                fs::copy(grown.join(&name), new.join(&name)).expect("writable");
            }
            _ => {}
        }
    }
    fs::write(run.join(".swap/drop"), "stages\n.growing-weather").expect("writable");
}

#[test]
fn a_pending_change_is_told_by_readers_and_finished_by_writers() {
    let world = World::new();
    let run = two(&world, "run");
    let (grown, pending) = (world.path("grown"), world.path("pending"));
    copy_folder(&run, &grown);
    add(&grown);
    for finish in [
        &["recover", "pending"][..],
        &["add-expert", "pending", "--task", "weather"],
    ] {
        copy_folder(&run, &pending);
        fs::create_dir_all(pending.join(".growing-weather")).expect("writable");
        fs::create_dir_all(pending.join(".swap/new/experts")).expect("writable");
        make_pending(&pending, &grown);
        let before = entries(&pending);
        for reader in [
            &["eval", "pending"][..],
            &["export", "pending", "--expert", "pets"],
            &["generate", "pending", "--prompt", "x"],
        ] {
            let expected = "pending: adding the expert of weather was cut short; molora recover \
                            pending finishes it";
            assert_refused(&world, reader, "a reader", &[expected]);
            assert_eq!(entries(&pending), before, "{reader:?}");
        }
        let output = world.run(finish);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        match finish[0] {
            "recover" => assert!(output.status.success(), "{text}"),
            _ => assert!(text.contains("has an expert of weather already"), "{text}"),
        }
        assert_same_files(&pending, &grown);
        fs::remove_dir_all(&pending).expect("a folder");
    }
    let again = recover(&grown).expect("a whole run");
    assert_eq!(again.finished, None);
}

#[test]
fn a_run_from_elsewhere_reaches_nothing_outside() {
    let world = World::new();
    let run = two(&world, "run");
    let outside = world.path("outside");
    fs::create_dir(&outside).expect("writable");
    fs::write(outside.join("kept"), "").expect("writable");
    let absolute = outside.to_str().expect("UTF-8");
    for drop in [
        "../outside",
        absolute,
        "experts/../../outside",
        "experts/pets/../../../outside",
    ] {
        fs::create_dir_all(run.join(".swap/new")).expect("writable");
        fs::write(run.join(".swap/drop"), drop).expect("writable");
        for command in [
            &["eval", "run"][..],
            &["recover", "run"],
            &["train", "--resume", "run"],
        ] {
            assert_refused(&world, command, drop, &["run"]);
            assert_eq!(entries(&outside), ["kept"], "{drop}");
        }
        fs::remove_dir_all(run.join(".swap")).expect("a folder");
    }
    evaluate_run(&run, None, None).expect("the run is whole");
    let text = fs::read_to_string(run.join("run.toml")).expect("readable");
    fs::write(
        run.join("run.toml"),
        text.replace("\"pets\"", "\"../../outside\""),
    )
    .expect("writable");
    for command in [&["eval", "run"][..], &["train", "--resume", "run"]] {
        assert_refused(
            &world,
            command,
            "a name",
            &["name of a task `../../outside`"],
        );
    }
    assert_eq!(entries(&outside), ["kept"]);
}

#[cfg(unix)]
#[test]
fn a_link_in_a_run_is_not_followed() {
    use std::os::unix::fs::symlink;
    let world = World::new();
    let request = world.request(small("moa"), "whole");
    train_until(&request, 6);
    let outside = world.path("outside");
    for name in ["checkpoints", "experts", "steps.jsonl", "stages", ".lock"] {
        let run = world.path("run");
        copy_folder(&request.out, &run);
        let path = run.join(name);
        match path.exists() {
            true => fs::rename(&path, &outside).expect("writable"),
            false if name == "stages" => fs::create_dir(&outside).expect("writable"),
            false => fs::write(&outside, "kept").expect("writable"),
        }
        symlink(&outside, &path).expect("writable");
        let kept = world.path("kept");
        match outside.is_dir() {
            true => copy_folder(&outside, &kept),
            false => drop(fs::copy(&outside, &kept).expect("writable")),
        }
        let expected = format!("run/{name}: is a link");
        assert_refused(&world, &["train", "--resume", "run"], name, &[&expected]);
        match outside.is_dir() {
            true => assert_same_files(&outside, &kept),
            false => assert_eq!(fs::read(&outside).ok(), fs::read(&kept).ok()),
        }
        for path in [&outside, &kept] {
            match path.is_dir() {
                true => fs::remove_dir_all(path).expect("a folder"),
                false => fs::remove_file(path).expect("a file"),
            }
        }
        fs::remove_dir_all(&run).expect("a folder");
    }
}

#[cfg(unix)]
#[test]
fn what_is_exported_does_not_go_through_a_link() {
    let world = World::new();
    let run = world.train(&small("lora"), "run");
    let outside = world.path("outside");
    fs::create_dir(&outside).expect("writable");
    std::os::unix::fs::symlink(&outside, run.join("peft")).expect("writable");
    assert_refused(
        &world,
        &["export", "run"],
        "a link",
        &["run/peft: is a link"],
    );
    assert!(entries(&outside).is_empty());
}

#[test]
fn what_a_kill_leaves_is_no_dead_end() {
    let world = World::new();
    let run = two(&world, "run");
    // Before the addition has its configuration.
    fs::create_dir(run.join(".growing-weather")).expect("writable");
    fs::write(run.join(".lock"), "process 1\n").expect("writable");
    fs::create_dir(run.join(".removing-pets")).expect("writable");
    add(&run);
    assert_eq!(read_config(&run).expect("a run").tasks.len(), 3);
    let left = entries(&run);
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
    // Before a run or a comparison has its first file.
    for out in ["new", "compared"] {
        fs::create_dir(world.path(out)).expect("writable");
        fs::write(world.path(out).join(".molora-xyz"), "half").expect("writable");
        fs::write(world.path(out).join(".lock"), "").expect("writable");
    }
    let source = "--model model --data data --steps 2 --set data.max_length=24";
    let source: Vec<&str> = source.split(' ').collect();
    let train = [&["train", "lora", "--out", "new"][..], &source].concat();
    assert!(world.run(&train).status.success());
    let compare = [
        "compare",
        "lora,hydralora",
        "--seeds",
        "1",
        "--out",
        "compared",
    ];
    assert!(
        world
            .run(&[&compare[..], &source].concat())
            .status
            .success()
    );
    assert_eq!(entries(&world.path("compared")).len(), 5);
    // While an older molora removed a run.
    fs::remove_file(world.path("new/run.toml")).expect("a file");
    let forced = [&train[..], &["--force"]].concat();
    assert!(world.run(&forced).status.success());
}

#[test]
fn inputs_that_changed_are_noticed() {
    let world = World::new();
    let whole = world.train(&small("lora"), "whole");
    let request = world.request(small("lora"), "run");
    train_until(&request, 6);
    let config = fs::read(world.model("config.json")).expect("readable");
    let tokenizer = fs::read_to_string(world.model("tokenizer.json")).expect("readable");
    let test = fs::read_to_string(world.data("pets/test.jsonl")).expect("readable");
    let expected = [
        "tokenizer.json of the base model",
        "test.jsonl of task pets",
    ];
    fs::write(world.model("tokenizer.json"), format!("{tokenizer}\n")).expect("writable");
    fs::write(world.data("pets/test.jsonl"), test.replace("purr", "bark")).expect("writable");
    assert_refused(&world, &["train", "--resume", "run"], "resume", &expected);
    let line = assert_refused(&world, &["eval", "whole"], "eval", &expected);
    assert!(line.ends_with("--anyway"), "{line}");
    let output = world.run(&["eval", "whole", "--anyway"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(expected.iter().all(|name| text.contains(name)), "{text}");
    fs::write(world.model("tokenizer.json"), &tokenizer).expect("writable");
    fs::write(world.data("pets/test.jsonl"), &test).expect("writable");
    // The same bytes at another time.
    fs::write(world.model("config.json"), config).expect("writable");
    assert!(world.run(&["eval", "whole"]).status.success());
    resume_to_end(&request.out);
    // Other tasks are what --data asks for.
    copy_folder(&world.path("data"), &world.path("other"));
    fs::write(
        world.path("other/pets/test.jsonl"),
        test.replace("purr", "bark"),
    )
    .expect("writable");
    assert!(
        world
            .run(&["eval", "whole", "--data", "other"])
            .status
            .success()
    );
    // A run of an earlier version says nothing of them, and that is told once.
    let text = fs::read_to_string(whole.join("run.toml")).expect("readable");
    let start = text.find("[digests").expect("digests");
    fs::write(whole.join("run.toml"), &text[..start]).expect("writable");
    fs::write(world.model("tokenizer.json"), format!("{tokenizer}\n")).expect("writable");
    let output = world.run(&["eval", "whole"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("has no digests").count(), 1, "{text}");
}

#[test]
fn what_is_read_is_not_replaced() {
    let world = World::new();
    let run = world.train(&small("lora"), "run");
    copy_folder(&world.path("data"), &run.join("data"));
    copy_folder(&world.path("model"), &run.join("model"));
    let before = entries(&run);
    let train = "train lora --out run --force --steps 2 --set data.max_length=24";
    let train: Vec<&str> = train.split(' ').collect();
    for (model, data, named) in [
        ("model", "run/data", "run/data"),
        ("run/model", "data", "run/model"),
    ] {
        let all = [&train[..], &["--model", model, "--data", data]].concat();
        let expected = format!("{named}: lies in run, which --force would remove");
        assert_refused(&world, &all, named, &[&expected]);
        assert_eq!(entries(&run), before);
    }
}
