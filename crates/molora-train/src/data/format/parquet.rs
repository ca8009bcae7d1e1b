//! Apache Parquet, read row by row.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as ParquetRow};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::super::error::{At, DataError, Place};
use super::{FormatError, Row, check_columns};
use crate::data::contain::{self, Bounds};

/// What a small file may take, and what it may take for each of its bytes: pages are packed.
const MEMORY: u64 = 512 << 20;
const MEMORY_OF_BYTE: u64 = 64;
const TIME: Duration = Duration::from_secs(60);
const TIME_OF_MIB: Duration = Duration::from_secs(2);

/// Reads all rows. The parquet crate panics on some files with wrong bytes in them, and unpacks
/// whatever a file says that it holds; user data must not do either.
///
/// Columns that are not requested hold null.
pub(super) fn read(path: &Path, is_wanted: super::Wanted) -> Result<Vec<Row>, DataError> {
    let size = std::fs::metadata(path).map_err(|source| DataError::Read {
        path: path.into(),
        source,
    })?;
    let size = size.len();
    let bounds = Bounds {
        stack: 16 << 20,
        memory: MEMORY + size.saturating_mul(MEMORY_OF_BYTE),
        time: TIME + TIME_OF_MIB * u32::try_from(size >> 20).unwrap_or(u32::MAX),
    };
    let own = path.to_owned();
    contain::run(bounds, move || read_rows(&own, &*is_wanted)).unwrap_or_else(|problem| {
        let broken = FormatError::Parquet {
            place: Place::file(path),
            message: format!("the file {problem}"),
        };
        Err(broken.into())
    })
}

fn read_rows(path: &Path, is_wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Row>, DataError> {
    let unreadable = |source| DataError::Read {
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let whole = Place::file(path);
    let reader = SerializedFileReader::new(file).map_err(|error| broken(&whole, &error))?;
    let schema = reader.metadata().file_metadata().schema();
    let names: Vec<&str> = schema
        .get_fields()
        .iter()
        .map(|field| field.name())
        .collect();
    check_columns(&names, &whole)?;
    let fields = schema.get_fields().iter();
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
    let left: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !is_wanted(name))
        .collect();
    let projection = Type::group_type_builder(schema.name()).with_fields(wanted);
    let projection = projection.build().map_err(|error| broken(&whole, &error))?;
    let rows = reader
        .get_row_iter(Some(projection))
        .map_err(|error| broken(&whole, &error))?;
    let rows = rows.enumerate().map(|(index, row)| {
        let place = Place::new(path, At::Row(index + 1));
        let mut columns = row
            .map_err(|error| broken(&place, &error))
            .and_then(|row| {
                object(row).map_err(|message| FormatError::Parquet {
                    place: place.clone(),
                    message,
                })
            })?;
        columns.extend(left.iter().map(|&name| (name.into(), Value::Null)));
        Ok(Row {
            place,
            columns,
            is_text: false,
        })
    });
    rows.collect()
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
