//! A record's keys taken out one by one, with errors that name file, line and key.
//!
//! There is no derived struct, because serde's message for a wrong type does not name the key.

use std::fmt;

use minijinja::value::{Value as TemplateValue, ValueKind};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::error::{At, DataError, Place};
use super::record::Label;

/// A JSON object whose keys are taken out one by one, with errors that know the place.
pub(super) struct Fields<'a> {
    pub(super) map: Map<String, Value>,
    pub(super) place: &'a Place,
    /// Whether numbers are written as text.
    pub(super) is_text: bool,
    /// The keys of the map that were taken out, for messages.
    taken: Vec<String>,
}

impl<'a> Fields<'a> {
    /// Parses a whole JSON object.
    pub(super) fn parse(text: &[u8], place: &'a Place) -> Result<Self, DataError> {
        let broken = |message: String| DataError::Json {
            place: place.clone(),
            message,
        };
        match serde_json::from_slice(text) {
            Ok(Columns(map)) => Ok(Self::new(map, place)),
            Err(error) => Err(broken(json_problem(&error, text, place))),
        }
    }

    /// An object that is parsed already.
    pub(super) fn new(map: Map<String, Value>, place: &'a Place) -> Self {
        Self {
            map,
            place,
            is_text: false,
            taken: Vec::new(),
        }
    }

    /// All keys, those that were taken out too, sorted.
    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.map.keys().chain(&self.taken).cloned().collect();
        keys.sort();
        keys
    }

    fn remove(&mut self, key: &str) -> Option<Value> {
        let (key, value) = self.map.remove_entry(key)?;
        self.taken.push(key);
        Some(value)
    }

    /// Takes a value that has to be there.
    pub(super) fn take(&mut self, key: &'static str) -> Result<Value, DataError> {
        self.remove(key).ok_or_else(|| DataError::MissingKey {
            place: self.place.clone(),
            key,
        })
    }

    /// Takes a value, null where the key is not there.
    pub(super) fn take_or_null(&mut self, key: &str) -> Value {
        self.remove(key).unwrap_or_default()
    }

    pub(super) fn string(&mut self, key: &'static str) -> Result<String, DataError> {
        match self.take(key)? {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(key, &other, "a string")),
        }
    }

    pub(super) fn optional_string(
        &mut self,
        key: &'static str,
    ) -> Result<Option<String>, DataError> {
        match self.take(key)? {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            other => Err(self.wrong_type(key, &other, "a string or null")),
        }
    }

    pub(super) fn string_list(
        &self,
        key: &'static str,
        value: Value,
    ) -> Result<Vec<String>, DataError> {
        let expected = "a list of strings";
        let Value::Array(items) = value else {
            return Err(self.wrong_type(key, &value, expected));
        };
        let text = |item| match item {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(key, &other, expected)),
        };
        items.into_iter().map(text).collect()
    }

    pub(super) fn index(
        &self,
        value: &Value,
        count: usize,
        what: &'static str,
    ) -> Result<Label, DataError> {
        let Some(found) = whole(value) else {
            return Err(self.wrong_type("label", value, "a whole number"));
        };
        match usize::try_from(found) {
            Ok(index) if index < count => Ok(Label::Index(index)),
            _ => Err(DataError::LabelRange {
                place: self.place.clone(),
                found,
                count,
                what,
            }),
        }
    }

    pub(super) fn wrong_type(
        &self,
        key: &'static str,
        value: &Value,
        expected: &'static str,
    ) -> DataError {
        DataError::WrongType {
            place: self.place.clone(),
            key,
            found: describe(value),
            expected,
        }
    }

    pub(super) fn contradiction(
        &self,
        key: &'static str,
        found: String,
        expected: String,
    ) -> DataError {
        DataError::Contradiction {
            place: self.place.clone(),
            key,
            found,
            expected,
        }
    }
}

/// A whole number, which may be written as one with a fraction of 0.
pub(super) fn whole(value: &Value) -> Option<i64> {
    let is_whole = |number: &f64| number.fract() == 0.0 && number.abs() < 1e15;
    let rounded = || value.as_f64().filter(is_whole).map(|number| number as i64);
    value.as_i64().or_else(rounded)
}

/// A JSON object in which no key stands twice: of two, serde's own map keeps the last in silence.
pub(super) struct Columns(pub(super) Map<String, Value>);

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ColumnsVisitor)
    }
}

struct ColumnsVisitor;

impl<'de> Visitor<'de> for ColumnsVisitor {
    type Value = Columns;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Columns, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("key \"{key}\" stands twice")));
            }
            let value = match &key[..] {
                "tools" | "messages" | "conversations" => in_order(&key, access.next_value()?),
                _ => access.next_value()?,
            };
            map.insert(key, value);
        }
        Ok(Columns(map))
    }
}

/// A value whose objects under `tools` and `tool_calls` are JSON texts, with their keys in the order of
/// the file, which a map of serde's does not keep: chat templates write them down as they are.
fn in_order(key: &str, value: TemplateValue) -> Value {
    let is_kept = ["tools", "tool_calls"].contains(&key);
    match value.kind() {
        ValueKind::Seq | ValueKind::Map if is_kept && value.len() > Some(0) => {
            Value::from(serde_json::to_string(&value).unwrap_or_default())
        }
        ValueKind::Seq => {
            let items = value.try_iter().into_iter().flatten();
            items.map(|item| in_order("", item)).collect()
        }
        ValueKind::Map => {
            let keys = value.try_iter().into_iter().flatten();
            let entry = |key: TemplateValue| {
                let inside = value.get_item(&key).unwrap_or_default();
                let key = key.to_string();
                let inside = in_order(&key, inside);
                (key, inside)
            };
            Value::Object(keys.map(entry).collect())
        }
        _ => serde_json::to_value(&value).unwrap_or_default(),
    }
}

/// What is wrong with a text that is no JSON.
pub(super) fn json_problem(error: &serde_json::Error, text: &[u8], place: &Place) -> String {
    let mut lines = text.split(|&byte| byte == b'\n');
    let line = lines
        .nth(error.line().saturating_sub(1))
        .unwrap_or_default();
    // The parser stops at the first letter of the word, or behind the sign in front of it.
    let at = |column: usize| line.get(column..).unwrap_or_default();
    let found = ["NaN", "Infinity"].into_iter().find(|word| {
        let starts = |column: usize| at(column).starts_with(word.as_bytes());
        error.is_syntax() && (starts(error.column().saturating_sub(1)) || starts(error.column()))
    });
    let message = shorten_position(error, place);
    match found {
        None => message,
        Some(word) => format!(
            "{message}: {word}, which Python's json.dumps writes, is no JSON; write null in its place"
        ),
    }
}

/// serde counts lines inside the text it got, which for JSON lines is always 1: keep the column
/// alone there.
fn shorten_position(error: &serde_json::Error, place: &Place) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    match (place.at, message.strip_suffix(&position)) {
        (At::Line(_) | At::Row(_), Some(text)) => format!("{text} at column {}", error.column()),
        _ => message,
    }
}

/// Names a value's type, and the value where it is short.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => format!("the boolean {flag}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string \"{}\"", beginning(text)),
        Value::Array(items) => format!("a list of {} items", items.len()),
        Value::Object(_) => "an object".into(),
    }
}

/// The first 40 characters of a text on one line, for messages.
pub(super) fn beginning(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short.replace(['\n', '\r'], " ")
}
