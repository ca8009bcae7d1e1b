//! Records of a split by their numbers, a few at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::super::error::{At, DataError, Place};
use super::index::{Block, Index};
use super::{Format, Row, Wanted, jsonl, parquet};

/// Reads records of a split by their numbers. What follows the records that were read last is read on from there;
/// other records from the beginning of their block.
pub(in super::super) struct Reader {
    index: Arc<Index>,
    is_wanted: Wanted,
    /// Where the last records ended.
    place: Option<Reached>,
}

/// How far a file was read.
struct Reached {
    file: usize,
    /// Number of the record that comes next.
    next: usize,
    at: Position,
}

enum Position {
    /// The byte at which the next line begins. The file is opened for every few lines: many streams would hold
    /// as many files open.
    Line(u64),
    /// The rows that are left of the file.
    Rows(parquet::Rows),
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let next = self.place.as_ref().map(|place| place.next);
        f.debug_struct("Reader")
            .field("next", &next)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// A reader of the files of an index; of Parquet it decodes the wanted columns alone.
    pub(in super::super) fn new(index: Arc<Index>, is_wanted: Wanted) -> Self {
        Self {
            index,
            is_wanted,
            place: None,
        }
    }

    /// The records with these numbers, in order.
    ///
    /// # Errors
    /// The first that is broken, with file and line or row; a file that is not what it was when it was counted.
    ///
    /// # Panics
    /// If there are fewer records.
    pub(in super::super) fn read(&mut self, records: Range<usize>) -> Result<Vec<Row>, DataError> {
        assert!(records.end <= self.index.records(), "records are there");
        let index = self.index.clone();
        let mut rows = Vec::with_capacity(records.len());
        while rows.len() < records.len() {
            let from = records.start + rows.len();
            let block = index.block(from);
            let until = records.end.min(index.end_of(block.file));
            // After an error it is not known where the file was left.
            let place = self.place.take();
            let place = self.read_file(place, block, from..until, &mut rows)?;
            self.place = Some(place);
        }
        Ok(rows)
    }

    /// Reads records of one file, the first of which lies in `block`, and returns how far it came.
    fn read_file(
        &self,
        place: Option<Reached>,
        block: &Block,
        records: Range<usize>,
        rows: &mut Vec<Row>,
    ) -> Result<Reached, DataError> {
        let (path, format) = self.index.file(block.file);
        let can_go_on = |place: &Reached| {
            place.file == block.file && (block.first..=records.start).contains(&place.next)
        };
        let mut place = match place.filter(can_go_on) {
            Some(place) => place,
            None => Reached {
                file: block.file,
                next: block.first,
                at: self.open(path, *format, block)?,
            },
        };
        let (skipped, count) = (records.start - place.next, records.len());
        let first_row = block.row + (records.start - block.first);
        place.at = match place.at {
            Position::Line(byte) => {
                Position::Line(read_lines(path, byte, skipped, first_row, count, rows)?)
            }
            Position::Rows(reached) => {
                let (reached, found) = parquet::read_on(parquet::skip(reached, skipped)?, count)?;
                rows.extend(found);
                Position::Rows(reached)
            }
        };
        place.next = records.end;
        Ok(place)
    }

    fn open(&self, path: &Path, format: Format, block: &Block) -> Result<Position, DataError> {
        match format {
            Format::Parquet => {
                let start = (block.at as usize, block.row);
                Ok(Position::Rows(parquet::open(path, &self.is_wanted, start)?))
            }
            // Others are not indexed.
            Format::Jsonl | Format::Json | Format::Csv => Ok(Position::Line(block.at)),
        }
    }
}

/// Reads lines behind `skipped` others, the first of which is number `first` of the file from 0, and returns the byte
/// behind them.
fn read_lines(
    path: &Path,
    byte: u64,
    skipped: usize,
    first: usize,
    count: usize,
    rows: &mut Vec<Row>,
) -> Result<u64, DataError> {
    let unreadable = |source| DataError::Read {
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    file.seek(SeekFrom::Start(byte)).map_err(unreadable)?;
    let mut file = BufReader::new(file);
    let (mut byte, mut line) = (byte, Vec::new());
    for number in 0..skipped + count {
        line.clear();
        let most = file.by_ref().take(jsonl::LONGEST as u64 + 1);
        let read = { most }.read_until(b'\n', &mut line).map_err(unreadable)?;
        if read == 0 {
            let cut = std::io::Error::other("it has become shorter since its records were counted");
            return Err(unreadable(cut));
        }
        byte += read as u64;
        if let Some(number) = number.checked_sub(skipped) {
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            rows.push(jsonl::parse(
                line,
                Place::new(path, At::Line(first + number + 1)),
            )?);
        }
    }
    Ok(byte)
}
