use std::fs;

use crate::data::{Label, Record, Task, TaskKind, load_task, load_tasks};

/// A folder `quiz` with a `task.json` and a training split of four lines, of which the third may be
/// another one.
fn load(meta: Option<&str>, line: &str, third: &str) -> Result<Task, String> {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("quiz");
    fs::create_dir(&dir).unwrap();
    if let Some(meta) = meta {
        fs::write(dir.join("task.json"), meta).unwrap();
    }
    // Each line another text, or there would be nothing to hold out.
    let distinct = |index: usize| line.replace("#", &index.to_string());
    let lines = [distinct(0), distinct(1), third.into(), distinct(3)];
    fs::write(dir.join("train.jsonl"), lines.join("\n")).unwrap();
    let task = load_task(&dir).map_err(|error| error.to_string());
    task.map_err(|message| message.replace(&format!("{}/", dir.display()), ""))
}

/// The record of one line.
fn record(meta: Option<&str>, line: &str) -> Record {
    let task = load(meta, line, &line.replace('#', "2")).unwrap();
    let mut all = [task.train, task.validation, task.test].concat();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(all.len(), 4);
    assert_eq!(all[2].id, "quiz-train-2");
    all.remove(2)
}

fn error(meta: Option<&str>, line: &str, third: &str) -> String {
    load(meta, line, third).unwrap_err()
}

const ALPACA: &str = r##"{"instruction": "Add #", "input": "1", "output": "2"}"##;
const CHAT: &str =
    r##"{"messages": [{"role": "user", "content": "#?"}, {"role": "assistant", "content": "2"}]}"##;
const QUIZ: &str = r##"{"question": "#?", "choices": ["a", "b"], "answer": 1}"##;

#[test]
fn alpaca_is_read() {
    let found = record(None, ALPACA);
    assert_eq!((&found.instruction[..], &found.input[..]), ("Add 2", "1"));
    assert_eq!((&found.output[..], &found.label), ("2", &Label::Text));
    let found = record(None, r##"{"instruction": "Add #", "output": 2}"##);
    assert_eq!((&found.input[..], &found.output[..]), ("", "2"));
    let meta = Some(r#"{"instruction": "Never mind"}"#);
    assert_eq!(record(meta, ALPACA).instruction, "Add 2");
}

#[test]
fn chats_are_read() {
    let found = record(None, CHAT);
    assert_eq!(found.messages.len(), 2);
    assert_eq!((&found.input[..], &found.output[..]), ("2?", "2"));
    let share = r##"{"conversations": [{"from": "system", "value": ""}, {"from": "human", "value": "#?"}, {"from": "gpt", "value": "3"}]}"##;
    let roles: Vec<String> = record(None, share)
        .messages
        .into_iter()
        .map(|message| message.role)
        .collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
}

#[test]
fn completions_and_plain_text_are_verbatim() {
    let found = record(None, r##"{"prompt": "# is ", "completion": " two"}"##);
    assert_eq!((&found.input[..], &found.output[..]), ("2 is ", " two"));
    assert!(found.is_verbatim);
    let found = record(None, r##"{"prompt": "#", "response": "x", "text": "y"}"##);
    assert_eq!(found.output, "x");
    let found = record(None, r##"{"text": " # \n"}"##);
    assert_eq!((&found.input[..], &found.output[..]), ("", " 2 \n"));
    assert!(found.is_verbatim);
}

#[test]
fn questions_are_answered_by_number_letter_key_or_text() {
    let arc = r##"{"text": ["a", "b"], "label": ["1", "2"]}"##;
    for (choices, answer) in [
        (r#"["a", "b"]"#, "1"),
        (r#"["a", "b"]"#, r#""B""#),
        (r#"["a", "b"]"#, r#""b""#),
        (arc, r#""2""#),
    ] {
        let line =
            format!(r##"{{"question": "#?", "choices": {choices}, "answerKey": {answer}}}"##);
        let found = record(None, &line);
        assert_eq!((&found.label, &found.output[..]), (&Label::Index(1), "b"));
        assert_eq!((&found.input[..], found.choices.len()), ("2?", 2));
    }
}

#[test]
fn a_partial_task_json_names_kind_labels_and_columns() {
    let meta = r#"{"type": "classification", "instruction": "Good?", "labels": ["no", "yes"],
        "columns": {"input": "sentence", "label": "answer"}}"#;
    for answer in ["1", r#""yes""#] {
        let line = format!(r##"{{"sentence": "s#", "answer": {answer}, "label": 7}}"##);
        let found = record(Some(meta), &line);
        assert_eq!((&found.input[..], &found.instruction[..]), ("s2", "Good?"));
        assert_eq!((&found.label, &found.output[..]), (&Label::Index(1), "yes"));
        // An editor's byte order mark is no part of it.
        let marked = format!("\u{feff}{meta}");
        assert_eq!(record(Some(&marked), &line).instruction, "Good?");
    }
    let meta = r#"{"type": "regression"}"#;
    for line in [
        r##"{"input": "#", "label": 2.5}"##,
        r##"{"input": "#", "output": "2.5"}"##,
    ] {
        let found = record(Some(meta), line);
        assert_eq!(
            (found.label, &found.output[..]),
            (Label::Number(2.5), "2.5")
        );
    }
    let meta = r#"{"columns": {"input": "question", "output": "answer"}, "metric": "exact match after ####"}"#;
    let line = r##"{"question": "#", "answer": "2"}"##;
    let found = record(Some(meta), line);
    assert_eq!((&found.input[..], &found.output[..]), ("2", "2"));
    let found = error(Some(meta), line, CHAT);
    let expected = "train.jsonl:3: there is no column \"question\", found messages, but";
    assert!(found.starts_with(expected), "{found}");
}

#[test]
fn columns_without_a_meaning_are_listed() {
    let line = r##"{"quote": "#", "author": "a"}"##;
    let found = error(None, line, line);
    assert!(
        found.starts_with("train.jsonl:1: found the columns author, quote, expected messages or"),
        "{found}"
    );
    let found = error(None, r##"{"input": "#", "label": 0.5}"##, ALPACA);
    assert!(
        found.starts_with(
            "train.jsonl:1: there is no column \"output\", found input, label (the task"
        ),
        "{found}"
    );
    let meta = Some(r#"{"columns": {"input": "body"}}"#);
    assert_eq!(
        error(meta, ALPACA, ALPACA),
        "train.jsonl:1: there is no column \"body\", found input, instruction, output, but \
         \"columns\" in task.json names it"
    );
    let found = error(Some(r#"{"columns": {"inputs": "body"}}"#), ALPACA, ALPACA);
    assert!(
        found.starts_with("task.json: key \"columns\" gives a column for \"inputs\", expected id,"),
        "{found}"
    );
    let found = error(Some(r#"{"type": "regression"}"#), CHAT, CHAT);
    assert_eq!(
        found,
        "train.jsonl: key \"type\" is \"regression\", but records with the column messages are \
         for generation"
    );
}

#[test]
fn wrong_values_are_located() {
    let check = |line: &str, third: &str, expected: &str| {
        let found = error(None, line, third);
        assert_eq!(found, format!("train.jsonl:3: {expected}"));
    };
    check(
        ALPACA,
        r#"{"instruction": 3, "output": "2"}"#,
        "key \"instruction\" holds the number 3, expected a string or null",
    );
    check(
        ALPACA,
        r#"{"output": "2"}"#,
        "there is no column \"input\", found output",
    );
    check(
        QUIZ,
        r#"{"question": "?", "choices": ["a", "b"], "answer": 2}"#,
        "label 2 is out of range: there are 2 choices (0 to 1)",
    );
    check(
        QUIZ,
        r#"{"question": "?", "choices": ["a", "b"], "answer": "C"}"#,
        "column \"label\" holds \"C\", expected one of a, b",
    );
    check(
        QUIZ,
        r#"{"question": "?", "choices": [], "answer": 0}"#,
        "key \"choices\" holds a list of 0 items, expected at least one string",
    );
    check(
        QUIZ,
        r#"{"question": "?", "choices": {"text": ["a"], "label": ["A", "B"]}, "answer": "B"}"#,
        "key \"choices\" holds a list of 2 items, expected as many labels as texts",
    );
    check(
        QUIZ,
        r#"{"question": " ", "choices": ["a", "b"], "answer": 0}"#,
        "key \"question\" holds the string \" \", expected a text that is not empty",
    );
    check(
        r##"{"text": "#"}"##,
        r#"{"text": ""}"#,
        "key \"text\" holds the string \"\", expected a text that is not empty",
    );
}

#[test]
fn wrong_chats_are_located() {
    let check = |messages: &str, expected: &str| {
        let third = format!(r#"{{"messages": {messages}}}"#);
        let found = error(None, CHAT, &third);
        assert_eq!(found, format!("train.jsonl:3: {expected}"));
    };
    check(
        "[]",
        "key \"messages\" holds a list of 0 items, expected at least one message",
    );
    check(
        "\"a\"",
        "key \"messages\" holds the string \"a\", expected a list of messages",
    );
    check(
        r#"[{"role": "function", "content": "x"}]"#,
        "column \"messages\", message 1: its role is \"function\", expected system, user (human), \
         assistant (gpt) or tool",
    );
    check(
        r#"[{"role": "user", "content": "x"}]"#,
        "column \"messages\", message 1: the last one is from user, expected assistant",
    );
    check(
        r#"[{"role": "user", "content": null}]"#,
        "column \"messages\", message 1: \"content\" holds null, expected a string",
    );
    check(
        r#"[{"role": "user", "content": " "}]"#,
        "column \"messages\", message 1: its content is empty",
    );
    check(
        r#"[{"content": "x"}]"#,
        "column \"messages\", message 1: there is no \"role\" or \"from\"",
    );
}

#[test]
fn parts_of_a_split_are_one_and_two_files_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("songs");
    fs::create_dir(&dir).unwrap();
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    write("train-00000-of-00002.csv", "text\na\nb\n");
    write("train-00001-of-00002.csv", "text\nc\n");
    write("test.json", r#"[{"text": "d"}]"#);
    write("notes.txt", "");
    let task = load_tasks(folder.path(), None).unwrap().remove(0);
    assert_eq!(
        (&task.meta.name[..], task.meta.kind),
        ("songs", TaskKind::Generation)
    );
    assert_eq!((task.train.len(), task.validation.len()), (2, 1));
    assert_eq!(
        (&task.test[0].id[..], &task.test[0].output[..]),
        ("songs-test-0", "d")
    );
    write("train.csv", "text\na\n");
    let message = load_tasks(folder.path(), None).unwrap_err().to_string();
    assert!(
        message.contains("the split train stands in train.csv and train-0"),
        "{message}"
    );
    fs::remove_file(dir.join("train.csv")).unwrap();
    fs::remove_file(dir.join("train-00000-of-00002.csv")).unwrap();
    let message = load_task(&dir).unwrap_err().to_string();
    assert!(
        message.ends_with("found 1 of the 2 parts of the split train"),
        "{message}"
    );
}

/// The labels of a CSV file of a task with these names, in order.
fn csv_labels(names: &str, values: &[&str]) -> Result<Vec<Label>, String> {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("t");
    fs::create_dir(&dir).unwrap();
    let meta = format!(
        r#"{{"type": "classification", "labels": {names}, "columns": {{"input": "text"}}}}"#
    );
    fs::write(dir.join("task.json"), meta).unwrap();
    let rows = values.iter().enumerate();
    let rows: String = rows
        .map(|(index, value)| format!("n {index},{value}\n"))
        .collect();
    for name in ["train.csv", "validation.csv", "test.csv"] {
        fs::write(dir.join(name), format!("text,label\n{rows}")).unwrap();
    }
    let task = load_task(&dir).map_err(|error| error.to_string())?;
    Ok(task.test.into_iter().map(|record| record.label).collect())
}

#[test]
fn names_of_labels_come_before_their_places() {
    let found = |names, values| {
        let labels = csv_labels(names, values).unwrap();
        let index = |label| match label {
            Label::Index(index) => index,
            other => panic!("{other:?}"),
        };
        labels.into_iter().map(index).collect::<Vec<_>>()
    };
    assert_eq!(
        found(r#"["1", "2", "3"]"#, &["1", "3", "2.0", " 2"]),
        [0, 2, 1, 1]
    );
    assert_eq!(found(r#"["2018", "2019"]"#, &["2019", "2018"]), [1, 0]);
    assert_eq!(found(r#"["no", "yes"]"#, &["0.0", "1", "yes"]), [0, 1, 1]);
    let error = csv_labels(r#"["no", "yes"]"#, &["0", "2"]).unwrap_err();
    assert!(error.contains("label 2 is out of range"), "{error}");
    let error = csv_labels(r#"["no", "yes"]"#, &["0", ""]).unwrap_err();
    assert!(
        error.ends_with("column \"label\" is empty, expected a value"),
        "{error}"
    );
    let error = csv_labels(r#"["no", "yes"]"#, &["0", "0.5"]).unwrap_err();
    assert!(error.contains("expected a whole number"), "{error}");
}

#[test]
fn a_number_in_json_is_a_place_unless_names_are_other_numbers() {
    let meta = |labels: &str| {
        format!(r#"{{"type": "classification", "labels": {labels}, "columns": {{"input": "q"}}}}"#)
    };
    let label = |labels: &str, line: &str| record(Some(&meta(labels)), line).label;
    let one = r##"{"q": "#", "label": 1}"##;
    assert_eq!(label(r#"["1", "2"]"#, one), Label::Index(1));
    assert_eq!(
        label(r#"["1", "2"]"#, r##"{"q": "#", "label": "1"}"##),
        Label::Index(0)
    );
    assert_eq!(
        label(r#"["no", "yes"]"#, r##"{"q": "#", "label": 1.0}"##),
        Label::Index(1)
    );
    assert_eq!(
        label(r#"["2018", "2019"]"#, r##"{"q": "#", "label": 2019}"##),
        Label::Index(1)
    );
}

#[test]
fn keys_of_choices_may_be_numbers() {
    for (keys, answer) in [
        (r#"["1", "2"]"#, r#""1""#),
        (r#"["1", "2"]"#, "1"),
        ("[1, 2]", "1"),
        ("[1, 2]", r#""1""#),
    ] {
        let line = format!(
            r##"{{"question": "#", "choices": {{"text": ["2", "b"], "label": {keys}}}, "answerKey": {answer}}}"##
        );
        assert_eq!(record(None, &line).label, Label::Index(0), "{line}");
    }
    assert_eq!(
        record(None, QUIZ).label,
        Label::Index(1),
        "a place without keys"
    );
}

#[test]
fn a_null_is_called_a_null_and_nan_by_its_name() {
    let found = error(
        None,
        ALPACA,
        r#"{"instruction": "a", "input": "b", "output": null}"#,
    );
    assert!(
        found.starts_with("train.jsonl:3: column \"output\" is null, expected a value"),
        "{found}"
    );
    for (value, name) in [
        ("NaN", "NaN"),
        ("-Infinity", "Infinity"),
        ("Infinity", "Infinity"),
    ] {
        let line = format!(r#"{{"instruction": "a", "output": "b", "score": {value}}}"#);
        let found = error(None, ALPACA, &line);
        let expected = format!("{name}, which Python's json.dumps writes, is no JSON");
        assert!(found.contains(&expected), "{found}");
    }
}

#[test]
fn messages_may_say_that_they_are_not_to_be_learned() {
    let chat = |flag: &str, last: &str| {
        format!(
            r##"{{"messages": [{{"role": "user", "content": "#"}},
                {{"role": "assistant", "content": "a", {flag}}},
                {{"role": "user", "content": "b"}},
                {{"role": "assistant", "content": "c"{last}}}]}}"##
        )
        .replace('\n', "")
    };
    for (flag, expected) in [
        (r#""weight": 0"#, true),
        (r#""weight": 1"#, false),
        (r#""train": false"#, true),
        (r#""trainable": true"#, false),
        (r#""weight": null"#, false),
    ] {
        let found = record(None, &chat(flag, ""));
        let given: Vec<bool> = found.messages.iter().map(|m| m.is_given).collect();
        assert_eq!(given, [false, expected, false, false], "{flag}");
    }
    let good = chat(r#""weight": 1"#, "");
    let found = error(None, &good, &chat(r#""weight": 0.5"#, ""));
    assert!(found.contains("message 2: \"weight\" holds the number 0.5, expected 0 or 1"));
    let found = error(None, &good, &chat(r#""weight": 0"#, r#", "train": false"#));
    assert!(found.contains("marked as not to be learned"), "{found}");
}

#[test]
fn a_system_column_reaches_the_record() {
    let line = r##"{"system": "Be brief", "conversations": [{"from": "human", "value": "#"}, {"from": "gpt", "value": "3"}]}"##;
    let found = record(None, line);
    assert_eq!(found.messages[0], crate::data::Message::system("Be brief"));
    assert_eq!(found.messages.len(), 3);
    let line = r##"{"system": "Be brief", "instruction": "#", "output": "2"}"##;
    assert_eq!(record(None, line).system, "Be brief");
    let twice = r##"{"system": "x", "messages": [{"role": "system", "content": "y"}, {"role": "user", "content": "#"}, {"role": "assistant", "content": "2"}]}"##;
    let found = error(None, CHAT, twice);
    assert!(
        found.contains("\"system\" is \"x\", but the chat's first message"),
        "{found}"
    );
}

#[test]
fn functions_their_calls_and_results_are_read_in_their_order() {
    let line = r##"{"tools": [{"type": "function", "function": {"name": "add", "arguments": ["b", "a"]}}],
        "messages": [{"role": "user", "content": "1 + #?"},
        {"role": "assistant", "content": null,
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"b": 1, "a": 1}}}]},
        {"role": "tool", "content": "", "tool_call_id": "x", "name": "add"},
        {"role": "assistant", "content": "2", "reasoning_content": "easy"}]}"##;
    let found = record(None, &line.replace('\n', ""));
    let tools = r#"[{"type":"function","function":{"name":"add","arguments":["b","a"]}}]"#;
    assert_eq!(found.tools.as_deref(), Some(tools));
    let calls = r#"[{"type":"function","function":{"name":"add","arguments":{"b":1,"a":1}}}]"#;
    assert_eq!(found.messages[1].tool_calls.as_deref(), Some(calls));
    assert!(found.messages[1].is_silent && found.messages[1].content.is_empty());
    assert!(!found.messages[2].is_silent);
    let more: Vec<&str> = found.messages[2]
        .more
        .values()
        .map(|text| &text[..])
        .collect();
    assert_eq!(
        (&found.messages[2].role[..], &more[..]),
        ("tool", &["add", "x"][..])
    );
    assert_eq!(found.messages[3].more["reasoning_content"], "easy");
    // As a text, which columns of tables are.
    let text = line.replace('\n', "").replacen(
        r#"[{"type": "function", "function": {"name": "add", "arguments": ["b", "a"]}}]"#,
        r#""[{\"type\": \"f\"}]""#,
        1,
    );
    assert_eq!(
        record(None, &text).tools.as_deref(),
        Some(r#"[{"type": "f"}]"#)
    );
    for (tools, calls, expected) in [
        (
            "3",
            "[]",
            "key \"tools\" holds the number 3, expected a list of functions",
        ),
        ("[\"add\"]", "[]", "key \"tools\" holds"),
        (
            "[]",
            "{}",
            "\"tool_calls\" holds an object, expected a list of calls",
        ),
    ] {
        let line = format!(
            r##"{{"tools": {tools}, "messages": [{{"role": "user", "content": "#"}},
                {{"role": "assistant", "content": "a", "tool_calls": {calls}}}]}}"##
        );
        let line = line.replace('\n', "");
        let found = error(None, &line, &line);
        assert!(found.contains(expected), "{found}");
    }
}
