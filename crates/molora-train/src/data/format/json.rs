//! One JSON array of objects.

use std::path::Path;

use serde_json::Value;

use super::super::error::{At, DataError, Place};
use super::super::fields::{describe, shorten_position};
use super::{Row, check_utf8, read_text};

/// Reads all entries of the array.
pub(super) fn read(path: &Path) -> Result<Vec<Row>, DataError> {
    let text = read_text(path)?;
    let place = Place::file(path);
    if text.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    check_utf8(&text, &place)?;
    let broken = |place: &Place, message| DataError::Json {
        place: place.clone(),
        message,
    };
    let hint = "expected a list of objects (one object a line belongs in a .jsonl file)";
    let value: Value = serde_json::from_slice(&text).map_err(|error| {
        // Several objects one after the other are JSON lines under another name.
        let starts_object = text.trim_ascii_start().starts_with(b"{");
        match starts_object {
            true => broken(&place, format!("found an object, {hint}")),
            false => broken(&place, shorten_position(&error, &place)),
        }
    })?;
    let Value::Array(entries) = value else {
        return Err(broken(
            &place,
            format!("found {}, {hint}", describe(&value)),
        ));
    };
    let row = |(index, entry)| {
        let place = Place::new(path, At::Row(index + 1));
        match entry {
            Value::Object(columns) => Ok(Row { place, columns }),
            other => {
                let message = format!("found {}, expected an object", describe(&other));
                Err(broken(&place, message))
            }
        }
    };
    entries.into_iter().enumerate().map(row).collect()
}
