//! In the place of a reader of Parquet, in a build without one.

use std::path::Path;

use super::super::error::DataError;
use super::{FormatError, Row, Wanted};

/// The rows of a file, of which there are none.
pub(super) enum Rows {}

/// Refuses the file.
pub(super) fn read(path: &Path, _: Wanted) -> Result<Vec<Row>, DataError> {
    Err(refused(path))
}

/// Refuses the file.
pub(super) fn row_groups(path: &Path) -> Result<Vec<usize>, DataError> {
    Err(refused(path))
}

/// Refuses the file.
pub(super) fn open(path: &Path, _: &Wanted, _: (usize, usize)) -> Result<Rows, DataError> {
    Err(refused(path))
}

/// What there is of no rows.
pub(super) fn skip(rows: Rows, _: usize) -> Result<Rows, DataError> {
    match rows {}
}

/// What there is of no rows.
pub(super) fn read_on(rows: Rows, _: usize) -> Result<(Rows, Vec<Row>), DataError> {
    match rows {}
}

fn refused(path: &Path) -> DataError {
    FormatError::NoParquet { path: path.into() }.into()
}
