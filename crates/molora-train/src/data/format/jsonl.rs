//! JSON lines: one object a line.

use std::path::Path;

use super::super::error::{At, DataError, Place};
use super::super::fields::Fields;
use super::{Row, check_utf8, read_text};

/// Reads all lines. Blank lines are allowed at the end only.
pub(super) fn read(path: &Path) -> Result<Vec<Row>, DataError> {
    parse_lines(&read_text(path)?, path)
}

/// Reads the lines of a text; `path` is named in errors.
///
/// # Errors
/// The first line that is no object.
pub(in super::super) fn parse_lines(text: &[u8], path: &Path) -> Result<Vec<Row>, DataError> {
    let text = text.trim_ascii_end();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(|&byte| byte == b'\n')
        .enumerate()
        .map(|(index, line)| parse(line, Place::new(path, At::Line(index + 1))))
        .collect()
}

fn parse(line: &[u8], place: Place) -> Result<Row, DataError> {
    if line.trim_ascii().is_empty() {
        return Err(DataError::BlankLine { place });
    }
    check_utf8(line, &place)?;
    let columns = Fields::parse(line, &place)?.map;
    Ok(Row {
        place,
        columns,
        is_text: false,
    })
}
