//! Files that are replaced at once: a kill at any moment leaves a whole one behind.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use tempfile::NamedTempFile;

use super::error::ReportError;

/// Writes `value` as indented JSON: to a temporary file in the same folder, then by a rename.
///
/// # Errors
/// If the folder cannot be written to, or `value` cannot be serialised; an older file at `path`
/// is whole either way.
pub fn write_json_atomically<T: Serialize + ?Sized>(
    path: &Path,
    value: &T,
) -> Result<(), ReportError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| ReportError::Serialize {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    write_atomically(path, &text)
}

/// Writes `content` to a temporary file beside `path`, waits for the disk and renames it.
///
/// # Errors
/// If the folder cannot be written to; an older file at `path` is whole either way.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), ReportError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = temporary_file_in(folder).map_err(ReportError::io("create", path))?;
    file.write_all(content)
        .map_err(ReportError::io("write", path))?;
    file.as_file()
        .sync_all()
        .map_err(ReportError::io("sync", path))?;
    file.persist(path)
        .map_err(|error| ReportError::io("replace", path)(error.error))?;
    sync_folder(folder).map_err(ReportError::io("sync the folder of", path))
}

/// A temporary file with the rights of an ordinary new one (the default would be the owner's only).
fn temporary_file_in(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.prefix(".molora-").tempfile_in(folder)
}

/// Makes a rename last through a power cut; only Unix lets a folder be synced.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_replaces_the_old_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eval.json");
        write_json_atomically(&path, &[1, 2, 3]).unwrap();
        write_json_atomically(&path, &[4]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  4\n]\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("eval.json");
        let message = write_json_atomically(&path, &1).unwrap_err().to_string();
        assert!(
            message.starts_with("cannot create ") && message.contains("eval.json"),
            "{message}"
        );
    }
}
