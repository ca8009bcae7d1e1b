//! The bundled suites, against what the papers' scripts do, worked out by hand.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::data::{AnswerPattern, PromptTemplate, Task, load_task, load_tasks_for};
use crate::recipe::{BaseKind, find as recipe};

/// The tiny files of the same form that the program is tested with.
fn tiny(suite: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../molora/tests/suites");
    tests.join(suite)
}

fn prepared(suite: &Suite, out: &Path) -> Prepared {
    prepare(suite, &tiny(&suite.name), None, None, out).expect("all files are there")
}

fn read(suite: &Suite, prepared: &Prepared, task: &str) -> Task {
    let recipe = suite.set_up(&recipe("lora").expect("listed"), BaseKind::Writer, prepared);
    let writing = recipe.expect("settings that there are").data.writing;
    let names = [task.to_owned()];
    let tasks = load_tasks_for(&prepared.data(), Some(&names), &writing, false);
    tasks.expect("a task").remove(0)
}

#[test]
fn every_suite_describes_itself() {
    for name in names() {
        let suite = find(name).expect(name);
        assert_eq!(suite.name, name);
        assert!(!suite.files.is_empty() && !suite.title.is_empty(), "{name}");
        for field in ["template", "tasks.templates"] {
            let of_tasks = suite.tasks.iter().flat_map(|task| &task.templates);
            let sources = suite.template.iter().chain(of_tasks);
            for source in sources {
                PromptTemplate::new(field, source).expect(name);
            }
        }
        for task in &suite.tasks {
            if let Some(answer) = &task.answer {
                AnswerPattern::new(answer, &task.labels).expect(&task.name);
            }
        }
        let known = suite.rows.iter().filter_map(|row| row.recipe.as_ref());
        known.for_each(|name| drop(recipe(name).expect("a recipe of a row")));
    }
    let error = find("comonsense").expect_err("unknown").to_string();
    assert!(
        error.starts_with("no suite `comonsense`; there are commonsense, glue"),
        "{error}"
    );
}

/// Of rows with all columns, the printed mean is that of the columns.
#[test]
fn printed_means_are_those_of_their_columns() {
    let suite = find("mosld-qa").expect("listed");
    assert_eq!(suite.rows.len(), 9);
    for row in &suite.rows {
        assert_eq!(row.scores.len(), suite.tasks.len(), "{}", row.method);
        let mean = row.scores.values().sum::<f64>() / row.scores.len() as f64;
        let printed = row.mean.expect("a mean");
        assert!(
            (mean - printed).abs() < 0.0151,
            "{}: {mean} {printed}",
            row.method
        );
    }
}

/// By hand from LLM-Adapters' evaluation script: two sentences, a space, an empty line, and sixteen spaces in
/// front of every line behind it but empty ones.
#[test]
fn the_commonsense_prompt_is_that_of_the_script() {
    let suite = find("commonsense").expect("listed");
    let folder = tempfile::tempdir().expect("a folder");
    let prepared = prepared(&suite, folder.path());
    assert_eq!(prepared.trained.len(), 9);
    let task = read(&suite, &prepared, "boolq");
    let spaces = " ".repeat(16);
    let asked = "Please answer the following question with true or false, question: does word b0 mean yes?\n\n\
                 Answer format: true/false";
    let expected = format!(
        "Below is an instruction that describes a task. Write a response that appropriately completes the \
         request. \n\n{spaces}### Instruction:\n{spaces}{asked}\n\n{spaces}### Response:\n{spaces}"
    );
    assert_eq!(task.test[0].prompt.as_deref(), Some(&expected[..]));
    assert_eq!(task.test[0].output, "the correct answer is true");
    // The metric, by hand: the first of the words that stands in the text, letters as they are.
    let metric = task.meta.metric.as_ref().expect("a metric");
    let right = |text: &str| metric.score_texts(&[text.into()], &[task.test[0].output.clone()]);
    assert_eq!(right("the correct answer is true"), 1.0);
    assert_eq!(right("true, or false"), 1.0);
    assert_eq!(right("false, no: true"), 0.0);
    assert_eq!(right("True"), 0.0);
    assert_eq!(right(""), 0.0);
}

/// The mixed training file is told apart by the forms of its prompts; the science questions have files of
/// their own.
#[test]
fn the_mixed_file_is_split_by_its_prompts() {
    let suite = find("commonsense").expect("listed");
    let folder = tempfile::tempdir().expect("a folder");
    let prepared = prepared(&suite, folder.path());
    assert_eq!(prepared.records, 72);
    let mixed = std::fs::read(tiny("commonsense").join("commonsense_170k.json")).expect("a file");
    let mixed: Vec<Value> = serde_json::from_slice(&mixed).expect("JSON");
    assert_eq!(mixed.len(), 40);
    for (place, task) in ["boolq", "piqa", "social_i_qa", "hellaswag", "winogrande"]
        .iter()
        .enumerate()
    {
        let text = std::fs::read_to_string(prepared.data().join(task).join("train.jsonl"));
        let text = text.expect("a file");
        let found: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let expected = mixed.iter().skip(place).step_by(5);
        let expected = expected.map(
            |record| json!({"instruction": record["instruction"], "output": record["output"]}),
        );
        assert_eq!(found, expected.collect::<Vec<_>>(), "{task}");
    }
}

/// By hand from SAMoRA's script for GLUE, whose spelling it is.
#[test]
fn the_prompts_of_glue_are_those_of_the_script() {
    let suite = find("glue").expect("listed");
    let folder = tempfile::tempdir().expect("a folder");
    let prepared = prepared(&suite, folder.path());
    for (task, prompt, output) in [
        (
            "cola",
            "Is the following sentence \"\"the purr is bark dev0\" grammatically acceptable? Answer:",
            "no",
        ),
        (
            "mnli",
            "Dose the statement \"the purr is bark dev_matched0\" imply that \"the bark is warm dev_matched1\" ? Answer:",
            "yes",
        ),
        (
            "rte",
            "Dose the text \"the purr is bark dev0\" entail the statement \"the wet is purr dev5\"? Answer:",
            "yes",
        ),
    ] {
        let found = read(&suite, &prepared, task);
        assert_eq!(found.test[0].prompt.as_deref(), Some(prompt), "{task}");
        assert_eq!(found.test[0].output, output, "{task}");
    }
    let mnli = read(&suite, &prepared, "mnli");
    assert_eq!(
        mnli.test_sets,
        [("matched".to_owned(), 4), ("mismatched".to_owned(), 3)]
    );
    assert_eq!(mnli.test.len(), 7);
    // An encoder reads the sentences and knows the labels by number.
    let cola = load_task(&prepared.data().join("cola")).expect("a task");
    assert_eq!(cola.meta.labels, ["unacceptable", "acceptable"]);
    assert_eq!(cola.test[0].prompt, None);
}

/// One template asks for a record that is trained on, all of them for one that is scored.
#[test]
fn flan_asks_by_several_templates() {
    let suite = find("flan").expect("listed");
    let folder = tempfile::tempdir().expect("a folder");
    let prepared = prepared(&suite, folder.path());
    let task = read(&suite, &prepared, "rte");
    assert_eq!((task.train.len(), task.test.len()), (7, 4 * 3));
    let of = |number: usize| task.test[number].prompt.clone().expect("a prompt");
    assert!(of(0).ends_with("Options: yes, no\nAnswer:"), "{}", of(0));
    assert!(of(1).starts_with("Read this") && of(2).starts_with("Premise: "));
    let starts = |start: &str| {
        let prompts = task
            .train
            .iter()
            .filter_map(|record| record.prompt.as_ref());
        prompts.filter(|prompt| prompt.starts_with(start)).count()
    };
    let counts = [starts("the "), starts("Read this"), starts("Premise: ")];
    assert_eq!(counts.iter().sum::<usize>(), 7, "{counts:?}");
    assert!(
        counts.iter().filter(|&&count| count > 0).count() > 1,
        "{counts:?}"
    );
    let again = read(&suite, &prepared, "rte");
    assert_eq!(again, task, "the same ones each time");
}

#[test]
fn choices_of_p3_are_read_over_all_templates() {
    let suite = find("t0-held-out").expect("listed");
    let folder = tempfile::tempdir().expect("a folder");
    let prepared = prepared(&suite, folder.path());
    assert_eq!(prepared.trained, ["sciq", "rotten_tomatoes"]);
    assert_eq!(prepared.held_out, ["rte", "copa", "anli_r1"]);
    assert!(
        prepared
            .differs
            .iter()
            .any(|text| text.starts_with("task dream is left out: there is no dream_*/train"))
    );
    let sciq = read(&suite, &prepared, "sciq");
    assert_eq!(sciq.test.len(), 6);
    assert_eq!(
        sciq.test[0].prompt.as_deref(),
        Some("Direct the purr is bark validation0?")
    );
    assert_eq!(sciq.test[1].output, "sun");
    let rte = load_task(&prepared.held_out_data().join("rte")).expect("a task");
    assert_eq!(
        (rte.test.len(), &rte.test[0].choices[..]),
        (6, &["yes".to_owned(), "no".to_owned()][..])
    );
}

#[test]
fn what_a_request_asked_before_is_asked_again() {
    let suite = find("glue").expect("listed");
    let folder = tempfile::tempdir().expect("a folder");
    let data = tiny("glue");
    let only = |names: &[&str], limit: Option<usize>| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let limit = limit.and_then(std::num::NonZeroUsize::new);
        prepare(&suite, &data, Some(&names), limit, folder.path())
    };
    let first = only(&["cola", "rte"], Some(4)).expect("two tasks");
    assert_eq!((first.records, first.trained.len()), (8, 2));
    assert!(
        first
            .differs
            .iter()
            .any(|text| text.starts_with("records: at most 4"))
    );
    assert_eq!(only(&["cola", "rte"], Some(4)).expect("again"), first);
    for (names, limit, expected) in [
        (&["cola"][..], Some(4), "its tasks are cola, rte"),
        (&["cola", "rte"][..], None, "another limit"),
        (
            &["cola", "sts-b"][..],
            None,
            "no task \"sts-b\" in suite glue; there are cola",
        ),
    ] {
        let error = only(names, limit).expect_err("another request").to_string();
        assert!(error.contains(expected), "{error}");
    }
    let other = tempfile::tempdir().expect("a folder");
    std::fs::write(other.path().join("notes.txt"), "x").expect("written");
    let error = prepare(&suite, &data, None, None, other.path()).expect_err("not ours");
    assert!(error.to_string().contains("not a reproduction"), "{error}");
    let empty = tempfile::tempdir().expect("a folder");
    let out = empty.path().join("out");
    let error = prepare(&suite, empty.path(), None, None, &out).expect_err("no files");
    assert!(
        error.to_string().contains("needs CoLA/train.tsv or")
            || error
                .to_string()
                .contains("would need CoLA/train.tsv or cola/train*"),
        "{error}"
    );
    assert!(!out.exists());
}

#[test]
fn suites_that_contradict_themselves_are_refused() {
    let head = "name = 'x'\ntitle = 't'\nfiles = 'f'\n";
    let task = "[[tasks]]\nname = 'a'\ntype = 'generation'\n";
    for (text, expected) in [
        (String::new(), "missing field `name`"),
        (
            format!("{head}tasks = []\nrow = 1\n"),
            "unknown field `row`",
        ),
        (
            format!("{head}{task}"),
            "suite x: tasks.a.train: expected records for training",
        ),
        (
            format!(
                "{head}{task}train = [{{ file = 'f.jsonl', when = {{ column = 'c', pattern = '(' }} }}]\n"
            ),
            "tasks.a.f.jsonl: \"(\" is no regular expression",
        ),
        (
            format!(
                "{head}{task}train = [{{ file = 'f.jsonl' }}]\n[[rows]]\nmethod = 'M'\nsource = 's'\nmodel = 'm'\nscores = {{ b = 1.0 }}\n"
            ),
            "rows.M.scores: there is no task \"b\"",
        ),
        (
            format!("{head}{task}held_out = true\ntest = [{{ file = 'f.jsonl' }}]\n"),
            "tasks: no task is trained on",
        ),
    ] {
        let error = Suite::from_toml(&text, "x.toml")
            .expect_err(expected)
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// The schema has every key that the bundled suites use.
#[test]
fn the_schema_knows_the_keys() {
    let schema = schema();
    for key in ["name", "settings", "tasks", "rows", "template"] {
        assert!(
            schema.pointer(&format!("/properties/{key}")).is_some(),
            "{key}"
        );
    }
}
