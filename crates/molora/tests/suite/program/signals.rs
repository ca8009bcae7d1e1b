//! The program under Ctrl-C, SIGTERM and a kill, at moments that nobody chose.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::world::{World, assert_same_run};

const STEPS: usize = 40;

/// Arguments of a run long enough to be hit.
fn arguments(out: &str) -> Vec<String> {
    let fixed = "train samora --model model --data data --set adapter.bank.rank=4 \
                 --set data.max_length=24 --set checkpoint_every=3 --set stages.0.micro_batch_size=7";
    let mut arguments: Vec<String> = fixed.split_whitespace().map(String::from).collect();
    arguments.extend([
        "--steps".into(),
        STEPS.to_string(),
        "--out".into(),
        out.into(),
    ]);
    arguments
}

fn spawn(world: &World, arguments: &[String]) -> Child {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = world.program(&arguments);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// Waits until the run has at least so many whole lines of steps.
fn wait_for_steps(run: &Path, count: usize) {
    let start = Instant::now();
    let lines = || {
        let text = std::fs::read(run.join("steps.jsonl")).unwrap_or_default();
        text.iter().filter(|&&byte| byte == b'\n').count()
    };
    while lines() < count {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "no step {count} in a minute"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(status.expect("kill is there").success());
}

fn finish(world: &World, out: &str) {
    let output = world.run(&["train", "--resume", out]);
    assert!(output.status.success(), "{}", last_line(&output));
}

fn last_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn an_interrupted_program_goes_on_to_the_same_end() {
    let world = World::new();
    let whole = arguments("whole");
    let status = spawn(&world, &whole).wait().expect("it ends");
    assert!(status.success());
    for (out, count, name) in [
        ("early", 1, "-INT"),
        ("late", 21, "-INT"),
        ("term", 13, "-TERM"),
    ] {
        let child = spawn(&world, &arguments(out));
        wait_for_steps(&world.path(out), count);
        signal(&child, name);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(130), "{}", last_line(&output));
        let text = last_line(&output);
        assert!(text.contains("stopped after step"), "{text}");
        assert!(
            text.ends_with(&format!("molora train --resume {out}")),
            "{text}"
        );
        finish(&world, out);
        assert_same_run(&world.path(out), &world.path("whole"));
    }
}

#[test]
fn a_killed_program_goes_on_to_the_same_end() {
    let world = World::new();
    let status = spawn(&world, &arguments("whole")).wait().expect("it ends");
    assert!(status.success());
    let mut child = spawn(&world, &arguments("run"));
    // Killed again and again; each time a few steps further.
    for count in [1, 9, 20, 29] {
        wait_for_steps(&world.path("run"), count);
        signal(&child, "-KILL");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), None, "{}", last_line(&output));
        child = spawn(&world, &["train", "--resume", "run"].map(String::from));
    }
    assert!(child.wait().expect("it ends").success());
    assert_same_run(&world.path("run"), &world.path("whole"));
}
