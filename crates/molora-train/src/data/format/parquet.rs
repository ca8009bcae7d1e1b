//! Apache Parquet, read row by row.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::serialized_reader::ReadOptionsBuilder;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as ParquetRow};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::super::error::{At, DataError, Place};
use super::{FormatError, Row, Wanted, check_columns};
use crate::data::contain::{self, Bounds};

/// What a small file may take, and what it may take for each of its bytes: pages are packed.
const MEMORY: u64 = 512 << 20;
const MEMORY_OF_BYTE: u64 = 64;
const TIME: Duration = Duration::from_secs(60);
const TIME_OF_MIB: Duration = Duration::from_secs(2);

/// Rows that are skipped within the bounds of a few.
const SKIPPED: usize = 1 << 16;

/// What reading a few rows may take.
const BOUNDS: Bounds = Bounds {
    stack: 16 << 20,
    memory: MEMORY,
    time: TIME,
};

/// Reads all rows. The parquet crate panics on some files with wrong bytes in them, and unpacks
/// whatever a file says that it holds; user data must not do either.
///
/// Columns that are not requested hold null.
pub(super) fn read(path: &Path, is_wanted: Wanted) -> Result<Vec<Row>, DataError> {
    let size = std::fs::metadata(path).map_err(|source| DataError::Read {
        path: path.into(),
        source,
    })?;
    let size = size.len();
    let bounds = Bounds {
        memory: MEMORY + size.saturating_mul(MEMORY_OF_BYTE),
        time: TIME + TIME_OF_MIB * u32::try_from(size >> 20).unwrap_or(u32::MAX),
        ..BOUNDS
    };
    let own = path.to_owned();
    within(bounds, path, move || {
        Rows::from_group(&own, &*is_wanted, (0, 0))?.collect()
    })
}

/// Numbers of rows of a file's row groups.
///
/// # Errors
/// If it cannot be read, or is no Parquet.
pub(super) fn row_groups(path: &Path) -> Result<Vec<usize>, DataError> {
    let own = path.to_owned();
    within(BOUNDS, path, move || {
        let reader = SerializedFileReader::new(open_file(&own)?);
        let reader = reader.map_err(|error| broken(&Place::file(&own), &error))?;
        let groups = reader.metadata().row_groups().iter();
        Ok(groups
            .map(|group| usize::try_from(group.num_rows()).unwrap_or(0))
            .collect())
    })
}

/// The rows of a file from a row group on, given with the number of its first row.
///
/// # Errors
/// As [`read`].
pub(super) fn open(
    path: &Path,
    is_wanted: &Wanted,
    start: (usize, usize),
) -> Result<Rows, DataError> {
    let (own, is_wanted) = (path.to_owned(), is_wanted.clone());
    within(BOUNDS, path, move || {
        Rows::from_group(&own, &*is_wanted, start)
    })
}

/// What follows the next `count` rows.
///
/// # Errors
/// As [`read`], and if there are fewer rows.
pub(super) fn skip(mut rows: Rows, mut count: usize) -> Result<Rows, DataError> {
    while count > 0 {
        let part = count.min(SKIPPED);
        let path = rows.path.clone();
        rows = within(BOUNDS, &path, move || {
            for _ in 0..part {
                rows.undecoded().ok_or_else(|| rows.too_few())??;
            }
            Ok(rows)
        })?;
        count -= part;
    }
    Ok(rows)
}

/// The next `count` rows, and what follows them.
///
/// # Errors
/// As [`read`], and if there are fewer rows.
pub(super) fn read_on(mut rows: Rows, count: usize) -> Result<(Rows, Vec<Row>), DataError> {
    let path = rows.path.clone();
    within(BOUNDS, &path, move || {
        let mut found = Vec::with_capacity(count);
        for _ in 0..count {
            found.push(rows.next().ok_or_else(|| rows.too_few())??);
        }
        Ok((rows, found))
    })
}

/// Runs work on a file within bounds.
fn within<T: Send + 'static>(
    bounds: Bounds,
    path: &Path,
    work: impl FnOnce() -> Result<T, DataError> + Send + 'static,
) -> Result<T, DataError> {
    contain::run(bounds, work).unwrap_or_else(|problem| {
        let broken = FormatError::Parquet {
            place: Place::file(path),
            message: format!("the file {problem}"),
        };
        Err(broken.into())
    })
}

fn open_file(path: &Path) -> Result<File, DataError> {
    File::open(path).map_err(|source| DataError::Read {
        path: path.into(),
        source,
    })
}

/// The rows of a file as they are asked for.
pub(super) struct Rows {
    path: PathBuf,
    rows: RowIter<'static>,
    /// Names of columns that are not decoded.
    left: Vec<String>,
    /// Number of the next row in the file, from 0.
    next: usize,
}

impl Rows {
    /// The rows from a row group on, given with the number of its first row.
    fn from_group(
        path: &Path,
        is_wanted: &dyn Fn(&str) -> bool,
        (group, first): (usize, usize),
    ) -> Result<Self, DataError> {
        let whole = Place::file(path);
        let options = ReadOptionsBuilder::new()
            .with_predicate(Box::new(move |_, number| number >= group))
            .build();
        let reader = SerializedFileReader::new_with_options(open_file(path)?, options);
        let reader = reader.map_err(|error| broken(&whole, &error))?;
        let schema = reader.metadata().file_metadata().schema();
        let fields = schema.get_fields().iter();
        let names: Vec<&str> = fields.clone().map(|field| field.name()).collect();
        check_columns(&names, &whole)?;
        let wanted: Vec<_> = fields
            .filter(|field| is_wanted(field.name()))
            .cloned()
            .collect();
        if wanted.is_empty() && reader.metadata().file_metadata().num_rows() > 0 {
            let unknown = FormatError::Columns {
                place: Place::new(path, At::Row(1)),
                found: names.iter().map(|&name| name.into()).collect(),
            };
            return Err(unknown.into());
        }
        let left = names.iter().filter(|name| !is_wanted(name));
        let left = left.map(|&name| name.to_owned()).collect();
        let projection = Type::group_type_builder(schema.name()).with_fields(wanted);
        let projection = projection.build().map_err(|error| broken(&whole, &error))?;
        let rows = RowIter::from_file_into(Box::new(reader)).project(Some(projection));
        Ok(Self {
            path: path.into(),
            rows: rows.map_err(|error| broken(&whole, &error))?,
            left,
            next: first,
        })
    }

    /// The next row as the parquet crate has it.
    fn undecoded(&mut self) -> Option<Result<ParquetRow, FormatError>> {
        self.next += 1;
        let place = Place::new(&self.path, At::Row(self.next));
        let row = self.rows.next()?;
        Some(row.map_err(|error| broken(&place, &error)))
    }

    fn too_few(&self) -> DataError {
        let broken = FormatError::Parquet {
            place: Place::new(&self.path, At::Row(self.next)),
            message: "there are fewer rows than the file says".into(),
        };
        broken.into()
    }
}

impl Iterator for Rows {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.undecoded()?;
        let place = Place::new(&self.path, At::Row(self.next));
        let columns = row.and_then(|row| {
            object(row).map_err(|message| FormatError::Parquet {
                place: place.clone(),
                message,
            })
        });
        let row = columns.map(|mut columns| {
            let left = self.left.iter().cloned();
            columns.extend(left.map(|name| (name, Value::Null)));
            Row {
                place,
                columns,
                is_text: false,
            }
        });
        Some(row.map_err(DataError::from))
    }
}

fn broken(place: &Place, error: &ParquetError) -> FormatError {
    FormatError::Parquet {
        place: place.clone(),
        message: error.to_string().lines().next().unwrap_or_default().into(),
    }
}

fn object(row: ParquetRow) -> Result<Map<String, Value>, String> {
    let columns = row.into_columns().into_iter();
    let named = |(name, field)| match value(field) {
        Ok(value) => Ok((name, value)),
        Err(problem) => Err(format!("column \"{name}\" {problem}")),
    };
    columns.map(named).collect()
}

/// A value as JSON would hold it; dates and the like as text.
fn value(field: Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => flag.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float16(number) => shortest(number),
        Field::Float(number) => shortest(number),
        Field::Double(number) => number.into(),
        Field::Str(text) => text.into(),
        // Old writers leave out that a column holds text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => return Err("holds bytes that are no UTF-8 text".into()),
        },
        Field::Group(row) => Value::Object(object(row)?),
        Field::ListInternal(list) => {
            let items = list.elements().iter().cloned().map(value);
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        other => other.to_string().into(),
    })
}

/// The double with the shortest text that means the same number: 2.4 stays 2.4.
fn shortest(number: impl std::fmt::Display) -> Value {
    number
        .to_string()
        .parse::<f64>()
        .map_or(Value::Null, Value::from)
}
