//! A record's keys taken out one by one, with errors that name file, line and key.
//!
//! Keys are taken out one by one instead of through a derived struct, because serde's message for
//! a wrong type does not name the key.

use serde_json::{Map, Value};

use super::error::{At, DataError, Place};
use super::record::Label;

/// A JSON object whose keys are taken out one by one, with errors that know the place.
pub(super) struct Fields<'a> {
    pub(super) map: Map<String, Value>,
    pub(super) place: &'a Place,
}

impl<'a> Fields<'a> {
    /// Parses a whole JSON object.
    pub(super) fn parse(text: &[u8], place: &'a Place) -> Result<Self, DataError> {
        let broken = |message: String| DataError::Json {
            place: place.clone(),
            message,
        };
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(Self { map, place }),
            Ok(other) => Err(broken(format!(
                "found {}, expected an object",
                describe(&other)
            ))),
            Err(error) => Err(broken(shorten_position(&error, place))),
        }
    }

    /// An object that is parsed already.
    pub(super) fn new(map: Map<String, Value>, place: &'a Place) -> Self {
        Self { map, place }
    }

    /// Takes a value that has to be there.
    pub(super) fn take(&mut self, key: &'static str) -> Result<Value, DataError> {
        self.map.remove(key).ok_or_else(|| DataError::MissingKey {
            place: self.place.clone(),
            key,
        })
    }

    /// Takes a value, null where the key is not there.
    pub(super) fn take_or_null(&mut self, key: &str) -> Value {
        self.map.remove(key).unwrap_or_default()
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
        let Some(found) = value.as_i64() else {
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

/// serde counts lines inside the text it got, which for JSON lines is always 1: keep the column
/// alone there.
pub(super) fn shorten_position(error: &serde_json::Error, place: &Place) -> String {
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
