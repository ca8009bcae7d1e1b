//! Answers to records that have none, and scores of an adapter that no run holds, through the program.

use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;

use molora_train::run::train;
use serde_json::{Value, json};

use super::writer;
use crate::world::{World, small};

fn lines(text: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(text);
    let parse = |line: &str| serde_json::from_str(line).expect("JSON");
    text.lines().map(parse).collect()
}

/// The command that answers those records.
const PREDICT: [&str; 6] = [
    "predict",
    "run",
    "--task",
    "weather",
    "--input",
    "asked.jsonl",
];

/// A run, and its test records of a task without their answers.
fn world() -> (World, String) {
    let world = World::new();
    world.train(&small("samora"), "run");
    let text = std::fs::read(world.data("weather/test.jsonl")).expect("readable");
    let asked = lines(&text).into_iter().map(|record| {
        let line = json!({"id": record["id"], "input": record["input"]});
        format!("{line}\n")
    });
    let asked = asked.collect();
    (world, asked)
}

fn done(world: &World, arguments: &[&str]) -> Vec<u8> {
    let output = world.run(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    output.stdout
}

#[test]
fn predictions_are_those_of_the_evaluation() {
    let (world, asked) = world();
    std::fs::write(world.path("asked.jsonl"), &asked).expect("writable");
    let found = lines(&done(&world, &PREDICT));
    let printed = done(&world, &[&PREDICT[..], &["--output", "-"]].concat());
    assert_eq!(lines(&printed), found);
    assert!(!world.path("-").exists(), "a dash is standard output");
    let report = std::fs::read(world.path("run/predictions.json")).expect("readable");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let labels = ["sun", "rain", "snow"];
    let classes = report["tasks"]["weather"].as_array().expect("a list");
    assert_eq!(found.len(), classes.len());
    for (line, class) in found.iter().zip(classes) {
        let class = class.as_u64().expect("a class") as usize;
        assert_eq!(line["label"], labels[class]);
        let scores = line["scores"].as_object().expect("scores");
        let sum: f64 = scores.values().filter_map(Value::as_f64).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        let best = scores
            .values()
            .filter_map(Value::as_f64)
            .fold(0.0, f64::max);
        assert_eq!(scores[labels[class]].as_f64(), Some(best));
    }
    assert_eq!(found[0]["id"], "weather-test-0");

    // The same from standard input, as objects and as plain lines, without the data and offline.
    std::fs::rename(world.path("data"), world.path("elsewhere")).expect("renamed");
    let texts = asked.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        format!("{}\n", line["input"].as_str().expect("a text"))
    });
    for (text, has_ids) in [(asked.clone(), true), (texts.collect(), false)] {
        let arguments = ["predict", "run", "--task", "weather", "--input", "-"];
        let mut child = world
            .program(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(text.as_bytes()).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success());
        let again = lines(&output.stdout);
        for (place, (again, found)) in again.iter().zip(&found).enumerate() {
            assert_eq!(again["scores"], found["scores"]);
            match has_ids {
                true => assert_eq!(again["id"], found["id"]),
                false => assert_eq!(again["id"], (place + 1).to_string()),
            }
        }
    }
}

#[test]
fn a_stopped_prediction_goes_on() {
    let (world, asked) = world();
    std::fs::write(world.path("asked.jsonl"), asked.repeat(20)).expect("writable");
    let arguments = [&PREDICT[..], &["--output", "answers.jsonl"]].concat();
    done(&world, &arguments);
    let whole = std::fs::read(world.path("answers.jsonl")).expect("written");
    assert_eq!(lines(&whole).len(), 480);
    let output = world.run(&arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("answers.jsonl: it is there already"),
        "{text}"
    );

    // A kill in the middle of a line, behind the first records that were written together.
    std::fs::remove_file(world.path("answers.jsonl")).expect("removed");
    let mut child = world
        .program(&arguments)
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let part = || {
        let names = std::fs::read_dir(world.path(".")).expect("a folder");
        let mut names = names.map(|entry| entry.expect("an entry").path());
        names.find(|path| path.extension().is_some_and(|ending| ending == "part"))
    };
    let length = |path: &std::path::Path| path.metadata().map_or(0, |found| found.len());
    loop {
        let is_begun = part().is_some_and(|path| length(&path) > 0);
        if is_begun || child.try_wait().expect("a child").is_some() {
            break;
        }
    }
    drop(child.kill());
    child.wait().expect("it ends");
    if let Some(part) = part() {
        let text = std::fs::read(&part).expect("readable");
        // What somebody has changed meanwhile is no answer of the model.
        let edited = String::from_utf8_lossy(&text).replacen("\"label\":\"", "\"label\":\"no ", 1);
        std::fs::write(&part, &edited).expect("writable");
        let output = world.run(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.contains(".part: line 1: key \"label\" is \"no "),
            "{error}"
        );
        assert_eq!(std::fs::read(&part).ok(), Some(edited.into_bytes()));
        std::fs::write(&part, &text[..text.len() - 7]).expect("writable");
    }
    done(&world, &[&arguments[..], &["--force"]].concat());
    let again = std::fs::read(world.path("answers.jsonl")).expect("written");
    assert!(again == whole, "the same lines to the last byte");
    assert!(part().is_none());
}

#[test]
fn what_cannot_be_answered_is_named() {
    let (world, _) = world();
    let refused = |arguments: &[&str], words: &str| {
        let output = world.run(&[&["predict", "run"], arguments].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(words), "{text}");
    };
    std::fs::write(world.path("other.jsonl"), "{\"sentence\": \"w1\"}\n").expect("writable");
    let several = "it has several tasks, name one: answer, pets, weather";
    refused(&["--input", "other.jsonl"], several);
    refused(
        &["--input", "other.jsonl", "--task", "law"],
        "has no task `law`",
    );
    let task = ["--task", "weather", "--input"];
    let none = "other.jsonl:1: there is no column \"input\"";
    refused(&[&task[..], &["other.jsonl"]].concat(), none);
    refused(&[&task[..], &["none.jsonl"]].concat(), "none.jsonl");
    let empty = "{\"text\": \"w1\"}\n{\"text\": \" \"}\n";
    std::fs::write(world.path("empty.jsonl"), empty).expect("writable");
    let words =
        "empty.jsonl:2: key \"text\" holds the string \" \", expected a text that is not empty";
    refused(
        &[&task[..], &["empty.jsonl", "--output", "out.jsonl"]].concat(),
        words,
    );
    assert!(!world.path("out.jsonl").exists());
    let twice = ["other.jsonl", "--columns", "input=sentence,input=text"];
    let words = "--columns: input is given twice, as sentence and as text";
    refused(&[&task[..], &twice].concat(), words);
    let renamed = ["other.jsonl", "--columns", "input=sentence"];
    done(&world, &[&["predict", "run"], &task[..], &renamed].concat());
    let output = world.run(
        &[
            &["predict", "run"],
            &task[..],
            &["other.jsonl", "--columns", "a=b"],
        ]
        .concat(),
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("OURS is one of input, input_b"), "{text}");
}

#[test]
fn an_output_replaces_neither_the_input_nor_the_run() {
    let (world, asked) = world();
    std::fs::write(world.path("asked.jsonl"), &asked).expect("writable");
    for (out, words) in [
        ("asked.jsonl", "the output is the input"),
        ("run/eval.json", "a file of the run"),
    ] {
        let before = std::fs::read(world.path(out)).expect("readable");
        let output = world.run(&[&PREDICT[..], &["--output", out, "--force"]].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(words), "{text}");
        assert_eq!(std::fs::read(world.path(out)).expect("readable"), before);
    }
}

#[test]
fn standard_input_is_of_one_kind_and_utf8() {
    let (world, _) = world();
    let refused = |bytes: &[u8], words: &str| {
        let arguments = ["predict", "run", "--task", "weather", "--input", "-"];
        let mut program = world.program(&arguments);
        program
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = program.spawn().expect("the program starts");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(bytes).expect("it reads");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(words), "{text}");
    };
    let mixed =
        "standard input:2: key \"input\" is \"a JSON object\", but the first line is a text";
    refused(b"w0 w1\n{\"input\": \"w2\"}\n", mixed);
    refused(
        b"w0\nw1 caf\xe9\n",
        "standard input:2: no UTF-8 text: byte 7",
    );
}

#[test]
fn a_run_that_writes_no_answers_says_so() {
    let world = writer::world();
    let mut recipe = writer::recipe("lora", 2);
    recipe.data.writing.max_new_tokens = 0;
    let request = writer::request(&world, recipe, &["sums"], "run");
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    std::fs::write(world.path("asked.txt"), "1 plus 2\n").expect("writable");
    let output = world.run(&["predict", "run", "--input", "asked.txt"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("data.writing.max_new_tokens is 0"), "{text}");
}

/// Labels, choices, texts and numbers of a model that writes, and the task's own instruction.
#[test]
fn a_model_that_writes_answers_as_in_its_evaluation() {
    let world = writer::world();
    let tasks = ["pets", "sky", "sums", "length"];
    let request = writer::request(&world, writer::recipe("samora", 30), &tasks, "run");
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let report = std::fs::read(world.path("run/predictions.json")).expect("readable");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    for (task, key) in [
        ("pets", "label"),
        ("sky", "choice"),
        ("sums", "text"),
        ("length", "value"),
    ] {
        let test = world.path("texts").join(task).join("test.jsonl");
        let records = lines(&std::fs::read(test).expect("readable"));
        let asked = records.iter().map(|record| {
            let line = json!({"input": record["input"], "choices": record["choices"]});
            format!("{line}\n")
        });
        std::fs::write(world.path("asked.jsonl"), asked.collect::<String>()).expect("writable");
        let arguments = ["predict", "run", "--task", task, "--input", "asked.jsonl"];
        let found = lines(&done(&world, &arguments));
        let expected = report["tasks"][task].as_array().expect("a list");
        assert_eq!(found.len(), expected.len(), "{task}");
        for (found, expected) in found.iter().zip(expected) {
            let expected = match key {
                "label" => json!(["cat", "dog"][expected.as_u64().expect("a class") as usize]),
                _ => expected.clone(),
            };
            match (found[key].as_f64(), key) {
                // A model that trains differs from one that does not in the last digits.
                (Some(number), "value") => {
                    let far = number - expected.as_f64().expect("a number");
                    assert!(far.abs() < 1e-5, "{task}: {found}");
                }
                _ => assert_eq!(found[key], expected, "{task}: {found}"),
            }
        }
    }
}

#[test]
fn an_exported_adapter_is_scored_as_its_run() {
    let world = writer::world();
    let request = writer::request(&world, writer::recipe("lora", 20), &["pets", "sums"], "run");
    train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let asked = |arguments: &[&str]| {
        let output = world.run(&[&["eval"], arguments, &["--json"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let output = world.run(&["export", "run", "--out", "adapter"]);
    assert!(output.status.success());
    let more = [
        "--model",
        "writer",
        "--data",
        "texts",
        "--tasks",
        "pets,sums",
    ];
    let found = asked(&[&["adapter"][..], &more].concat());
    let expected = asked(&["run"]);
    for task in ["pets", "sums"] {
        let (found, expected) = (&found["tasks"][task], &expected["tasks"][task]);
        assert_eq!(found["value"], expected["value"], "{task}");
        let loss = |score: &Value| score["loss"].as_f64().expect("a number");
        assert!((loss(found) - loss(expected)).abs() < 1e-5, "{task}");
    }
}
