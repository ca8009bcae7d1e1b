//! Published tables: every suite on tiny files of the same form, from the files to the table.

use std::path::{Path, PathBuf};
use std::process::Output;

use molora_train::suite;
use serde_json::Value;

use super::writer;
use crate::world::{World, copy_folder, read_json};

/// The tiny files of a suite.
fn tiny(suite: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/suites")
        .join(suite)
}

/// Reproduces a suite with the tiny decoder, in a few steps with one seed.
fn reproduce(world: &World, suite: &str, recipes: &str, more: &[&str]) -> Output {
    let data = tiny(suite);
    let data = data.to_str().expect("UTF-8");
    let mut arguments = vec!["reproduce", suite, "--model", "writer", "--data", data];
    arguments.extend([
        "--recipes",
        recipes,
        "--seeds",
        "1",
        "--steps",
        "2",
        "--eval-every",
        "0",
    ]);
    for set in [
        "data.writing.max_length=40",
        "data.writing.max_new_tokens=2",
        "data.sampling.batch_size=4",
        "adapter.bank.rank=2",
        "adapter.targets=all-linear",
    ] {
        arguments.extend(["--set", set]);
    }
    arguments.extend(more);
    world.run(&arguments)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn result(world: &World, out: &str) -> Value {
    read_json(&world.path(out).join("reproduce.json"))
}

#[test]
fn every_suite_runs_from_its_files_to_its_table() {
    let world = writer::world();
    for name in suite::names() {
        let found = reproduce(&world, name, "lora", &[]);
        let (shown, said) = (text(&found.stdout), text(&found.stderr));
        assert!(found.status.success(), "{name}: {said}");
        assert!(shown.contains("lora, ours"), "{name}: {shown}");
        assert!(
            shown.contains("What differs from the papers:"),
            "{name}: {shown}"
        );
        assert!(shown.contains("base model: ours writer"), "{name}: {shown}");
        let folder = format!("runs/{name}");
        let result = result(&world, &folder);
        let ours = result["ours"]["lora"].as_object().expect("scores");
        assert!(!ours.is_empty(), "{name}");
        for key in result["keys"].as_array().expect("a list") {
            let key = key.as_str().expect("a name");
            let score = ours[key]["mean"].as_f64().expect("a score");
            assert!((-1.0..=1.0).contains(&score), "{name}, {key}: {score}");
        }
        let table = std::fs::read_to_string(world.path(&folder).join("reproduce.md"));
        let table = table.expect("a table");
        assert!(table.is_ascii() && table.starts_with("# "), "{name}");
    }
}

/// The papers' rows stand beside ours, those of other recipes below.
#[test]
fn the_papers_numbers_stand_beside_ours() {
    let world = writer::world();
    let found = reproduce(&world, "glue", "lora,samora", &["--limit", "4"]);
    let shown = text(&found.stdout);
    assert!(found.status.success(), "{}", text(&found.stderr));
    let header = shown
        .lines()
        .find(|line| line.contains("| task"))
        .expect("a header");
    for column in ["LoRA [1]", "lora, ours", "SAMoRA [1]", "samora, ours"] {
        assert!(header.contains(column), "{header}");
    }
    let cola = shown
        .lines()
        .find(|line| line.contains("| cola"))
        .expect("a row");
    assert!(cola.contains("64.06") && cola.contains("69.75"), "{cola}");
    assert!(
        shown.contains("matched") && shown.contains("mismatched"),
        "{shown}"
    );
    assert!(shown.contains("[1] SAMoRA, arXiv:2604.19048, mean of seven tasks; Qwen3-8B"));
    assert!(
        shown.contains("- MTL-LoRA [1]: cola 66.32, mnli 91.93, mean 89.18"),
        "{shown}"
    );
    assert!(
        shown.contains("- records: at most 4 of each split"),
        "{shown}"
    );
    assert!(shown.contains("- rank: ours 2, the papers' 8"), "{shown}");
    assert!(
        shown.contains("- data.writing.max_length: ours 40, the papers' 256"),
        "{shown}"
    );
    assert!(
        shown.contains("- steps: ours 2, the papers' 7 (1 epochs of these records)"),
        "{shown}"
    );
    // Asked again, nothing is trained again and the result is the same.
    let before = result(&world, "runs/glue");
    let again = reproduce(&world, "glue", "lora,samora", &["--limit", "4"]);
    assert!(text(&again.stderr).contains("run 2 of 2: samora, seed 0, finished before"));
    assert_eq!(result(&world, "runs/glue"), before);
    // With other settings it is another reproduction.
    let other = reproduce(&world, "glue", "lora,samora", &["--limit", "3"]);
    assert!(!other.status.success());
    assert!(
        text(&other.stderr).contains("it has another limit of records"),
        "{}",
        text(&other.stderr)
    );
}

/// GLUE's texts are read by an encoder too, without prompts.
#[test]
fn an_encoder_reads_what_it_can() {
    let world = World::new();
    let data = tiny("glue");
    let data = data.to_str().expect("UTF-8");
    let arguments = [
        "reproduce",
        "glue",
        "--model",
        "model",
        "--data",
        data,
        "--recipes",
        "lora",
    ];
    let more = [
        "--seeds",
        "1",
        "--steps",
        "2",
        "--eval-every",
        "0",
        "--set",
        "data.sampling.batch_size=4",
        "--set",
        "data.max_length=24",
    ];
    let found = world.run(&[&arguments[..], &more[..]].concat());
    assert!(found.status.success(), "{}", text(&found.stderr));
    let shown = text(&found.stdout);
    assert!(
        shown.contains("an encoder reads the texts without the suite's prompts"),
        "{shown}"
    );
    let refused = [
        "reproduce",
        "commonsense",
        "--model",
        "model",
        "--recipes",
        "lora",
        "--set",
        "data.max_length=24",
        "--data",
    ];
    let data = tiny("commonsense");
    let found = world.run(&[&refused[..], &[data.to_str().expect("UTF-8")]].concat());
    assert!(
        text(&found.stderr).contains("an encoder writes no answers"),
        "{}",
        text(&found.stderr)
    );
}

#[test]
fn suites_are_listed_shown_and_changed() {
    let world = writer::world();
    let listed = text(&world.run(&["reproduce", "--list"]).stdout);
    for name in suite::names() {
        assert!(listed.contains(name), "{listed}");
    }
    let shown = text(&world.run(&["reproduce", "flan", "--show"]).stdout);
    assert_eq!(Some(&shown[..]), suite::source("flan"));
    let own = shown.replace("name = \"flan\"", "name = \"mine\"");
    std::fs::write(world.path("mine.toml"), own).expect("written");
    copy_folder(&tiny("flan"), &world.path("files"));
    let more = [
        "--recipes",
        "lora",
        "--seeds",
        "1",
        "--steps",
        "1",
        "--eval-every",
        "0",
        "--tasks",
        "sst2",
    ];
    let set = [
        "--set",
        "data.writing.max_length=40",
        "--set",
        "data.sampling.batch_size=4",
    ];
    let first = [
        "reproduce",
        "mine.toml",
        "--model",
        "writer",
        "--data",
        "files",
    ];
    let found = world.run(&[&first[..], &more[..], &set[..]].concat());
    assert!(found.status.success(), "{}", text(&found.stderr));
    assert!(text(&found.stdout).contains("task rte is left out, as asked"));
    assert!(world.path("runs/mine/reproduce.md").is_file());
    let unknown = world.run(&["reproduce", "gleu", "--data", "files"]);
    assert!(
        text(&unknown.stderr).contains("no suite `gleu`"),
        "{}",
        text(&unknown.stderr)
    );
}
