//! `molora` with a model by name.

use std::fs;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::process::Stdio;
use std::process::{Command, Output};
#[cfg(unix)]
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::server::{COMMIT, Fault, Server};

/// The bundled model's folder.
fn bundled() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join("datasets/models/all-MiniLM-L6-v2")
}

/// A hub that has the bundled model as `org/name`.
pub(super) fn bundled_hub() -> Server {
    let server = Server::empty();
    for entry in fs::read_dir(bundled()).expect("the bundled model") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        server.put(&name, &fs::read(&path).expect("readable"));
    }
    server
}

/// Runs the program with this hub.
fn molora(server: &Server, folder: &Path, offline: &str, arguments: &[&str]) -> Output {
    let mut command = program(server, folder, arguments);
    command.env("HF_HUB_OFFLINE", offline);
    command.output().expect("the program starts")
}

/// The program with this hub and no other variable of a hub.
fn program(server: &Server, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_molora"));
    for variable in [
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "RUST_LOG",
    ] {
        command.env_remove(variable);
    }
    command
        .args(arguments)
        .current_dir(folder)
        .env("HF_ENDPOINT", &server.endpoint)
        .env("HF_HOME", server.home());
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn text(output: Output) -> String {
    assert!(output.status.success(), "{}", errors(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A temporary folder with the small task `data/pets`.
pub(super) fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let task = folder.path().join("data/pets");
    fs::create_dir_all(&task).expect("a new folder");
    let meta = json!({"task": "pets", "type": "classification", "instruction": "Which?",
        "labels": ["cat", "dog"], "metric": "accuracy"});
    fs::write(task.join("task.json"), meta.to_string()).expect("writable");
    for split in ["train", "validation", "test"] {
        let line = |index: usize| {
            let label = ["cat", "dog"][index % 2];
            let record = json!({"id": format!("pets-{split}-{index}"), "task": "pets",
                "type": "classification", "instruction": "Which?", "input": format!("a {label}"),
                "input_b": null, "choices": null, "label": index % 2, "output": label});
            format!("{record}\n")
        };
        let lines: String = (0..32).map(line).collect();
        fs::write(task.join(format!("{split}.jsonl")), lines).expect("writable");
    }
    folder
}

fn train(model: &str) -> Vec<&str> {
    let arguments = "train lora --data data --steps 2 --out run";
    arguments
        .split_whitespace()
        .chain(["--model", model])
        .collect()
}

#[test]
fn train_by_name_and_evaluate_offline() {
    let (server, folder) = (bundled_hub(), folder());
    fs::write(server.home().join("token"), "hf_file\n").expect("writable");
    server.fail("model.safetensors", &[Fault::Cut(1 << 20)]);
    let output = molora(&server, folder.path(), "0", &train("org/name"));
    let progress = errors(&output);
    text(output);
    for expected in ["downloading model.safetensors: ", "trying again"] {
        assert!(progress.contains(expected), "{progress}");
    }
    for unwanted in ["README.md", "LICENSE", "NOTICE"] {
        assert_eq!(server.requests(unwanted).len(), 0, "{unwanted}");
    }
    let authorized =
        |r: &super::server::Request| r.authorization.as_deref() == Some("Bearer hf_file");
    assert!(server.requests("").iter().all(authorized));
    assert_config(folder.path());
    let before = server.requests("").len();
    let evaluate = ["eval", "run", "--json"];
    let offline = text(molora(&server, folder.path(), "1", &evaluate));
    // The commit is in the cache: nobody has to be asked for it online either.
    assert_eq!(
        text(molora(&server, folder.path(), "0", &evaluate)),
        offline
    );
    assert_eq!(server.requests("").len(), before);
    let eval = fs::read_to_string(folder.path().join("run/eval.json")).expect("readable");
    let eval: serde_json::Value = serde_json::from_str(&eval).expect("JSON");
    let offline: serde_json::Value = serde_json::from_str(&offline).expect("JSON");
    assert_eq!(offline["mean"], eval["mean"]);
}

/// The run names the commit, and the adapter the model as the hub does.
fn assert_config(folder: &Path) {
    let config = fs::read_to_string(folder.join("run/run.toml")).expect("readable");
    let line = format!("model = \"hub:org/name@{COMMIT}\"");
    assert!(config.lines().any(|found| found == line), "{config}");
    let adapter = fs::read(folder.join("run/adapter_config.json")).expect("readable");
    let adapter: serde_json::Value = serde_json::from_slice(&adapter).expect("JSON");
    assert_eq!(adapter["base_model_name_or_path"], "org/name");
}

/// The program ends with code 1 and one line; returns it.
fn refused(server: &Server, folder: &TempDir, offline: &str, model: &str) -> String {
    let output = molora(server, folder.path(), offline, &train(model));
    let errors = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(!folder.path().join("run").exists(), "{model} left a folder");
    let [line] = errors.lines().collect::<Vec<_>>()[..] else {
        panic!("expected one line, found {errors}");
    };
    line.replace(&server.endpoint, "HUB")
}

#[test]
fn models_that_cannot_be_had() {
    let (server, folder) = (bundled_hub(), folder());
    let line = refused(&server, &folder, "0", "org/other");
    let text = "error: org/other: no such folder here, and as a model on the Hub: HUB has no \
                model org/other (404)";
    assert_eq!(line, text);
    let line = refused(&server, &folder, "0", "hub:org/other");
    assert_eq!(line, "error: HUB has no model org/other (404)");
    let line = refused(&server, &folder, "1", "org/name");
    assert!(line.contains("HF_HUB_OFFLINE is set"), "{line}");
    let before = server.requests("").len();
    let line = refused(&server, &folder, "0", "./org/name");
    let text = "; a model is a folder, bundled:NAME, or org/name on the Hub";
    assert!(
        line.starts_with("error: ./org/name: No such file"),
        "{line}"
    );
    assert!(line.ends_with(text), "{line}");
    assert_eq!(server.requests("").len(), before, "a path is no name");
}

/// What is wrong with a request is said before the hub is asked for anything.
#[test]
fn a_request_is_checked_before_the_model_is_fetched() {
    let (server, folder) = (bundled_hub(), folder());
    for (command, expected) in [
        (
            "train lora --until-stage jiont",
            "error: recipe `lora`: no stage is named jiont; there are: joint",
        ),
        (
            "train lora --set adapter.bank.rank=0",
            "error: recipe `lora`: adapter.bank",
        ),
        (
            "train lora --set stages.0.trainable=[]",
            "error: recipe `lora`: stages.0.trainable is empty",
        ),
        (
            "train lora --tasks pets,pets",
            "error: task selection: task \"pets\" is named twice",
        ),
        ("train lora --tasks pest", "no task \"pest\""),
        (
            "train samora --set stages.0.tasks=[\"x\"]",
            "is no task of this run: pets",
        ),
        (
            "train moa --steps 1 --tasks pets --device cuda",
            "error: device cuda: ",
        ),
        (
            "train glider --set adapter.router.selection.top_k=1 --set instructions.encoder=./no",
            "error: ./no: No such file",
        ),
        (
            "compare lora,samora --seeds 1 --set stages.0.schedule.warmup=2",
            "stages.0.schedule.warmup is 2",
        ),
        (
            "compare lora,samora --seeds 1 --tune stages.0.steps=1,2",
            "error: --tune: stages.0.steps 1 gives lora 1 steps instead of 600",
        ),
        (
            "train lora --set data.max_length=0",
            "data.max_length is 0, expected at least 1",
        ),
        (
            "compare lora,moa --seeds 1 --budget steps --set stages.0.steps=7",
            "error: budget steps, but lora has 7 steps",
        ),
    ] {
        let mut arguments: Vec<&str> = command.split_whitespace().collect();
        arguments.extend(["--model", "org/name", "--data", "data", "--out", "run"]);
        let output = molora(&server, folder.path(), "0", &arguments);
        let errors = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{command}: {errors}");
        assert!(errors.contains(expected), "{command}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{command}: {errors}");
        assert_eq!(server.requests("").len(), 0, "{command} asked the hub");
        assert!(
            !folder.path().join("run").exists(),
            "{command} left a folder"
        );
    }
}

/// The same of a base model that is to be scored.
#[test]
fn an_evaluation_is_checked_before_the_model_is_fetched() {
    let (server, folder) = (bundled_hub(), folder());
    for (options, expected) in [
        ("--data data --set foo=1", "unknown field `foo`"),
        (
            "--data data --set data.writing.prompt=foo",
            "--set data.writing.prompt=foo",
        ),
        (
            "--data data --set data.writing.max_length=0",
            "data.writing.max_length is 0",
        ),
        ("--data data --tasks pest", "no task \"pest\""),
        ("--data nowhere", "nowhere"),
        (
            "--limit 3",
            "org/name: no such folder; a base model on the Hub is scored with --data",
        ),
    ] {
        let arguments: Vec<&str> = ["eval", "org/name"]
            .into_iter()
            .chain(options.split(' '))
            .collect();
        let output = molora(&server, folder.path(), "0", &arguments);
        let errors = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{options}: {errors}");
        assert!(errors.contains(expected), "{options}: {errors}");
        assert_eq!(server.requests("").len(), 0, "{options} asked the hub");
    }
}

#[test]
fn a_folder_wins_over_a_name() {
    let (server, folder) = (bundled_hub(), folder());
    fs::create_dir_all(folder.path().join("org/name")).expect("a new folder");
    let output = molora(&server, folder.path(), "0", &train("org/name"));
    assert!(
        errors(&output).contains("error: org/name/"),
        "{}",
        errors(&output)
    );
    assert_eq!(server.requests("").len(), 0);
}

#[test]
fn all_runs_of_a_comparison_use_one_commit() {
    let (server, folder) = (bundled_hub(), folder());
    let arguments = "compare lora,hydralora --data data --steps 1 --seeds 1 --out out --model \
                     org/name --set data.sampling.batch_size=4";
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    text(molora(&server, folder.path(), "0", &arguments));
    assert_eq!(server.requests("/api/").len(), 1);
    let plan = fs::read_to_string(folder.path().join("out/compare.toml")).expect("readable");
    let line = format!("model = \"hub:org/name@{COMMIT}\"");
    assert!(plan.lines().any(|found| found == line), "{plan}");
}

/// Waits until something holds, and gives up after a minute.
#[cfg(unix)]
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_download_and_the_same_command_goes_on() {
    let (server, folder) = (bundled_hub(), folder());
    server.hub().is_slow = true;
    let mut command = program(&server, folder.path(), &train("org/name"));
    command.stderr(Stdio::piped());
    let child = command.spawn().expect("the program starts");
    let part = format!("hub/models--org--name/blobs/{COMMIT}-model.safetensors.part");
    let part = server.home().join(part);
    let size = || fs::metadata(&part).map_or(0, |found| found.len());
    wait_until("no part", || size() > 0);
    let id = child.id().to_string();
    let status = Command::new("kill").args(["-INT", &id]).status();
    assert!(status.expect("kill is there").success());
    let output = child.wait_with_output().expect("the program ends");
    let errors = errors(&output);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    let line = "stopped while model.safetensors of org/name was downloaded; the same command \
                goes on with it";
    assert_eq!(errors.lines().last(), Some(line));
    let range = format!("bytes={}-", size());
    server.hub().is_slow = false;
    text(molora(&server, folder.path(), "0", &train("org/name")));
    assert_eq!(server.ranges("model.safetensors"), [None, Some(range)]);
}
