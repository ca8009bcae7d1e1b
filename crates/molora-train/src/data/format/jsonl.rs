//! JSON lines: one object a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::super::error::{At, DataError, Place};
use super::super::fields::Fields;
use super::{BYTE_ORDER_MARK, FormatError, Row, check_is_file, check_utf8, read_text};

/// The longest line of a file that is read by pieces, in bytes with its end.
pub(super) const LONGEST: usize = 64 << 20;

/// Lines of a piece.
const LINES: usize = 1024;

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

/// Reads one line.
///
/// # Errors
/// If it is no object.
pub(super) fn parse(line: &[u8], place: Place) -> Result<Row, DataError> {
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

/// The first bytes and numbers of lines of the pieces of a file, which is gone through once and not held.
///
/// # Errors
/// A blank line between others, one that is longer than [`LONGEST`], or a file that cannot be read.
pub(super) fn pieces(path: &Path) -> Result<Vec<(u64, usize)>, DataError> {
    let unreadable = |source| DataError::Read {
        path: path.into(),
        source,
    };
    check_is_file(path).map_err(unreadable)?;
    let file = File::open(path).map_err(unreadable)?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let (mut byte, mut line) = (0, Vec::new());
    let (mut pieces, mut lines) = (Vec::<(u64, usize)>::new(), 0);
    let mut blank = None;
    loop {
        line.clear();
        let most = file.by_ref().take(LONGEST as u64 + 1);
        let read = { most }.read_until(b'\n', &mut line).map_err(unreadable)?;
        if read == 0 {
            return Ok(pieces);
        }
        lines += 1;
        let place = || Place::new(path, At::Line(lines));
        if read > LONGEST {
            return Err(FormatError::LongLine {
                place: place(),
                limit: LONGEST >> 20,
            }
            .into());
        }
        let mark = match byte == 0 && line.starts_with(BYTE_ORDER_MARK) {
            true => BYTE_ORDER_MARK.len(),
            false => 0,
        };
        match (line[mark..].trim_ascii().is_empty(), &blank) {
            (true, None) => blank = Some(place()),
            (true, Some(_)) => {}
            (false, Some(place)) => {
                let place = place.clone();
                return Err(DataError::BlankLine { place });
            }
            (false, None) => match pieces.last_mut().filter(|(_, count)| *count < LINES) {
                Some((_, count)) => *count += 1,
                None => pieces.push((byte + mark as u64, 1)),
            },
        }
        byte += read as u64;
    }
}
