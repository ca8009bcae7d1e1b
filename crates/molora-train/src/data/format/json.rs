//! One JSON array of objects.

use std::path::Path;

use super::super::error::{At, DataError, Place};
use super::super::fields::{Columns, json_problem};
use super::{Row, check_utf8, read_text};

/// Reads all entries of the array.
pub(super) fn read(path: &Path) -> Result<Vec<Row>, DataError> {
    let text = read_text(path)?;
    let place = Place::file(path);
    if text.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    check_utf8(&text, &place)?;
    let broken = |message| DataError::Json {
        place: place.clone(),
        message,
    };
    if text.trim_ascii_start().starts_with(b"{") {
        let message = "found an object, expected a list of objects (one object a line belongs in \
                       a .jsonl file)";
        return Err(broken(message.into()));
    }
    let entries: Vec<Columns> = serde_json::from_slice(&text)
        .map_err(|error| broken(json_problem(&error, &text, &place)))?;
    let row = |(index, Columns(columns))| Row {
        place: Place::new(path, At::Row(index + 1)),
        columns,
        is_text: false,
    };
    Ok(entries.into_iter().enumerate().map(row).collect())
}
