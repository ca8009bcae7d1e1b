//! By which of several templates records are asked.

use molora_kernels::random::Seed;

use super::Task;
use crate::data::draw::below;
use crate::data::record::Record;
use crate::data::written::ScoredTemplates;

/// Decides which of several templates asks for each record: of those that are trained on, one that the
/// record's name draws; of the others the first, or each in turn.
pub(super) fn asked_by_templates(mut task: Task, scored: ScoredTemplates) -> Task {
    for record in &mut task.train {
        ask_by_one(record, &task.meta.name);
    }
    for split in [&mut task.validation, &mut task.test] {
        match scored {
            ScoredTemplates::First => split.iter_mut().for_each(|record| record.prompts.clear()),
            ScoredTemplates::All => *split = split.drain(..).flat_map(by_each).collect(),
        }
    }
    if let (ScoredTemplates::All, Some(template)) = (scored, &task.meta.template) {
        let sets = task.test_sets.iter_mut();
        sets.for_each(|(_, records)| *records *= template.count());
    }
    task
}

/// Lets one of several templates of a task ask for a record, which the record's name draws.
pub(in crate::data) fn ask_by_one(record: &mut Record, task: &str) {
    let prompts = std::mem::take(&mut record.prompts);
    if !prompts.is_empty() {
        let seed = Seed::new(0).child("templates").child(task);
        let mut draw = seed.child(&record.id).generator();
        let number = below(&mut draw, prompts.len() as u64) as usize;
        record.prompt = prompts.into_iter().nth(number);
    }
}

/// A record as each of its task's templates asks for it.
fn by_each(mut record: Record) -> Vec<Record> {
    let prompts = std::mem::take(&mut record.prompts);
    if prompts.is_empty() {
        return vec![record];
    }
    let with = |(number, prompt): (usize, String)| Record {
        id: format!("{}-template-{number}", record.id),
        prompt: Some(prompt),
        ..record.clone()
    };
    prompts.into_iter().enumerate().map(with).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::data::task::load_task_for;
    use crate::data::{Split, WritingConfig, load_task};

    /// A folder with a file for each name.
    fn folder(name: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(name);
        fs::create_dir(&dir).unwrap();
        for (file, text) in files {
            fs::write(dir.join(file), text).unwrap();
        }
        (root, dir)
    }

    fn rows(names: &[&str]) -> String {
        let line = |name: &&str| format!("{{\"input\": \"{name}\", \"label\": 0}}\n");
        names.iter().map(line).collect()
    }

    const TWO: &str = r#"{"type": "classification", "labels": ["no", "yes"], "label_words": ["Wrong", "Right"],
     "tests": ["matched", "mismatched"]}"#;

    #[test]
    fn several_test_splits_follow_each_other() {
        let (_root, dir) = folder(
            "nli",
            &[
                ("task.json", TWO),
                ("train.jsonl", &rows(&["a", "b", "c", "d"])),
                ("test_matched.jsonl", &rows(&["e", "f"])),
                ("test_mismatched.jsonl", &rows(&["g"])),
            ],
        );
        let task = load_task(&dir).unwrap();
        assert_eq!(
            task.test_sets,
            [("matched".to_owned(), 2), ("mismatched".to_owned(), 1)]
        );
        let inputs: Vec<&str> = task.test.iter().map(|record| &record.input[..]).collect();
        assert_eq!(inputs, ["e", "f", "g"]);
        assert_eq!(task.test[0].output, "Wrong", "the word for the label");
        assert_eq!(crate::data::task_files(&dir).unwrap().len(), 4);
        assert_eq!(
            task.only(Split::Test, 1)
                .test_sets
                .iter()
                .map(|(_, n)| n)
                .sum::<usize>(),
            1
        );
        fs::remove_file(dir.join("test_mismatched.jsonl")).unwrap();
        let error = load_task(&dir).unwrap_err().to_string();
        assert!(
            error.contains("test_mismatched.jsonl: cannot be read"),
            "{error}"
        );
    }

    #[test]
    fn what_task_json_says_wrong_about_answers_is_named() {
        let train = rows(&["a", "b", "c", "d"]);
        for (meta, expected) in [
            (
                TWO.replace(r#"["Wrong", "Right"]"#, r#"["Wrong"]"#),
                "key \"label_words\": it lists 1 words, expected one for each of 2 labels",
            ),
            (
                TWO.replace(r#"["Wrong", "Right"]"#, r#"["Right", "Right"]"#),
                "\"Right\" is listed twice",
            ),
            (
                TWO.replace("mismatched", "../x"),
                "key \"tests\" is \"../x\", but they have to be different names",
            ),
            (
                TWO.replace("}", r#", "answer": {"contains": {}}}"#),
                "key \"answer\": it is for generation, and the task is classification",
            ),
            (
                r#"{"type": "generation", "answer": {"regex": {"pattern": "("}}}"#.into(),
                "key \"answer\": \"(\" is no regular expression: unclosed group",
            ),
            (
                r#"{"type": "generation", "answer": {"regexp": {}}}"#.into(),
                "key \"answer\": unknown variant `regexp`",
            ),
        ] {
            let files = [
                ("task.json", &meta[..]),
                ("train.jsonl", &train),
                ("test_matched.jsonl", &train),
                ("test_mismatched.jsonl", &train),
            ];
            let (_root, dir) = folder("nli", &files);
            let error = load_task(&dir).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("task.json"), "{error}");
        }
    }

    #[test]
    fn several_templates_ask_for_a_record_in_turn() {
        let names: Vec<String> = (0..12).map(|n| format!("text {n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (_root, dir) = folder(
            "nli",
            &[
                (
                    "task.json",
                    r#"{"type": "classification", "labels": ["no", "yes"]}"#,
                ),
                ("train.jsonl", &rows(&names)),
                ("test.jsonl", &rows(&["e", "f"])),
            ],
        );
        let mut writing = WritingConfig::default();
        let sources = ["A {{ input }}", "B {{ input }}"]
            .map(String::from)
            .to_vec();
        let templates = crate::data::Templates::new(sources).unwrap();
        writing.templates.insert("nli".into(), templates);
        let task = load_task_for(&dir, &writing, false).unwrap();
        let first = |record: &Record| record.prompt.as_ref().unwrap().chars().next().unwrap();
        let drawn: BTreeSet<char> = task.train.iter().map(first).collect();
        assert_eq!(drawn, ['A', 'B'].into(), "both are drawn");
        assert!(
            task.test
                .iter()
                .chain(&task.validation)
                .all(|record| first(record) == 'A')
        );
        assert!(task.train.iter().all(|record| record.prompts.is_empty()));
        writing.scored_templates = ScoredTemplates::All;
        let all = load_task_for(&dir, &writing, false).unwrap();
        assert_eq!(all.train, task.train, "what is trained on stays");
        let asked: Vec<String> = all.test.iter().filter_map(|r| r.prompt.clone()).collect();
        assert_eq!(asked, ["A e", "B e", "A f", "B f"]);
    }
}
