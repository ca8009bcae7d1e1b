//! Values with tabs between them, without quoting, as in GLUE's files.

use std::path::Path;

use csv::{ReaderBuilder, StringRecord};
use serde_json::Value;

use super::super::error::{At, DataError, Place};
use super::{FormatError, Row, check_columns, read_text, text_of};

/// Reads all rows, the names of whose columns are the first line or `header`; every value is a text. Rows with
/// another number of values, of which published files have some, are counted in a warning.
pub(super) fn read(path: &Path, header: Option<&[String]>) -> Result<Vec<Row>, DataError> {
    let text = read_text(path)?;
    text_of(&text, path)?;
    let mut reader = ReaderBuilder::new()
        .delimiter(b'\t')
        .quoting(false)
        .has_headers(header.is_none())
        .flexible(true)
        .from_reader(&text[..]);
    let broken = |error: csv::Error| FormatError::Csv {
        place: Place::file(path),
        message: error.to_string(),
    };
    let names: Vec<String> = match header {
        Some(names) => names.to_vec(),
        None => {
            let names = reader.headers().map_err(broken)?;
            names.iter().map(|name| name.trim().to_owned()).collect()
        }
    };
    let known: Vec<&str> = names.iter().map(|name| &name[..]).collect();
    check_columns(&known, &Place::new(path, At::Line(1)))?;
    let (mut rows, mut skipped) = (Vec::new(), 0);
    for record in reader.records() {
        let record = record.map_err(broken)?;
        match record.len() == names.len() {
            true => rows.push(row(path, &names, &record)),
            false => skipped += 1,
        }
    }
    if skipped > 0 {
        let (path, count) = (path.display(), names.len());
        tracing::warn!("{path}: {skipped} lines do not have {count} values and were left out");
    }
    Ok(rows)
}

fn row(path: &Path, names: &[String], record: &StringRecord) -> Row {
    let line = record.position().map_or(0, csv::Position::line);
    let value = |(name, text): (&String, &str)| (name.clone(), Value::from(text));
    Row {
        place: Place::new(path, At::Line(line as usize)),
        columns: names.iter().zip(record).map(value).collect(),
        is_text: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_text_and_names_may_be_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dev.tsv");
        std::fs::write(&path, "gj04\t1\t\tThe \"car\ttoo many\nl-93\t0\t*\tA \"b\n")
            .expect("written");
        let names = ["source", "label", "mark", "sentence"].map(String::from);
        let rows = read(&path, Some(&names)).expect("rows");
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].columns["sentence"], "A \"b");
        assert_eq!(rows[0].place.at, At::Line(2));
        std::fs::write(&path, "index\tsentence\n0\tfine\n").expect("written");
        let rows = read(&path, None).expect("rows");
        assert_eq!(rows[0].columns["sentence"], "fine");
    }
}
