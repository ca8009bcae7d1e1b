//! The promise of the format: runs, recipe files and settings of older programs mean what they
//! meant. `fixtures/format-0` was written by the program of commit d171da6; its README says how.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::world::{copy_folder, entries, read_json, read_tensors};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/format-0");

const RECIPES: [&str; 8] = [
    "at-moe",
    "glider",
    "hydralora",
    "lora",
    "moa",
    "mosld",
    "phatgoose",
    "samora",
];

/// Sums are ordered otherwise than by the program that wrote the fixtures: numbers may differ by so much of the largest one
/// beside them, since a few steps of Adam make more of a last bit.
const TOLERANCE: f64 = 1e-2;

/// A copy of the fixtures' model and data, to which the paths in their runs lead from inside.
struct Old {
    folder: TempDir,
}

impl Old {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["model", "data"] {
            copy_folder(&fixture(name), &folder.path().join(name));
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A copy of a fixture's run, named `run`, in place of an older one.
    fn run(&self, name: &str) -> PathBuf {
        let run = self.path("run");
        if run.exists() {
            std::fs::remove_dir_all(&run).expect("a folder");
        }
        copy_folder(&fixture(name), &run);
        run
    }

    fn start(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_molora"));
        command.args(arguments).current_dir(self.folder.path());
        command.env_remove("RUST_LOG");
        command.output().expect("the program starts")
    }

    /// Runs the program to a good end; what it printed.
    fn molora(&self, arguments: &[&str]) -> String {
        let output = self.start(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Trains with the common arguments of all fixtures and others, and returns the run.
    fn train(&self, recipe: &str, own: &[String]) -> PathBuf {
        let common = lines("common");
        let mut arguments = vec!["train", recipe, "--out", "trained", "--force"];
        // The runs of that time ended with their last states.
        arguments.extend(["--eval-every", "0"]);
        arguments.extend(common.iter().chain(own).map(String::as_str));
        self.molora(&arguments);
        self.path("trained")
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name)
}

fn lines(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(fixture(name)).expect("a fixture");
    text.lines().map(String::from).collect()
}

/// Whether the processor is like that of the fixtures, on which the same classes are predicted.
#[cfg(target_arch = "x86_64")]
fn is_exact() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
}

/// Whether the processor is like that of the fixtures, on which the same classes are predicted.
#[cfg(not(target_arch = "x86_64"))]
fn is_exact() -> bool {
    false
}

/// Two lists of numbers are close.
fn assert_numbers(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: as many numbers");
    let largest = expected.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    let bound = TOLERANCE * largest + 1e-6;
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        let gap = (found - expected).abs();
        assert!(
            gap <= bound,
            "{what}, number {place}: {found}, not {expected}"
        );
    }
}

/// A value holds all that an older one does; it may hold more.
fn assert_keeps(found: &Value, expected: &Value, what: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            for (key, expected) in expected {
                let what = format!("{what}.{key}");
                let found = found.get(key).unwrap_or_else(|| panic!("{what} is gone"));
                assert_keeps(found, expected, &what);
            }
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{what}");
            for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert_keeps(found, expected, &format!("{what}.{place}"));
            }
        }
        (Value::Number(found), Value::Number(expected)) if found != expected => {
            let number = |n: &serde_json::Number| n.as_f64().expect("a number");
            assert_numbers(&[number(found)], &[number(expected)], what);
        }
        _ => assert_eq!(found, expected, "{what}"),
    }
}

/// The records of a run's steps, without their times.
fn steps(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("steps.jsonl")).expect("steps");
    let record = |line: &str| {
        let mut record: Value = serde_json::from_str(line).expect("JSON");
        let fields = record.as_object_mut().expect("an object");
        fields.remove("seconds").expect("a time");
        record
    };
    text.lines().map(record).collect()
}

/// A finished run is an old one: steps, weights, scores and routing.
fn assert_same(found: &Path, expected: &Path) {
    let what = expected.display().to_string();
    let (found_steps, expected_steps) = (steps(found), steps(expected));
    assert_eq!(found_steps.len(), expected_steps.len(), "{what}: steps");
    for (found, expected) in found_steps.iter().zip(&expected_steps) {
        assert_keeps(
            found,
            expected,
            &format!("{what}: step {}", expected["step"]),
        );
    }
    assert_files(found, expected);
    let summary = |run: &Path| read_json(&run.join("summary.json"));
    for key in [
        "recipe",
        "seed",
        "steps",
        "tasks",
        "padding_share",
        "parameters",
    ] {
        let what = format!("{what}: {key}");
        assert_keeps(&summary(found)[key], &summary(expected)[key], &what);
    }
}

/// Whether a file is not compared as a whole: it holds times or paths, or classes where one may be
/// as likely as another.
fn is_left_out(name: &str) -> bool {
    match name {
        "run.toml" | "state.json" | "steps.jsonl" | "summary.json" => true,
        "predictions.json" => !is_exact(),
        _ => false,
    }
}

/// Every file of an old folder is in another one and says the same.
fn assert_files(found: &Path, expected: &Path) {
    for name in entries(expected) {
        let (found, expected) = (found.join(&name), expected.join(&name));
        let what = expected.display().to_string();
        assert!(found.exists(), "{} is missing", found.display());
        if expected.is_dir() {
            assert_files(&found, &expected);
        } else if name.ends_with(".safetensors") {
            assert_tensors(&found, &expected, &what);
        } else if !is_left_out(&name) {
            let mut old = read_json(&expected);
            // A run that is trained here names the model by its whole path.
            // Names in the specification may change as long as the old ones are read, which the
            // recipe files and settings here show.
            for key in ["base_model_name_or_path", "encoder", "adapter"] {
                old.as_object_mut().expect("an object").remove(key);
            }
            assert_keeps(&read_json(&found), &old, &what);
        }
    }
}

fn assert_tensors(found: &Path, expected: &Path, what: &str) {
    let (found, expected) = (read_tensors(found), read_tensors(expected));
    let names = |tensors: &crate::world::Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected), "{what}");
    for (name, (shape, values)) in &expected {
        assert_eq!(&found[name].0, shape, "{what}: {name}");
        let wide = |values: &[f32]| values.iter().map(|&v| v.into()).collect::<Vec<f64>>();
        let what = format!("{what}: {name}");
        assert_numbers(&wide(&found[name].1), &wide(values), &what);
    }
}

/// The scores that `molora eval` prints are those of the run's own file.
fn assert_scores(old: &Old, run: &Path) {
    let printed: Value =
        serde_json::from_str(&old.molora(&["eval", "run", "--json"])).expect("JSON");
    let stored = read_json(&run.join("eval.json"));
    let tasks = stored["tasks"].as_object().expect("tasks");
    for (task, score) in tasks {
        for key in ["metric", "value", "n", "accuracy"] {
            assert_eq!(printed["tasks"][task][key], score[key], "{task}: {key}");
        }
    }
    for key in ["mean", "mean_accuracy"] {
        assert_eq!(printed[key], stored[key], "{key}");
    }
}

#[test]
fn an_old_run_has_the_same_scores() {
    let old = Old::new();
    for name in RECIPES {
        let run = old.run(&format!("{name}/finished"));
        assert_scores(&old, &run);
    }
    let run = old.run("grown/three");
    assert_scores(&old, &run);
}

#[test]
fn an_old_stopped_run_goes_on_to_the_same_end() {
    let old = Old::new();
    for name in RECIPES {
        let run = old.run(&format!("{name}/stopped"));
        let before = steps(&run);
        old.molora(&["train", "--resume", "run"]);
        assert_same(&run, &fixture(&format!("{name}/finished")));
        assert_eq!(steps(&run)[..before.len()], before, "{name} trained again");
        assert_scores(&old, &run);
    }
}

#[test]
fn a_stage_of_an_old_run_is_begun_again() {
    let old = Old::new();
    for (name, stage) in [
        ("at-moe", "routers"),
        ("glider", "gates"),
        ("moa", "routers"),
        ("phatgoose", "gates"),
    ] {
        let run = old.run(&format!("{name}/finished"));
        old.molora(&["train", "--resume", "run", "--from-stage", stage]);
        assert_same(&run, &fixture(&format!("{name}/finished")));
    }
}

#[test]
fn experts_join_and_leave_old_runs() {
    let old = Old::new();
    let run = old.run("grown/two");
    old.molora(&["add-expert", "run", "--task", "weather"]);
    assert_same(&run, &fixture("grown/three"));
    let run = old.run("grown/three");
    old.molora(&["remove-expert", "run", "--task", "weather"]);
    assert_same(&run, &fixture("grown/two"));
}

#[test]
fn a_task_joins_and_leaves_old_mixtures() {
    let old = Old::new();
    copy_folder(&fixture("data/pets"), &old.path("data/birds"));
    for name in entries(&old.path("data/birds")) {
        let path = old.path("data/birds").join(name);
        let text = std::fs::read_to_string(&path).expect("a text");
        let text = text.replace("\"task\": \"pets\"", "\"task\": \"birds\"");
        std::fs::write(&path, text).expect("writable");
    }
    for name in ["hydralora", "mosld", "samora"] {
        let run = old.run(&format!("{name}/finished"));
        old.molora(&["add-expert", "run", "--task", "birds"]);
        let scores = old.molora(&["eval", "run"]);
        assert!(scores.contains("birds"), "{name}: {scores}");
        old.molora(&["remove-expert", "run", "--task", "birds"]);
        assert_same(&run, &fixture(&format!("{name}/finished")));
    }
}

#[test]
fn old_recipe_files_train_the_same() {
    let old = Old::new();
    for name in RECIPES {
        let own = lines(&format!("{name}/arguments"));
        let finished = fixture(&format!("{name}/finished"));
        // Named recipes have the rates of today.
        let file = fixture(&format!("recipes/{name}.toml"));
        let file = file.to_str().expect("UTF-8");
        assert_same(&old.train(file, &own), &finished);
    }
}

/// Every path of `--set` and every value of an axis that there was.
#[test]
fn old_settings_mean_what_they_meant() {
    let old = Old::new();
    for line in lines("outcomes") {
        let parts: Vec<&str> = line.split('\t').collect();
        let [setting, losses, predictions] = parts[..] else {
            panic!("{line}: expected three parts");
        };
        let mut settings = setting.split(' ');
        let name = settings.next().expect("a recipe");
        let file = fixture(&format!("recipes/{name}.toml"));
        let mut own = vec!["--steps".to_owned(), "20".to_owned()];
        own.extend(settings.flat_map(|setting| ["--set".to_owned(), setting.to_owned()]));
        let run = old.train(file.to_str().expect("UTF-8"), &own);
        let loss = |record: &Value| record["loss"].as_f64().expect("a loss");
        let found: Vec<f64> = steps(&run).iter().map(loss).collect();
        let expected: Vec<f64> = serde_json::from_str(losses).expect("numbers");
        assert_numbers(&found, &expected, setting);
        if is_exact() {
            let expected: Value = serde_json::from_str(predictions).expect("JSON");
            let found = &read_json(&run.join("predictions.json"))["tasks"];
            assert_eq!(found, &expected, "{setting}");
        }
    }
    let settings = lines("outcomes").len();
    assert_eq!(
        settings,
        lines("settings").len(),
        "an outcome of each setting"
    );
}

/// A run's file with a format in its first line, in place of the one that it has.
fn set_format(run: &Path, format: u32) {
    let path = run.join("run.toml");
    let text = std::fs::read_to_string(&path).expect("readable");
    let is_other = |line: &&str| !line.starts_with("format = ");
    let others: Vec<&str> = text.lines().filter(is_other).collect();
    let text = format!("format = {format}\n{}\n", others.join("\n"));
    std::fs::write(&path, text).expect("writable");
}

#[test]
fn a_run_of_a_newer_program_is_refused_and_left_as_it_is() {
    let old = Old::new();
    for (name, arguments) in [
        ("lora/finished", &["eval", "run"][..]),
        ("lora/stopped", &["train", "--resume", "run"][..]),
        (
            "moa/finished",
            &["train", "--resume", "run", "--from-stage", "routers"][..],
        ),
        ("grown/two", &["add-expert", "run", "--task", "weather"][..]),
        (
            "grown/three",
            &["remove-expert", "run", "--task", "weather"][..],
        ),
        ("lora/finished", &["export", "run", "--out", "exported"][..]),
    ] {
        let run = old.run(name);
        set_format(&run, 99);
        let before = entries(&run);
        let output = old.start(arguments);
        let errors = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        let lines: Vec<&str> = errors.lines().collect();
        let [line] = lines[..] else {
            panic!("{arguments:?}: expected one line, found {errors}");
        };
        assert!(
            line.starts_with("error: ") && line.contains("run.toml"),
            "{line}"
        );
        assert!(line.contains("99") && line.contains("format"), "{line}");
        assert_eq!(entries(&run), before, "{arguments:?} wrote something");
        assert!(
            !old.path("exported").exists(),
            "{arguments:?} wrote something"
        );
    }
}

/// The format of a new run; without one a run is of format 0.
#[test]
fn a_run_says_its_format() {
    let old = Old::new();
    let run = old.train("lora", &lines("lora/arguments"));
    let text = std::fs::read_to_string(run.join("run.toml")).expect("readable");
    let formats: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("format = "))
        .collect();
    assert_eq!(formats, ["format = 5"]);
    old.run("lora/finished");
    set_format(&old.path("run"), 1);
    assert_scores(&old, &old.path("run"));
}
