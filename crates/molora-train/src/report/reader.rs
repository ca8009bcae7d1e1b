//! Reading a run's JSON files again.

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::ReportError;
use super::schema::SCHEMA_VERSION;

/// What every version of such a file has.
#[derive(Deserialize)]
struct Versioned {
    #[serde(default)]
    version: u32,
}

/// Reads one of the records that a run leaves behind, such as `eval.json`.
///
/// # Errors
/// If the file cannot be read, a newer molora wrote it, or it is no such record; the line is named.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ReportError> {
    refuse_device(path)?;
    let text = fs::read(path).map_err(ReportError::io("read", path))?;
    // First of all, as a later version may have fields that this molora does not know.
    if let Ok(Versioned { version: found }) = serde_json::from_slice(&text)
        && found > SCHEMA_VERSION
    {
        return Err(ReportError::Newer {
            path: path.to_owned(),
            found,
            known: SCHEMA_VERSION,
        });
    }
    serde_json::from_slice(&text).map_err(|source| ReportError::Parse {
        path: path.to_owned(),
        line: source.line(),
        source,
    })
}

/// Refuses what is no plain file: reading a device or a pipe may never end.
pub(super) fn refuse_device(path: &Path) -> Result<(), ReportError> {
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file");
        return Err(ReportError::io("read", path)(error));
    }
    Ok(())
}

/// [`read_json`] of a file that not every run has.
///
/// # Errors
/// As [`read_json`], but for a file that is not there.
pub(crate) fn read_json_if_there<T: DeserializeOwned>(
    path: &Path,
) -> Result<Option<T>, ReportError> {
    match read_json(path) {
        Err(ReportError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{EvalReport, sample};

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eval.json");
        let read = || read_json::<EvalReport>(&path).map_err(|error| error.to_string());
        assert!(read().unwrap_err().contains("cannot read "));
        assert_eq!(read_json_if_there::<EvalReport>(&path).unwrap(), None);
        let text = serde_json::to_string_pretty(&sample::eval()).unwrap();
        fs::write(&path, &text).unwrap();
        assert_eq!(read().unwrap(), sample::eval());
        fs::write(&path, text.replacen("\"split\": ", "\"split\" ", 1)).unwrap();
        let error = read().unwrap_err();
        assert!(error.contains("eval.json, line 3: expected `:`"), "{error}");
        fs::write(&path, text.replacen("1,", "2,\n\"new\": 3,", 1)).unwrap();
        let error = read().unwrap_err();
        assert!(
            error.contains("version is 2, but this molora knows up to 1"),
            "{error}"
        );
        let error = read_json::<EvalReport>(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no plain file"), "{error}");
    }
}
