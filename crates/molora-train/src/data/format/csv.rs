//! Comma-separated values with a header, quoted as in RFC 4180.

use std::path::Path;

use csv::{ErrorKind, ReaderBuilder, StringRecord};
use serde_json::{Number, Value};

use super::super::error::{At, DataError, Place};
use super::super::fields::json_problem;
use super::{FormatError, LABELS, Row, check_columns, read_text};

/// Reads all rows; every value is a text.
pub(super) fn read(path: &Path) -> Result<Vec<Row>, DataError> {
    let text = read_text(path)?;
    let mut reader = ReaderBuilder::new().from_reader(&text[..]);
    let header = reader.headers().map_err(|error| locate(path, &error))?;
    let header = header.clone();
    let names: Vec<&str> = header.iter().collect();
    check_columns(&names, &Place::new(path, At::Line(1)))?;
    let rows = reader.records().map(|record| match record {
        Ok(record) => Ok(row(path, &names, &record)),
        Err(error) => Err(locate(path, &error).into()),
    });
    rows.collect()
}

fn row(path: &Path, names: &[&str], record: &StringRecord) -> Row {
    let line = record.position().map_or(0, csv::Position::line);
    let value = |(name, text): (&&str, &str)| ((*name).to_owned(), Value::from(text));
    Row {
        place: Place::new(path, At::Line(line as usize)),
        columns: names.iter().zip(record).map(value).collect(),
        is_text: true,
    }
}

fn locate(path: &Path, error: &csv::Error) -> FormatError {
    let line = error.position().map_or(1, csv::Position::line);
    let place = Place::new(path, At::Line(line as usize));
    let message = match error.kind() {
        ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("found {len} fields, expected {expected_len} as in the header"),
        ErrorKind::Utf8 { err, .. } => {
            format!("field {} is no UTF-8 text", err.field() + 1)
        }
        _ => error.to_string(),
    };
    FormatError::Csv { place, message }
}

/// Reads nested columns as JSON, empty optional ones as null, and with `has_numbers` labels as numbers
/// where they are some.
pub(super) fn type_values(row: &mut Row, has_numbers: bool) -> Result<(), DataError> {
    for (name, value) in &mut row.columns {
        let Value::String(text) = value else {
            continue;
        };
        let text = text.trim();
        let name = name.as_str();
        let is_nested = matches!(name, "messages" | "conversations" | "choices");
        let is_optional =
            is_nested || LABELS.contains(&name) || name == "input_b" || name == "meta";
        if text.is_empty() && is_optional {
            *value = Value::Null;
        } else if is_nested {
            *value = nested(text, name, &row.place)?;
        } else if has_numbers
            && LABELS.contains(&name)
            && let Some(number) = number(text)
        {
            *value = Value::Number(number);
        }
    }
    Ok(())
}

fn nested(text: &str, name: &str, place: &Place) -> Result<Value, DataError> {
    serde_json::from_str(text).map_err(|error| {
        let message = json_problem(&error, text.as_bytes(), place);
        DataError::Json {
            place: place.clone(),
            message: format!("column \"{name}\": {message}"),
        }
    })
}

fn number(text: &str) -> Option<Number> {
    let whole = text.parse::<i64>().ok().map(Number::from);
    whole.or_else(|| text.parse().ok().and_then(Number::from_f64))
}
