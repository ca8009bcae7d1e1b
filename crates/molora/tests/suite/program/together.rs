//! Several processes on one run, and a program to which nobody listens.

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::refusal::assert_refused;
use crate::world::{World, assert_same_run, entries};

/// A run of many short steps.
const TRAIN: &str = "train samora --model model --data data --set adapter.bank.rank=4 \
                     --set data.max_length=24 --set checkpoint_every=3 --steps 60";

fn arguments(out: &str) -> Vec<String> {
    let own = [String::from("--out"), out.into()];
    TRAIN
        .split_whitespace()
        .map(String::from)
        .chain(own)
        .collect()
}

fn spawn(world: &World, arguments: &[String]) -> Child {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = world.program(&arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}

/// Waits until a run has a configuration, which it has under its lock.
fn wait_for_run(world: &World, out: &str) {
    let start = Instant::now();
    while !world.path(out).join("run.toml").exists() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "no run in a minute"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_second_of_two_writers_is_refused_and_changes_nothing() {
    let world = World::new();
    let mut whole = spawn(&world, &arguments("whole"));
    assert!(whole.wait().expect("it ends").success());
    let mut first = spawn(&world, &arguments("run"));
    wait_for_run(&world, "run");
    let named = format!("run: process {} is writing here", first.id());
    let forced = [arguments("run"), vec!["--force".into()]].concat();
    let forced: Vec<&str> = forced.iter().map(String::as_str).collect();
    for command in [
        &["train", "--resume", "run"][..],
        &forced,
        &["recover", "run"],
    ] {
        assert_refused(&world, command, "the second", &[&named]);
    }
    assert!(first.wait().expect("it ends").success());
    assert_same_run(&world.path("run"), &world.path("whole"));
    assert!(!entries(&world.path("run")).contains(&".lock".into()));
}

#[test]
fn of_many_that_begin_at_once_one_trains() {
    let world = World::new();
    let mut whole = spawn(&world, &arguments("whole"));
    assert!(whole.wait().expect("it ends").success());
    let many: Vec<Child> = (0..6).map(|_| spawn(&world, &arguments("run"))).collect();
    let ends = many
        .into_iter()
        .map(|mut child| child.wait().expect("it ends"));
    assert_eq!(ends.filter(|end| end.success()).count(), 1);
    assert_same_run(&world.path("run"), &world.path("whole"));
}

#[test]
fn a_closed_or_full_standard_error_ends_nothing() {
    let world = World::new();
    let mut whole = spawn(&world, &arguments("whole"));
    assert!(whole.wait().expect("it ends").success());
    let arguments = arguments("closed");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = world.program(&arguments);
    // As one who wants to see everything; warnings and records of the log fail too.
    command.env("RUST_LOG", "debug").stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
    drop(child.stderr.take());
    assert!(child.wait().expect("it ends").success());
    assert_same_run(&world.path("closed"), &world.path("whole"));
    if let Ok(full) = File::options().write(true).open("/dev/full") {
        let arguments = [&arguments[..arguments.len() - 1], &["full"]].concat();
        let mut command = world.program(&arguments);
        command.stdout(Stdio::null()).stderr(full);
        assert!(command.status().expect("it starts").success());
        assert_same_run(&world.path("full"), &world.path("whole"));
    }
}
