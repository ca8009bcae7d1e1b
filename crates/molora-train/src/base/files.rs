//! Files and folders: copied, removed, put in place and waited for.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use crate::TrainError;

/// Copies a file, or a folder with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), TrainError> {
    if !from.is_dir() {
        std::fs::copy(from, to).map_err(TrainError::io(from))?;
        return Ok(());
    }
    make(to)?;
    let mut names = entries(from)?.into_iter();
    names.try_for_each(|name| copy(&from.join(&name), &to.join(&name)))
}

/// Removes a file or a folder, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), TrainError> {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(TrainError::io(path)(error)),
        _ => Ok(()),
    }
}

pub(crate) fn make(folder: &Path) -> Result<(), TrainError> {
    std::fs::create_dir_all(folder).map_err(TrainError::io(folder))
}

/// Names of what is in a folder.
pub(crate) fn entries(folder: &Path) -> Result<Vec<String>, TrainError> {
    let read = std::fs::read_dir(folder).map_err(TrainError::io(folder))?;
    read.map(|entry| {
        let entry = entry.map_err(TrainError::io(folder))?;
        Ok(entry.file_name().to_string_lossy().into_owned())
    })
    .collect()
}

pub(crate) fn sync_files(folder: &Path) -> Result<(), TrainError> {
    for entry in std::fs::read_dir(folder).map_err(TrainError::io(folder))? {
        sync(&entry.map_err(TrainError::io(folder))?.path())?;
    }
    sync(folder)
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
    match File::open(path) {
        Ok(file) => file.sync_all().map_err(TrainError::io(path)),
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(TrainError::io(path)(error)),
    }
}

/// Temporary folders are private; a run folder has the rights that any new folder has.
#[cfg(unix)]
pub(crate) fn share(folder: &Path) -> Result<(), TrainError> {
    use std::os::unix::fs::PermissionsExt;
    let rights = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder, rights).map_err(TrainError::io(folder))
}

#[cfg(not(unix))]
pub(crate) fn share(_: &Path) -> Result<(), TrainError> {
    Ok(())
}
