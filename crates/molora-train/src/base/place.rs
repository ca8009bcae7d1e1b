//! Files and folders that are put in their place at once.
//!
//! Whoever looks finds the old one or the new one, and that whole: after a kill, an error and a power
//! cut too. What is new is written under a name with `.molora-` beside its place, waited for, and
//! renamed; a folder that is there already changes names with it in one step where the system can do
//! that, and is set aside for a moment elsewhere. Who writes keeps a lock on what it writes, so that
//! [`clean`] knows what a killed process has left.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Serialize;
use tempfile::{Builder, TempDir};

use super::files::{MadeFolders, entries, is_there, parent, remove, sync, sync_all};
use crate::error::{RunProblem, TrainError};

/// Beginning of the names of what is being written.
const PREFIX: &str = ".molora-";
/// End of the name of a folder that is set aside until the new one is in its place.
const ASIDE: &str = ".old";

/// Writes `value` as indented JSON, as [`write_atomically`] does.
///
/// # Errors
/// If the folder cannot be written to, or `value` cannot be serialised; an older file at `path`
/// is whole either way.
pub(crate) fn write_json_atomically<T: Serialize + ?Sized>(
    path: &Path,
    value: &T,
) -> Result<(), TrainError> {
    write_atomically(path, &json_bytes(path, value)?)
}

/// `value` as [`write_json_atomically`] writes it to `path`.
///
/// # Errors
/// If `value` cannot be serialised.
pub(crate) fn json_bytes<T: Serialize + ?Sized>(
    path: &Path,
    value: &T,
) -> Result<Vec<u8>, TrainError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(TrainError::json(path))?;
    text.push(b'\n');
    Ok(text)
}

/// Writes `content` to a temporary file beside `path`, waits for the disk and renames it.
///
/// # Errors
/// If the folder cannot be written to; an older file at `path` is whole either way.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), TrainError> {
    let folder = parent(path);
    let file = builder(0o666).prefix(PREFIX).tempfile_in(folder)?;
    let (file, temporary) = file.into_parts();
    hold(&file);
    // Its errors name the place.
    let mut file = fs::File::from_parts(file, path);
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // Nothing is left under the temporary name, so there is nothing to remove when it is dropped.
    drop(temporary.keep());
    // Makes the rename last through a power cut.
    sync(folder)
}

/// A folder that is filled under another name before it gets its place.
#[derive(Debug)]
pub(crate) struct NewFolder {
    made: TempDir,
    place: PathBuf,
    /// Has the lock on the folder.
    held: Option<File>,
    /// Folders around it that were not there: after it, so that they are empty when they are dropped.
    _around: MadeFolders,
}

impl NewFolder {
    /// An empty folder that is to come to `place`, after what killed processes left of such is gone.
    pub(crate) fn for_place(place: &Path) -> Result<Self, TrainError> {
        let place = &match place.file_name() {
            Some(_) => place.to_owned(),
            // `.` and the like.
            None => fs::canonicalize(place)?,
        };
        let parent = parent(place);
        let around = MadeFolders::up_to(parent)?;
        clean_beside(place)?;
        let made = match Self::make(parent, &prefix_of(place), place) {
            // Only the folder itself can be written.
            Err(_) if place.is_dir() => Self::for_files(place),
            other => other,
        };
        Ok(Self {
            _around: around,
            ..made?
        })
    }

    /// An empty folder whose files are to come into the folder `place`, which is there.
    pub(crate) fn for_files(place: &Path) -> Result<Self, TrainError> {
        Self::make(place, PREFIX, place)
    }

    /// An empty folder for one new file that is to come to `place`, after what killed processes left of such is
    /// gone.
    pub(crate) fn for_file(place: &Path) -> Result<Self, TrainError> {
        let folder = parent(place);
        let around = MadeFolders::up_to(folder)?;
        clean_beside(place)?;
        let made = Self::make(folder, &prefix_of(place), folder)?;
        Ok(Self {
            _around: around,
            ..made
        })
    }

    fn make(parent: &Path, prefix: &str, place: &Path) -> Result<Self, TrainError> {
        let made = builder(0o777).prefix(prefix).tempdir_in(parent)?;
        let held = File::open(made.path()).ok().filter(hold);
        let place = place.to_owned();
        Ok(Self {
            made,
            place,
            held,
            _around: MadeFolders::default(),
        })
    }

    /// Where it is until then.
    pub(crate) fn path(&self) -> &Path {
        self.made.path()
    }

    /// Gives the folder its place, instead of what is there.
    pub(crate) fn put(self) -> Result<(), TrainError> {
        sync_all(self.path())?;
        let (made, place) = (self.made.path(), &self.place);
        if !is_there(place) {
            fs::rename(made, place)?;
        } else if exchange(made, place).is_err() {
            set_aside(made, place)?;
        }
        sync(parent(place))
        // The old one now has the temporary name, and goes with it.
    }

    /// Gives the folder its place if nothing is there, or an empty folder.
    ///
    /// # Errors
    /// [`RunProblem::NotEmpty`] if there is something by now.
    pub(crate) fn put_new(self) -> Result<(), TrainError> {
        sync_all(self.path())?;
        let is_here = is_current(&self.place);
        if !is_here && fs::rename(self.path(), &self.place).is_ok() {
            return sync(parent(&self.place));
        }
        let is_empty = |place| {
            let names = entries(place)?;
            Ok::<_, TrainError>(names.iter().all(|name| is_temporary(name)))
        };
        if self.place.is_dir() && !is_empty(&self.place)? {
            return Err(TrainError::run(&self.place, RunProblem::NotEmpty));
        }
        // A folder that something is mounted on, or that the shell is in.
        fs::create_dir_all(&self.place)?;
        self.put_files()
    }

    /// Puts the files one by one into the folder that is there.
    pub(crate) fn put_files(self) -> Result<(), TrainError> {
        sync_all(self.path())?;
        for name in entries(self.path())? {
            fs::rename(self.path().join(&name), self.place.join(&name))?;
        }
        sync(&self.place)
    }
}

/// Removes a folder so that a part of it is never found under its name.
pub(crate) fn discard(path: &Path) -> Result<(), TrainError> {
    if !is_there(path) {
        return Ok(());
    }
    let parent = parent(path);
    let away = NewFolder::make(parent, PREFIX, path)?;
    fs::rename(path, away.path().join("gone"))?;
    sync(parent)?;
    drop(away.held);
    // What stays because of an error goes with the next command that writes.
    drop(away.made.close());
    Ok(())
}

/// Whether a name is one of what is being written.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// Removes what killed processes have left of what was to come to a place, and puts back what was set
/// aside.
pub(crate) fn clean_beside(place: &Path) -> Result<(), TrainError> {
    match place.file_name() {
        Some(_) if parent(place).is_dir() => {
            restore(place)?;
            clean_named(parent(place), &prefix_of(place))
        }
        _ => Ok(()),
    }
}

/// Removes what killed processes have left in a folder, and puts back what was set aside.
pub(crate) fn clean(folder: &Path) -> Result<(), TrainError> {
    clean_named(folder, PREFIX)
}

/// Puts a folder back that was set aside for one that did not come.
pub(crate) fn restore(place: &Path) -> Result<(), TrainError> {
    let aside = aside_of(place);
    match is_there(place) {
        true => remove(&aside),
        false if is_there(&aside) => Ok(fs::rename(&aside, place)?),
        false => Ok(()),
    }
}

fn aside_of(place: &Path) -> PathBuf {
    parent(place).join(format!("{PREFIX}{}{ASIDE}", name_of(place)))
}

fn clean_named(folder: &Path, prefix: &str) -> Result<(), TrainError> {
    let ours = |name: &String| name.starts_with(prefix);
    for name in entries(folder)?.into_iter().filter(ours) {
        let path = folder.join(&name);
        let place = name.strip_prefix(PREFIX);
        let place = place.and_then(|name| name.strip_suffix(ASIDE));
        match place.map(|name| folder.join(name)) {
            Some(place) if !is_there(&place) => fs::rename(&path, &place)?,
            _ if is_left(&path) => remove(&path)?,
            _ => {}
        }
    }
    Ok(())
}

/// Whether no process writes to it any more.
fn is_left(path: &Path) -> bool {
    match path.symlink_metadata() {
        // Neither a file nor a folder: nothing that is being written.
        Ok(found) if !found.is_dir() && !found.is_file() => true,
        Ok(_) => File::open(path).is_ok_and(|file| file.try_lock().is_ok()),
        Err(_) => false,
    }
}

/// Takes the lock of what is being written, where there are such.
fn hold(file: &File) -> bool {
    // Elsewhere a lock would keep ourselves from writing.
    cfg!(unix) && !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Replaces a folder in two steps, between which it is aside; [`restore`] puts it back after a kill.
fn set_aside(made: &Path, place: &Path) -> Result<(), TrainError> {
    let aside = aside_of(place);
    remove(&aside)?;
    fs::rename(place, &aside)?;
    if let Err(error) = fs::rename(made, place) {
        fs::rename(&aside, place)?;
        return Err(error.into());
    }
    sync(parent(place))?;
    remove(&aside)
}

/// Lets two folders change names in one step.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether this process is in a folder, or in one below it.
pub(crate) fn is_current(folder: &Path) -> bool {
    let here = std::env::current_dir().and_then(|here| here.canonicalize());
    matches!((folder.canonicalize(), here), (Ok(folder), Ok(here)) if here.starts_with(&folder))
}

fn name_of(place: &Path) -> String {
    let name = place.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn prefix_of(place: &Path) -> String {
    format!("{PREFIX}{}-", name_of(place))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    fn folder(place: &Path, text: &str) -> NewFolder {
        let new = NewFolder::for_place(place).unwrap();
        fs::write(new.path().join("file"), text).unwrap();
        new
    }

    #[test]
    fn json_replaces_the_old_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eval.json");
        write_json_atomically(&path, &[1, 2, 3]).unwrap();
        write_json_atomically(&path, &[4]).unwrap();
        assert_eq!(read(&path), "[\n  4\n]\n");
        assert_eq!(entries(folder.path()).unwrap(), ["eval.json"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none").join("eval.json");
        let message = write_json_atomically(&path, &1).unwrap_err().to_string();
        assert!(message.contains("none"), "{message}");
    }

    /// A folder that is put in place has the rights of one that was made there.
    #[cfg(unix)]
    #[test]
    fn rights_are_those_of_any_new_folder() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let rights = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        let (plain, placed) = (root.path().join("plain"), root.path().join("placed"));
        fs::create_dir(&plain).unwrap();
        folder(&placed, "").put().unwrap();
        assert_eq!(rights(&placed), rights(&plain));
        assert_eq!(entries(&placed).unwrap(), ["file"]);
    }

    #[test]
    fn what_comes_to_nothing_leaves_no_folder() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("a/b/place");
        drop(NewFolder::for_place(&place).unwrap());
        drop(NewFolder::for_file(&place).unwrap());
        assert!(entries(root.path()).unwrap().is_empty());
        fs::write(root.path().join("a"), "").unwrap();
        let error = NewFolder::for_place(&place).unwrap_err().to_string();
        assert!(
            error.ends_with("a: is a file, expected a folder"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_replaces_another_and_leaves_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("place");
        for text in ["one", "two"] {
            folder(&place, text).put().unwrap();
            assert_eq!(read(&place.join("file")), text);
            assert_eq!(entries(root.path()).unwrap(), ["place"]);
        }
        discard(&place).unwrap();
        discard(&place).unwrap();
        assert!(entries(root.path()).unwrap().is_empty());
    }

    #[test]
    fn a_folder_is_replaced_where_two_cannot_change_names() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("place");
        folder(&place, "one").put().unwrap();
        let new = folder(&place, "two");
        set_aside(new.path(), &place).unwrap();
        assert_eq!(read(&place.join("file")), "two");
        // The new one is gone: the old one stays.
        set_aside(new.path(), &place).unwrap_err();
        assert_eq!(read(&place.join("file")), "two");
        // A kill between the two steps.
        fs::rename(&place, aside_of(&place)).unwrap();
        clean_beside(&place).unwrap();
        assert_eq!(read(&place.join("file")), "two");
        assert_eq!(entries(root.path()).unwrap(), ["place"]);
    }

    #[test]
    fn what_is_there_is_kept_where_a_new_folder_is_wanted() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("place");
        fs::create_dir(&place).unwrap();
        folder(&place, "one").put_new().unwrap();
        let error = folder(&place, "two").put_new().unwrap_err().to_string();
        assert!(
            error.ends_with(&RunProblem::NotEmpty.to_string()),
            "{error}"
        );
        assert_eq!(read(&place.join("file")), "one");
        assert_eq!(entries(root.path()).unwrap(), ["place"]);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_left_of_a_file_goes_with_the_next_one() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("model.gguf");
        let busy = NewFolder::for_file(&place).unwrap();
        for name in [".molora-model.gguf-1", ".molora-other.gguf-1"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        let new = NewFolder::for_file(&place).unwrap();
        fs::write(new.path().join("model.gguf"), "new").unwrap();
        new.put_files().unwrap();
        let own = busy.path().file_name().unwrap().to_str().unwrap();
        let mut expected = [own, ".molora-other.gguf-1", "model.gguf"];
        expected.sort_unstable();
        let mut left = entries(root.path()).unwrap();
        left.sort();
        assert_eq!(
            left, expected,
            "another process may be writing, also other files"
        );
        assert_eq!(read(&place), "new");
    }

    #[cfg(unix)]
    #[test]
    fn leftovers_go_and_what_is_being_written_stays() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let busy = folder(&at("place"), "new");
        fs::create_dir(at(".molora-place-1")).unwrap();
        fs::write(at(".molora-2"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", at(".molora-3")).unwrap();
        // Set aside before a kill.
        fs::create_dir(at(".molora-lost.old")).unwrap();
        clean(root.path()).unwrap();
        let mut left = entries(root.path()).unwrap();
        left.sort();
        let name = busy.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(left, [name, "lost"]);
    }
}
