use std::fs;

use super::super::record::Label;
use super::*;

const META: &str = r#"{"task": "pets", "type": "classification", "instruction": "Which?",
 "labels": ["cat", "dog"], "metric": "f1_dog (accuracy second)", "chance": 0.5}"#;

const LABELS: [&str; 2] = ["cat", "dog"];

fn line(label: usize) -> String {
    format!(
        r#"{{"id": "pets-x", "task": "pets", "type": "classification", "instruction": "Which?", "input": "Purr", "input_b": null, "choices": null, "label": {label}, "output": "{}"}}"#,
        LABELS[label]
    )
}

/// A folder `pets` with 20 good records in each split.
struct Pets {
    root: tempfile::TempDir,
}

impl Pets {
    fn new() -> Self {
        let pets = Self {
            root: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(pets.dir()).unwrap();
        fs::write(pets.dir().join("task.json"), META).unwrap();
        for split in ["train", "validation", "test"] {
            let lines: Vec<String> = (0..20).map(|index| line(index % 2)).collect();
            let text = lines.join("\n") + "\n";
            fs::write(pets.dir().join(format!("{split}.jsonl")), text).unwrap();
        }
        pets
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("pets")
    }

    /// Writes a file and returns the error message, without the folder's path.
    fn message_with(file: &str, text: &str) -> String {
        let pets = Self::new();
        fs::write(pets.dir().join(file), text).unwrap();
        pets.message()
    }

    /// The message where line 17 of the training split is `replaced`.
    fn message_with_line(replaced: &str) -> String {
        let mut lines: Vec<String> = (0..20).map(|index| line(index % 2)).collect();
        lines[16] = replaced.into();
        Self::message_with("train.jsonl", &lines.join("\n"))
    }

    fn message_with_meta(from: &str, to: &str) -> String {
        assert!(META.contains(from));
        Self::message_with("task.json", &META.replace(from, to))
    }

    fn message(&self) -> String {
        let message = load_task(&self.dir()).unwrap_err().to_string();
        assert!(!message.contains('\n'), "one line: {message}");
        let root = self.dir().display().to_string() + "/";
        assert!(message.contains(&root), "names the file: {message}");
        message.replace(&root, "")
    }
}

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/tasks")
}

#[test]
fn a_good_task_is_read() {
    let pets = Pets::new();
    let task = load_task(&pets.dir()).unwrap();
    assert_eq!(task.meta.labels, LABELS);
    assert_eq!(task.meta.metric.as_ref().unwrap().to_string(), "f1_dog");
    assert_eq!(task.split(Split::Train).len(), 20);
    assert_eq!(task.test[1].label, Label::Index(1));
    assert_eq!(task.test[1].output, "dog");
    assert!(require_classification(&[task]).is_ok());
}

#[test]
fn blank_lines_are_fine_only_at_the_end() {
    let pets = Pets::new();
    let good = format!("{}\r\n{}\r\n\n  \n", line(0), line(1));
    fs::write(pets.dir().join("test.jsonl"), good).unwrap();
    assert_eq!(load_task(&pets.dir()).unwrap().test.len(), 2);
    let message = Pets::message_with("test.jsonl", &format!("{}\n\n{}\n", line(0), line(1)));
    assert_eq!(message, "test.jsonl:2: blank line between records");
}

#[test]
fn broken_json_is_located() {
    let message = Pets::message_with_line("{\"id\": \"a\", \"task\"");
    assert!(
        message.starts_with("train.jsonl:17: broken JSON: EOF"),
        "{message}"
    );
    assert!(message.ends_with("at column 18"), "{message}");
    let message = Pets::message_with_line("[1]");
    assert!(
        message.contains(":17: broken JSON: invalid type: sequence, expected an object"),
        "{message}"
    );
    let message = Pets::message_with("task.json", "{\n\"task\": }");
    assert!(message.starts_with("task.json: broken JSON: "), "{message}");
    assert!(message.ends_with("at line 2 column 9"), "{message}");
}

#[test]
fn missing_and_wrongly_typed_keys_are_named() {
    for key in [
        "id",
        "task",
        "type",
        "instruction",
        "input",
        "input_b",
        "choices",
        "label",
    ] {
        let renamed = line(0).replace(&format!("\"{key}\":"), "\"other\":");
        let expected = format!("train.jsonl:17: key \"{key}\" is missing");
        assert_eq!(Pets::message_with_line(&renamed), expected);
    }
    let check = |from: &str, to: &str, expected: &str| {
        let message = Pets::message_with_line(&line(0).replace(from, to));
        assert_eq!(message, format!("train.jsonl:17: key {expected}"));
    };
    check(
        "\"input\": \"Purr\"",
        "\"input\": 5",
        "\"input\" holds the number 5, expected a string",
    );
    check(
        "\"input_b\": null",
        "\"input_b\": []",
        "\"input_b\" holds a list of 0 items, expected a string or null",
    );
    check(
        "\"label\": 0",
        "\"label\": \"cat\"",
        "\"label\" holds the string \"cat\", expected a whole number",
    );
    check(
        "\"label\": 0",
        "\"label\": 0.5",
        "\"label\" holds the number 0.5, expected a whole number",
    );
    check(
        "\"choices\": null",
        "\"choices\": [\"a\"]",
        "\"choices\" holds a list of 1 items, expected null for this type of task",
    );
}

#[test]
fn labels_out_of_range_are_errors() {
    for found in ["2", "-1", "77"] {
        let replaced = line(0).replace("\"label\": 0", &format!("\"label\": {found}"));
        let expected =
            format!("train.jsonl:17: label {found} is out of range: there are 2 labels (0 to 1)");
        assert_eq!(Pets::message_with_line(&replaced), expected);
    }
}

#[test]
fn records_must_agree_with_the_task() {
    let check = |from: &str, to: &str, expected: &str| {
        let message = Pets::message_with_line(&line(0).replace(from, to));
        assert_eq!(message, format!("train.jsonl:17: key {expected}"));
    };
    check(
        "\"pets\"",
        "\"cars\"",
        "\"task\" is \"cars\", but task.json says \"pets\"",
    );
    check(
        "\"classification\"",
        "\"regression\"",
        "\"type\" is \"regression\", but task.json says \"classification\"",
    );
    check(
        "\"cat\"",
        "\"dog\"",
        "\"output\" is \"dog\", but label 0 is \"cat\" in task.json",
    );
}

#[test]
fn files_have_to_be_there_and_hold_records() {
    for file in ["train.jsonl", "validation.jsonl", "test.jsonl"] {
        let pets = Pets::new();
        fs::remove_file(pets.dir().join(file)).unwrap();
        let message = pets.message();
        assert!(
            message.starts_with(&format!("{file}: cannot be read: ")),
            "{message}"
        );
    }
    let message = Pets::message_with("validation.jsonl", "\n \n");
    assert_eq!(message, "validation.jsonl: holds no records");
}

#[test]
fn task_json_is_checked() {
    let check = |from: &str, to: &str, expected: &str| {
        assert_eq!(
            Pets::message_with_meta(from, to),
            format!("task.json: {expected}")
        );
    };
    let too_few = "lists 0 labels, a classification task needs at least 2";
    check(
        r#"["cat", "dog"]"#,
        "null",
        &format!("key \"labels\" {too_few}"),
    );
    check(
        r#"["cat", "dog"]"#,
        "[]",
        &format!("key \"labels\" {too_few}"),
    );
    check(
        r#"["cat", "dog"]"#,
        r#"["dog", "cat", "dog"]"#,
        "label \"dog\" is listed twice, at 0 and 2",
    );
    check(
        r#"["cat", "dog"]"#,
        r#"["dog", 3]"#,
        "key \"labels\" holds the number 3, expected a list of strings",
    );
    check("\"metric\"", "\"metrics\"", "key \"metric\" is missing");
    check(
        "f1_dog",
        "f2_dog",
        "unknown metric \"f2_dog (accuracy second)\", expected accuracy, macro_f1, \
         matthews_correlation or f1_<label>",
    );
    check(
        "\"classification\"",
        "\"clustering\"",
        "key \"type\" is \"clustering\", but it has to be one of classification, \
         multiple_choice, generation, regression",
    );
}

#[test]
fn the_folder_has_the_name_of_its_task() {
    let pets = Pets::new();
    let other = pets.root.path().join("other");
    fs::rename(pets.dir(), &other).unwrap();
    let message = load_task(&other).unwrap_err().to_string();
    let expected = "key \"task\" is \"pets\", but the folder's name is \"other\"";
    assert!(message.ends_with(expected), "{message}");
}

#[test]
fn other_kinds_are_read_but_not_trained() {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, kind: &str, metric: &str, record: &str| {
        let dir = root.path().join(name);
        fs::create_dir(&dir).unwrap();
        let meta = format!(
            r#"{{"task": "{name}", "type": "{kind}", "instruction": "", "labels": null, "metric": "{metric}"}}"#
        );
        fs::write(dir.join("task.json"), meta).unwrap();
        let line = format!(
            r#"{{"id": "", "task": "{name}", "type": "{kind}", "instruction": "", "input": "a", "input_b": "", {record}}}"#
        );
        for split in ["train", "validation", "test"] {
            fs::write(dir.join(format!("{split}.jsonl")), &line).unwrap();
        }
    };
    let choices = r#""choices": ["a", "b"], "label": 1, "output": "b""#;
    write("quiz", "multiple_choice", "accuracy", choices);
    write(
        "sums",
        "generation",
        "exact match; also NLL",
        r#""choices": null, "label": null, "output": "3""#,
    );
    write(
        "near",
        "regression",
        "spearman",
        r#""choices": null, "label": 2.5, "output": "2.5""#,
    );
    let tasks = load_tasks(root.path(), None).unwrap();
    let labels: Vec<&Label> = tasks.iter().map(|task| &task.test[0].label).collect();
    assert_eq!(
        labels,
        [&Label::Number(2.5), &Label::Index(1), &Label::Text]
    );
    let message = require_classification(&tasks).unwrap_err().to_string();
    assert_eq!(
        message,
        "a probe tells the classes of classification tasks alone: near is regression, quiz is \
         multiple_choice, sums is generation; choose others"
    );
}

#[test]
fn bundled_tasks_are_read_in_the_order_asked_for() {
    let names = ["banking77", "clinc_domain", "sms_spam", "stackoverflow"];
    assert_eq!(list_tasks(&bundled()).unwrap(), names);
    let tasks = load_tasks(&bundled(), None).unwrap();
    let counts: Vec<[usize; 4]> = tasks
        .iter()
        .map(|task| {
            [
                task.meta.labels.len(),
                task.train.len(),
                task.validation.len(),
                task.test.len(),
            ]
        })
        .collect();
    let expected = [
        [77, 3000, 462, 1000],
        [10, 3000, 500, 1000],
        [2, 3000, 500, 1000],
        [20, 3000, 500, 1000],
    ];
    assert_eq!(counts, expected);
    let names = ["sms_spam".to_string(), "banking77".to_string()];
    let tasks = load_tasks(&bundled(), Some(&names)).unwrap();
    assert_eq!(
        tasks.iter().map(|task| &task.meta.name).collect::<Vec<_>>(),
        ["sms_spam", "banking77"]
    );
}

#[test]
fn wrong_selections_are_errors() {
    let message = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        load_tasks(&bundled(), Some(&names))
            .unwrap_err()
            .to_string()
    };
    let unknown = message(&["sms_spam", "banking7"]);
    let expected = "no task \"banking7\" (did you mean banking77?); there are banking77, \
                    clinc_domain, sms_spam, stackoverflow";
    assert!(unknown.ends_with(expected), "{unknown}");
    assert!(message(&["zzz"]).contains("no task \"zzz\"; there are banking77"));
    assert_eq!(message(&[]), "task selection: no task is named");
    let twice = message(&["sms_spam", "sms_spam"]);
    assert_eq!(twice, "task selection: task \"sms_spam\" is named twice");
}

#[test]
fn folders_without_tasks_are_errors() {
    let pets = Pets::new();
    assert_eq!(list_tasks(pets.root.path()).unwrap(), ["pets"]);
    assert_eq!(list_tasks(&pets.dir()).unwrap(), ["pets"]);
    let train = pets.dir().join("train.jsonl");
    assert_eq!(list_tasks(&train).unwrap(), ["train"]);
    let empty = tempfile::tempdir().unwrap();
    let message = list_tasks(empty.path()).unwrap_err().to_string();
    assert!(message.contains("no task in it"), "{message}");
    let message = list_tasks(&pets.dir().join("none"))
        .unwrap_err()
        .to_string();
    assert!(message.contains("none: cannot be read"), "{message}");
}
