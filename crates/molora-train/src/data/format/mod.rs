//! File formats: from bytes to rows of named values.
//!
//! Every format yields the same thing, a [`Row`] with a JSON value by column name and the place
//! that errors name. What the columns mean is decided in [`super::schema`].

mod csv;
mod error;
mod index;
mod json;
mod jsonl;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(not(feature = "parquet"))]
#[path = "no_parquet.rs"]
mod parquet;
mod reader;
mod tabs;

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::{At, DataError, Place};
pub use error::FormatError;
pub(super) use index::Index;
pub(super) use jsonl::parse_lines;
pub(super) use reader::Reader;

/// One record as it stands in a file.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Where it stands.
    pub(crate) place: Place,
    /// Its values by column.
    pub(crate) columns: Map<String, Value>,
    /// Whether the format has nothing but text, so that numbers are written as text.
    pub(crate) is_text: bool,
}

/// A file format, recognised by the file's extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One JSON object a line.
    Jsonl,
    /// One JSON array of objects.
    Json,
    /// Comma-separated values with a header.
    Csv,
    /// Apache Parquet.
    Parquet,
}

impl Format {
    /// All formats.
    pub(super) const ALL: [Self; 4] = [Self::Jsonl, Self::Json, Self::Csv, Self::Parquet];

    /// The ending of file names, without the dot.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Json => "json",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }

    /// The format of a file by its name.
    ///
    /// # Errors
    /// If the ending is none of the known ones.
    pub(super) fn of(path: &Path) -> Result<Self, FormatError> {
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        let found = Self::ALL
            .into_iter()
            .find(|format| ending == format.ending());
        found.ok_or_else(|| FormatError::Ending { path: path.into() })
    }

    /// Gives values the types that their columns ask for, where the format has too few of its own:
    /// everything in CSV is text. A label in CSV stays text, because it may be a name, unless
    /// `has_numbers` says that the schema knows labels by number alone.
    pub(super) fn type_values(self, row: &mut Row, has_numbers: bool) -> Result<(), DataError> {
        match self {
            Self::Csv => csv::type_values(row, has_numbers),
            Self::Jsonl | Self::Json | Self::Parquet => Ok(()),
        }
    }
}

/// Columns that hold a label, which may be a number.
const LABELS: [&str; 3] = ["label", "answer", "answerKey"];

/// Which columns are wanted.
pub(super) type Wanted = std::sync::Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Reads all rows of a file. Of a format whose columns lie apart, those that `is_wanted` turns down are
/// not decoded and hold null.
///
/// # Errors
/// The first thing found wrong, with file and line or row; a file without any row is an error.
pub(super) fn read_rows(path: &Path, is_wanted: Wanted) -> Result<(Format, Vec<Row>), DataError> {
    let format = Format::of(path)?;
    let rows = match format {
        Format::Jsonl => jsonl::read(path)?,
        Format::Json => json::read(path)?,
        Format::Csv => csv::read(path)?,
        Format::Parquet => parquet::read(path, is_wanted)?,
    };
    match rows.is_empty() {
        true => Err(DataError::EmptySplit { path: path.into() }),
        false => Ok((format, rows)),
    }
}

/// Reads all rows and columns of a file in the form in which others publish it: one of the formats, or values
/// with tabs between them (`.tsv`, `.txt`) under the names of the first line or of `header`.
///
/// # Errors
/// As [`read_rows`].
pub(crate) fn read_published(
    path: &Path,
    header: Option<&[String]>,
) -> Result<Vec<Row>, DataError> {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    if ending != "tsv" && ending != "txt" {
        return Ok(read_rows(path, std::sync::Arc::new(|_| true))?.1);
    }
    let rows = tabs::read(path, header)?;
    match rows.is_empty() {
        true => Err(DataError::EmptySplit { path: path.into() }),
        false => Ok(rows),
    }
}

/// What some programs put in front of a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Refuses a pipe or a device, which may never end.
fn check_is_file(path: &Path) -> std::io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(std::io::Error::other("is no regular file")),
        _ => Ok(()),
    }
}

/// A file's text without a byte order mark.
pub(super) fn read_text(path: &Path) -> Result<Vec<u8>, DataError> {
    let read = check_is_file(path).and_then(|()| std::fs::read(path));
    let mut text = read.map_err(|source| DataError::Read {
        path: path.into(),
        source,
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(text)
}

/// Bytes as a text; `path` is named in errors.
///
/// # Errors
/// The first line that is no UTF-8, with the byte.
pub fn text_of(bytes: &[u8], path: &Path) -> Result<String, DataError> {
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        check_utf8(line, &Place::new(path, At::Line(index + 1)))?;
    }
    // Every line is UTF-8, so that nothing is replaced.
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// The error for bytes that are no UTF-8, if there is one.
fn check_utf8(text: &[u8], place: &Place) -> Result<(), FormatError> {
    std::str::from_utf8(text)
        .map(|_| ())
        .map_err(|error| FormatError::Encoding {
            place: place.clone(),
            byte: error.valid_up_to() + 1,
        })
}

/// The most columns of a file.
const MAX_COLUMNS: usize = 4096;

/// The error for too many columns, or a name that stands twice among them, if there is one.
fn check_columns(names: &[&str], place: &Place) -> Result<(), FormatError> {
    if names.len() > MAX_COLUMNS {
        return Err(FormatError::ManyColumns {
            place: place.clone(),
            found: names.len(),
            limit: MAX_COLUMNS,
        });
    }
    let mut known = HashSet::new();
    match names.iter().find(|name| !known.insert(**name)) {
        None => Ok(()),
        Some(name) => Err(FormatError::DuplicateColumn {
            place: place.clone(),
            column: (*name).into(),
        }),
    }
}

#[cfg(test)]
mod tests;
