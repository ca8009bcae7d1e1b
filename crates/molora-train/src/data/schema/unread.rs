//! Columns that mean something to other tools, and that no schema reads.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::super::format::Row;
use super::super::meta::MetaFile;
use super::super::prompt::PromptTemplate;
use super::super::task::TaskMeta;
use super::{COLUMNS, Schema};

/// Columns that change what is asked or learned wherever a tool reads them.
const MEANT: [&str; 14] = [
    "system",
    "history",
    "tools",
    "functions",
    "documents",
    "context",
    "label",
    "labels",
    "weight",
    "instruction",
    "input_b",
    "choices",
    "chosen",
    "rejected",
];

/// Columns that say what is shown beside the text.
const SHOWN: [&str; 6] = ["image", "images", "video", "videos", "audio", "audios"];

/// Keys of messages that change what is asked or learned.
const IN_MESSAGES: [&str; 5] = [
    "function_call",
    "thinking",
    "reasoning",
    "train_detail",
    "images",
];

/// Whether a column's values are looked at: one with a meaning, or one that a `task.json` names.
pub(in super::super) fn is_read(name: &str, file: Option<&MetaFile>) -> bool {
    let is_named = |file: &MetaFile| file.columns.values().any(|theirs| theirs == name);
    COLUMNS.contains(&name) || MEANT.contains(&name) || file.is_some_and(is_named)
}

/// Names the columns, and the keys of messages, that mean something elsewhere and are not read.
pub(in super::super) fn warn_of_unread(
    schema: Schema,
    template: Option<&PromptTemplate>,
    path: &Path,
    rows: &[Row],
) {
    let path = path.display();
    let is_unread = |name: &&str| !template.is_some_and(|template| template.reads(name));
    for name in unread_columns(schema, rows).into_iter().filter(is_unread) {
        let hint = match (schema, name) {
            (Schema::Text, "label" | "labels") => {
                "; a task.json with \"type\", \"labels\" and \"columns\": {\"input\": \"text\"} makes \
                 it the answer"
            }
            _ => "",
        };
        tracing::warn!("{path}: the column \"{name}\" is not read{hint}");
    }
    if let Schema::Chat(column) = schema {
        for key in unread_keys(column, rows) {
            tracing::warn!("{path}: {key} of messages is not read");
        }
    }
}

/// Says that numbers are read as places of labels, where labels are named by other numbers than their
/// places.
pub(in super::super) fn warn_of_places(path: &Path, meta: &TaskMeta, rows: &[Row]) {
    let names = meta.labels.iter().enumerate();
    let mut others = names.filter(|(place, name)| {
        let number: Option<usize> = name.parse().ok();
        number.is_some_and(|number| number != *place && number < meta.labels.len())
    });
    let is_number = |row: &Row| row.columns.get("label").is_some_and(Value::is_number);
    if let Some((place, name)) = others.next()
        && rows.iter().any(is_number)
    {
        tracing::warn!(
            "{}: a label that is a number is the place of a label from 0, not its name: {place} is \
             \"{name}\"; a name is a text, \"{name}\"",
            path.display()
        );
    }
}

fn unread_columns(schema: Schema, rows: &[Row]) -> Vec<&'static str> {
    let reads: &[&str] = match schema {
        // Columns beside those that all records have are the user's own.
        Schema::Own => &MEANT,
        Schema::Chat(_) => &["system", "tools"],
        Schema::Fields => &["system", "label", "instruction", "input_b", "choices"],
        Schema::Question(_) => &["system", "label", "instruction", "input_b", "choices"],
        Schema::Completion(_) | Schema::Text => &[],
    };
    let is_used = |name: &str| {
        rows.iter()
            .any(|row| row.columns.get(name).is_some_and(says))
    };
    let is_there = |name: &str| rows.iter().any(|row| row.columns.contains_key(name));
    let meant = MEANT
        .into_iter()
        .filter(|name| !reads.contains(name) && is_used(name));
    meant
        .chain(SHOWN.into_iter().filter(|name| is_there(name)))
        .collect()
}

fn unread_keys(column: &str, rows: &[Row]) -> BTreeSet<String> {
    let chats = rows
        .iter()
        .filter_map(|row| row.columns.get(column)?.as_array());
    let mut found = BTreeSet::new();
    for message in chats.flatten().filter_map(Value::as_object) {
        let is_used = |key: &&str| message.get(*key).is_some_and(says);
        found.extend(
            IN_MESSAGES
                .iter()
                .filter(|key| is_used(key))
                .map(|key| format!("\"{key}\"")),
        );
        let role = message.get("role").or_else(|| message.get("from"));
        let is_assistant = role.is_some_and(|role| role == "assistant" || role == "gpt");
        let trains = |key: &&str| message.get(*key) == Some(&Value::Bool(true));
        let keys = ["train", "trainable"].into_iter().filter(trains);
        found.extend(
            keys.filter(|_| !is_assistant).map(|key| {
                format!("\"{key}\": true (nothing but an assistant's words is learned)")
            }),
        );
    }
    found
}

/// Whether a value is there and not empty.
fn says(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::error::{At, Place};
    use super::*;
    use serde_json::json;

    fn row(columns: Value) -> Row {
        let Value::Object(columns) = columns else {
            panic!("columns are an object");
        };
        Row {
            place: Place::new(Path::new("a"), At::Row(1)),
            columns,
            is_text: false,
        }
    }

    #[test]
    fn columns_that_mean_something_are_named() {
        let found = |schema, columns| unread_columns(schema, &[row(columns)]);
        let text = json!({"text": "a", "label": "b", "id": 3, "source": "x"});
        assert_eq!(found(Schema::Text, text), ["label"]);
        let chat = json!({"messages": [], "system": "a", "tools": "[..]", "images": null});
        assert_eq!(found(Schema::Chat("messages"), chat), ["images"]);
        let fields = json!({"instruction": "a", "output": "b", "history": [["a", "b"]]});
        assert_eq!(found(Schema::Fields, fields), ["history"]);
        let empty = json!({"instruction": "a", "output": "b", "history": [], "system": ""});
        assert!(found(Schema::Fields, empty).is_empty());
    }

    #[test]
    fn keys_of_messages_are_named() {
        let rows = [row(json!({"messages": [
            {"role": "user", "content": "a", "train": true, "name": null},
            {"role": "assistant", "content": "b", "train": true, "function_call": {"name": "f"}},
        ]}))];
        let found: Vec<String> = unread_keys("messages", &rows).into_iter().collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], "\"function_call\"");
        assert!(found[1].starts_with("\"train\": true"), "{found:?}");
    }
}
