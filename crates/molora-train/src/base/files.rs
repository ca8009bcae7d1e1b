//! Files and folders: copied, removed, and waited for. Errors name the path. How they are put in their
//! place stands in `place.rs`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::error::{RunProblem, TrainError};

/// The folder that a path lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Folders that were made for what may come to nothing: dropped, those that are still empty go again.
#[derive(Debug, Default)]
pub(crate) struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// Makes a folder and those around it, as far as they are not there.
    ///
    /// # Errors
    /// [`RunProblem::IsFile`] with the file that is in the way; [`TrainError::Io`] if one cannot be made.
    pub(crate) fn up_to(folder: &Path) -> Result<Self, TrainError> {
        let around = folder
            .ancestors()
            .filter(|path| !path.as_os_str().is_empty());
        let mut made = Self::default();
        for path in around {
            match path.metadata() {
                Ok(found) if found.is_dir() => break,
                Ok(_) => return Err(TrainError::run(path, RunProblem::IsFile)),
                Err(_) => made.0.push(path.to_owned()),
            }
        }
        fs::create_dir_all(folder)?;
        Ok(made)
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        // The innermost first. Only empty folders can be removed so.
        for folder in &self.0 {
            drop(std::fs::remove_dir(folder));
        }
    }
}

/// Copies a file, or a folder with everything in it; links are not followed.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), TrainError> {
    let found = fs::symlink_metadata(from)?;
    if found.is_dir() {
        fs::create_dir_all(to)?;
        return copy_into(from, to);
    }
    if !found.is_file() {
        return Err(TrainError::run(from, RunProblem::NotPlain));
    }
    fs::copy(from, to)?;
    Ok(())
}

/// Copies everything in a folder into another one.
pub(crate) fn copy_into(from: &Path, to: &Path) -> Result<(), TrainError> {
    let mut names = entries(from)?.into_iter();
    names.try_for_each(|name| copy(&from.join(&name), &to.join(&name)))
}

/// Whether there is anything of that name; a link that leads nowhere is something.
pub(crate) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Whether a path is a folder itself and no link to one.
pub(crate) fn is_own_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Removes a file, a link or a folder, if it is there; what a link leads to stays.
pub(crate) fn remove(path: &Path) -> Result<(), TrainError> {
    let removed = match is_own_folder(path) {
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
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = entries(&folder.path().join("none"))
            .unwrap_err()
            .to_string();
        assert!(message.contains("none"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn what_a_link_leads_to_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, link) = (folder.path().join("kept"), folder.path().join("link"));
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&kept, &link).unwrap();
        remove(&link).unwrap();
        assert_eq!(entries(folder.path()).unwrap(), ["kept"]);
        assert_eq!(entries(&kept).unwrap(), ["file"]);
    }
}
