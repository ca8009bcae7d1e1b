//! Files and folders: copied, replaced at once, removed, and waited for. Errors name the path.

use std::io::{ErrorKind, Write};
use std::path::Path;

use fs_err as fs;
use serde::Serialize;
use tempfile::{Builder, TempDir};

use crate::error::TrainError;

/// Writes `value` as indented JSON, as [`write_atomically`] does.
///
/// # Errors
/// If the folder cannot be written to, or `value` cannot be serialised; an older file at `path`
/// is whole either way.
pub(crate) fn write_json_atomically<T: Serialize + ?Sized>(
    path: &Path,
    value: &T,
) -> Result<(), TrainError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(TrainError::json(path))?;
    text.push(b'\n');
    write_atomically(path, &text)
}

/// Writes `content` to a temporary file beside `path`, waits for the disk and renames it.
///
/// # Errors
/// If the folder cannot be written to; an older file at `path` is whole either way.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), TrainError> {
    let folder = parent(path);
    let mut file = builder(0o666).prefix(".molora-").tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    let file = file.into_temp_path();
    fs::rename(&file, path)?;
    // Nothing is left under the temporary name, so there is nothing to remove when it is dropped.
    drop(file.keep());
    // Makes the rename last through a power cut.
    sync(folder)
}

/// A temporary folder beside `path`, to be filled and put in its place.
pub(crate) fn folder_beside(path: &Path, prefix: &str) -> Result<TempDir, TrainError> {
    let parent = parent(path);
    fs::create_dir_all(parent)?;
    Ok(builder(0o777).prefix(prefix).tempdir_in(parent)?)
}

/// Puts a temporary folder in the place of `path`: whoever finds a folder there finds a whole one.
pub(crate) fn put_in_place(made: TempDir, path: &Path) -> Result<(), TrainError> {
    remove(path)?;
    fs::rename(made.path(), path)?;
    drop(made.keep());
    Ok(())
}

/// Makes temporary files or folders with the rights of ordinary new ones, which the user's mask
/// narrows (the default would be the owner's only).
fn builder(rights: u32) -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(rights));
    }
    #[cfg(not(unix))]
    let _ = rights;
    builder
}

/// The folder that a path lies in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Copies a file, or a folder with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), TrainError> {
    if !from.is_dir() {
        fs::copy(from, to)?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    let mut names = entries(from)?.into_iter();
    names.try_for_each(|name| copy(&from.join(&name), &to.join(&name)))
}

/// Removes a file or a folder, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), TrainError> {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Names of what is in a folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<String>, TrainError> {
    let read = fs::read_dir(folder)?;
    read.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Waits until everything in a folder is on the disk.
pub(crate) fn sync_all(folder: &Path) -> Result<(), TrainError> {
    for name in entries(folder)? {
        let path = folder.join(name);
        match path.is_dir() {
            true => sync_all(&path)?,
            false => sync(&path)?,
        }
    }
    sync(folder)
}

/// Waits until a file or folder is on the disk; a folder cannot be opened everywhere.
pub(crate) fn sync(path: &Path) -> Result<(), TrainError> {
    match fs::File::open(path) {
        Ok(file) => Ok(file.sync_all()?),
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error.into()),
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
        assert_eq!(entries(folder.path()).unwrap(), ["eval.json"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("eval.json");
        let message = write_json_atomically(&path, &1).unwrap_err().to_string();
        assert!(message.contains("none"), "{message}");
        let message = entries(path.parent().unwrap()).unwrap_err().to_string();
        assert!(message.contains("none"), "{message}");
    }

    /// A folder that is put in place has the rights of one that was made there.
    #[cfg(unix)]
    #[test]
    fn rights_are_those_of_any_new_folder() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let rights = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        let (plain, placed) = (folder.path().join("plain"), folder.path().join("placed"));
        fs::create_dir(&plain).unwrap();
        let made = folder_beside(&placed, ".made-").unwrap();
        fs::write(made.path().join("file"), "").unwrap();
        put_in_place(made, &placed).unwrap();
        assert_eq!(rights(&placed), rights(&plain));
        assert_eq!(entries(&placed).unwrap(), ["file"]);
    }
}
