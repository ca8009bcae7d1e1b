//! Records without answers, which a trained model is to find.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::error::{At, DataError, Place};
use super::format::{FormatError, Row, read_rows, read_text, text_of};
use super::prompt::ANSWERS;
use super::record::Record;
use super::schema::{Reading, Schema, warn_of_unread};
use super::task::{TaskKind, TaskMeta};

/// Stands where a record of the training has its answer; nothing reads it.
const NO_ANSWER: &str = "a";

/// Columns that hold the text, of which the first that is there is read.
const TEXTS: [&str; 4] = ["input", "question", "text", "prompt"];

/// Reads records of a task from a file (.jsonl, .json, .csv, .parquet), or from one of plain lines
/// (.txt). `columns` has the file's columns by ours, where they have other names, as in `task.json`.
///
/// The text is `input`, `question`, `text` or `prompt`, a chat `messages` or `conversations` with `tools`; beside it
/// `input_b`, `choices`, `instruction`, `system` and `id` are read. Answers that stand in the file are
/// not, which a warning says.
///
/// # Errors
/// The first thing found wrong, with file and line; see [`DataError`].
pub fn load_unlabelled(
    path: &Path,
    meta: &TaskMeta,
    columns: &BTreeMap<String, String>,
) -> Result<Vec<Record>, DataError> {
    if path.extension().is_some_and(|ending| ending == "txt") {
        let text = text_of(&read_text(path)?, path)?;
        return unlabelled(lines(&text, path)?, path, meta);
    }
    let (format, mut rows) = read_rows(path, Arc::new(|_: &str| true))?;
    for row in &mut rows {
        rename(row, columns)?;
        format.type_values(row, false)?;
    }
    unlabelled(rows, path, meta)
}

/// Reads records of a task from a text, of which each line is a JSON object or, if the first is none,
/// the text of a record; `path` is named in errors.
///
/// # Errors
/// As [`load_unlabelled`].
pub fn parse_unlabelled(
    text: &str,
    path: &Path,
    meta: &TaskMeta,
    columns: &BTreeMap<String, String>,
) -> Result<Vec<Record>, DataError> {
    if !text.trim_start().starts_with('{') {
        let rows = lines(text, path)?;
        refuse_objects(&rows)?;
        return unlabelled(rows, path, meta);
    }
    let mut rows = super::format::parse_lines(text.as_bytes(), path)?;
    rows.iter_mut().try_for_each(|row| rename(row, columns))?;
    unlabelled(rows, path, meta)
}

/// A row for each line.
fn lines(text: &str, path: &Path) -> Result<Vec<Row>, DataError> {
    let row = |(index, line): (usize, &str)| {
        let place = Place::new(path, At::Line(index + 1));
        if line.trim().is_empty() {
            return Err(DataError::BlankLine { place });
        }
        let columns = [("input".to_owned(), Value::from(line))];
        Ok(Row {
            place,
            columns: columns.into_iter().collect(),
            is_text: false,
        })
    };
    text.trim_end().lines().enumerate().map(row).collect()
}

/// Refuses JSON objects among texts: the first line says what all of them are.
fn refuse_objects(rows: &[Row]) -> Result<(), DataError> {
    let is_object = |row: &&Row| {
        let text = row.columns["input"].as_str().unwrap_or_default();
        text.starts_with('{') && serde_json::from_str::<Map<String, Value>>(text).is_ok()
    };
    match rows.iter().find(is_object) {
        None => Ok(()),
        Some(row) => Err(DataError::Contradiction {
            place: row.place.clone(),
            key: "input",
            found: "a JSON object".into(),
            expected: "the first line is a text, and so are all".into(),
        }),
    }
}

fn rename(row: &mut Row, columns: &BTreeMap<String, String>) -> Result<(), DataError> {
    for (ours, theirs) in columns {
        match row.columns.remove(theirs) {
            Some(value) => row.columns.insert(ours.clone(), value),
            None => return Err(missing(row, theirs, ", but it is asked for by name")),
        };
    }
    Ok(())
}

fn missing(row: &Row, column: &str, reason: &'static str) -> DataError {
    FormatError::MissingColumn {
        place: row.place.clone(),
        column: column.into(),
        found: row.columns.keys().cloned().collect(),
        reason,
    }
    .into()
}

fn unlabelled(mut rows: Vec<Row>, path: &Path, meta: &TaskMeta) -> Result<Vec<Record>, DataError> {
    let Some(first) = rows.first() else {
        return Err(DataError::EmptySplit { path: path.into() });
    };
    let schema = schema(first, meta.kind)?;
    schema.check_kind(meta.kind, path)?;
    let answers = |row: &Row| ANSWERS.iter().any(|name| row.columns.contains_key(*name));
    if rows.iter().any(answers) {
        tracing::warn!("{}: answers that stand in it are not read", path.display());
    }
    let reading = Reading {
        schema,
        meta,
        has_meta_file: false,
    };
    let mut asked = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter_mut().enumerate() {
        let id = match row.columns.remove("id") {
            Some(Value::String(id)) => id,
            Some(Value::Number(id)) => id.to_string(),
            _ => (index + 1).to_string(),
        };
        // By their own names, which what follows may change.
        let text = TEXTS
            .into_iter()
            .find(|name| row.columns.contains_key(*name));
        asked.push((id, reading.columns(row), text.unwrap_or("input")));
        answer(row, schema, meta.kind);
    }
    warn_of_unread(schema, meta.template.as_ref(), path, &rows);
    let records = rows.into_iter().zip(asked);
    let record = |(row, (id, columns, text)): (Row, (_, _, &'static str))| {
        let place = row.place.clone();
        let record = reading.record(row, id, columns);
        let record = record.and_then(|record| match is_empty_prompt(&record) {
            true => Err(reading.empty(&record.input, &place)),
            false => Ok(record),
        });
        record.map_err(|error| named(error, text))
    };
    records.map(record).collect()
}

/// Whether a text is to be continued that has nothing in it. What was trained on may be such a text.
fn is_empty_prompt(record: &Record) -> bool {
    record.is_verbatim && record.prompt.is_none() && record.input.trim().is_empty()
}

/// An error about the text by the name of its column in the file.
fn named(error: DataError, text: &'static str) -> DataError {
    match error {
        DataError::WrongType {
            place,
            key: "input",
            found,
            expected,
        } => DataError::WrongType {
            place,
            key: text,
            found,
            expected,
        },
        other => other,
    }
}

/// What the columns of a row without an answer mean.
fn schema(row: &Row, kind: TaskKind) -> Result<Schema, DataError> {
    let has = |name: &str| row.columns.contains_key(name);
    if let Some(column) = ["messages", "conversations"]
        .into_iter()
        .find(|name| has(name))
    {
        return Ok(Schema::Chat(column));
    }
    match TEXTS.into_iter().find(|name| has(name)) {
        Some("prompt") if kind == TaskKind::Generation => Ok(Schema::Completion("completion")),
        Some(_) => Ok(Schema::Fields),
        None if has("instruction") => Ok(Schema::Fields),
        None => Err(missing(
            row,
            "input",
            ", expected input, question, text, prompt or messages",
        )),
    }
}

/// Puts something in the place of the answer, in columns that a record of the training has.
fn answer(row: &mut Row, schema: Schema, kind: TaskKind) {
    if let Schema::Chat(column) = schema {
        if let Some(Value::Array(messages)) = row.columns.get_mut(column) {
            let role = |message: &Value| message.get("role").or(message.get("from")).cloned();
            let last = messages.last().and_then(role);
            if !last.is_some_and(|role| role == "assistant" || role == "gpt") {
                messages.push(json!({"role": "assistant", "content": NO_ANSWER}));
            }
        }
        return;
    }
    for name in ANSWERS {
        row.columns.remove(name);
    }
    if matches!(schema, Schema::Completion(_)) {
        row.columns.insert("completion".into(), NO_ANSWER.into());
        return;
    }
    let text = TEXTS.iter().find_map(|name| row.columns.remove(*name));
    if let Some(text) = text {
        row.columns.insert("input".into(), text);
    }
    let (column, value) = match kind {
        TaskKind::Classification | TaskKind::MultipleChoice => ("label", json!(0)),
        TaskKind::Regression => ("label", json!(0.0)),
        TaskKind::Generation => ("output", json!(NO_ANSWER)),
    };
    row.columns.insert(column.into(), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(kind: TaskKind) -> TaskMeta {
        TaskMeta {
            name: "t".into(),
            kind,
            instruction: "Say it.".into(),
            labels: match kind {
                TaskKind::Classification => vec!["no".into(), "yes".into()],
                _ => Vec::new(),
            },
            ..TaskMeta::default()
        }
    }

    fn read(text: &str, kind: TaskKind) -> Result<Vec<Record>, String> {
        let columns = BTreeMap::new();
        let found = parse_unlabelled(text, Path::new("-"), &meta(kind), &columns);
        found.map_err(|error| error.to_string())
    }

    #[test]
    fn plain_lines_and_objects_are_records() {
        let lines = read("one\ntwo {\n", TaskKind::Classification).expect("two lines");
        let inputs: Vec<&str> = lines.iter().map(|record| &record.input[..]).collect();
        assert_eq!(inputs, ["one", "two {"]);
        let ids: Vec<&str> = lines.iter().map(|record| &record.id[..]).collect();
        assert_eq!(ids, ["1", "2"]);
        let text = "{\"text\": \"a\", \"id\": 7, \"label\": \"never read\"}\n{\"question\": \"b\"}";
        let records = read(text, TaskKind::Classification).expect("two objects");
        assert_eq!((&records[0].id[..], &records[0].input[..]), ("7", "a"));
        assert_eq!((&records[1].id[..], &records[1].input[..]), ("2", "b"));
        assert_eq!(records[1].instruction, "Say it.");
    }

    #[test]
    fn each_kind_of_task_is_asked_as_in_training() {
        let choices = r#"{"question": "q", "choices": ["x", "y"]}"#;
        let record = &read(choices, TaskKind::MultipleChoice).expect("a question")[0];
        assert_eq!(record.choices, ["x", "y"]);
        let number = &read("a", TaskKind::Regression).expect("a line")[0];
        assert_eq!(number.label, crate::data::Label::Number(0.0));
        let prompt = &read(r#"{"prompt": "Once "}"#, TaskKind::Generation).expect("a prompt")[0];
        assert!(prompt.is_verbatim);
        let chat = r#"{"messages": [{"role": "user", "content": "Hi"}]}"#;
        let chat = &read(chat, TaskKind::Generation).expect("a chat")[0];
        assert_eq!((chat.messages.len(), &chat.input[..]), (2, "Hi"));
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        let error = read("{\"sentence\": \"a\"}", TaskKind::Classification).expect_err("no text");
        assert!(
            error.starts_with("-:1: ") && error.contains("no column \"input\""),
            "{error}"
        );
        let error = read("a\n\nb", TaskKind::Classification).expect_err("a blank line");
        assert!(error.starts_with("-:2: "), "{error}");
        let error = read("", TaskKind::Classification).expect_err("nothing");
        assert_eq!(error, "-: holds no records");
        let chat = r#"{"messages": [{"role": "user", "content": "Hi"}]}"#;
        assert!(read(chat, TaskKind::Classification).is_err());
    }

    #[test]
    fn what_asks_nothing_is_named_with_its_line_and_column() {
        use TaskKind::{Classification, Generation, MultipleChoice, Regression};
        let one = r#"{"text": "a", "question": "a", "prompt": "a", "choices": ["x"]}"#;
        for (kind, row, column) in [
            (Classification, r#"{"input": ""}"#, "input"),
            (Classification, r#"{"text": " \n"}"#, "text"),
            (Classification, r#"{"input": "", "input_b": ""}"#, "input"),
            (
                Classification,
                r#"{"input": "", "instruction": "Say it."}"#,
                "input",
            ),
            (Regression, r#"{"text": ""}"#, "text"),
            (
                MultipleChoice,
                r#"{"question": "", "choices": ["x", "y"]}"#,
                "question",
            ),
        ] {
            let first = match kind {
                MultipleChoice => one.to_owned(),
                _ => r#"{"input": "a"}"#.to_owned(),
            };
            let error = read(&format!("{first}\n{row}"), kind).expect_err(row);
            let expected = format!("-:2: key \"{column}\" holds the string \"");
            assert!(error.starts_with(&expected), "{error}");
            assert!(
                error.ends_with("\", expected a text that is not empty"),
                "{error}"
            );
        }
        let error = read("{\"prompt\": \"a\"}\n{\"prompt\": \"\"}", Generation);
        let error = error.expect_err("an empty prompt");
        assert!(error.starts_with("-:2: key \"prompt\" holds"), "{error}");
        // What there is to do says enough.
        read(r#"{"input": ""}"#, Generation).expect("the task says what to write");
        let own = r#"{"instruction": "Is water wet?", "input": ""}"#;
        read(own, Classification).expect("a question of its own");
        read(r#"{"input": "", "input_b": "b"}"#, Classification).expect("a second text");
    }

    #[test]
    fn columns_have_the_names_that_they_are_given() {
        let columns = [("input".to_owned(), "sentence".to_owned())].into();
        let read = |text: &str| {
            parse_unlabelled(
                text,
                Path::new("-"),
                &meta(TaskKind::Classification),
                &columns,
            )
        };
        let records = read("{\"sentence\": \"a\"}").expect("renamed");
        assert_eq!(records[0].input, "a");
        let error = read("{\"text\": \"a\"}")
            .expect_err("no such column")
            .to_string();
        assert!(error.contains("sentence"), "{error}");
    }
}
