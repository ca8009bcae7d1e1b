//! SHA-256 of files, which are not read again while they stay what they are.
//!
//! What large files gave is kept in `molora/digests` of the user's cache folder, one small file for
//! each, with the size, the times and the number of the file that it belongs to.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tracing::debug;

use super::machine::cache_folder;
use super::place::write_atomically;

/// Smaller files are read each time.
const LARGE: u64 = 1 << 16;
/// A file that changed so short ago may change again within one tick of the file system's clock.
const SETTLED: Duration = Duration::from_secs(2);

/// The SHA-256 of a file in hexadecimal digits.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    sha256_in(
        path,
        cache_folder().map(|folder| folder.join("molora/digests")),
    )
}

fn sha256_in(path: &Path, cache: Option<PathBuf>) -> io::Result<String> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = File::open(path).map_err(named)?;
    let before = file.metadata().map_err(named)?;
    let cache = cache.filter(|_| before.len() >= LARGE && !is_recent(&before));
    let kept = cache.and_then(|cache| Some(cache.join(hex(&path.canonicalize().ok()?))));
    let Some(kept) = kept else {
        return read(&mut file).map_err(named);
    };
    let state = state(&before);
    let text = std::fs::read_to_string(&kept).unwrap_or_default();
    if let Some((of, digest)) = text.trim_end().rsplit_once(' ')
        && of == state
        && is_digest(digest)
    {
        return Ok(digest.into());
    }
    let digest = read(&mut file).map_err(named)?;
    let after = file.metadata().map_err(named)?;
    if self::state(&after) == state {
        let folder = kept.parent().unwrap_or(Path::new("."));
        let written = std::fs::create_dir_all(folder).map_err(Into::into);
        let written = written
            .and_then(|()| write_atomically(&kept, format!("{state} {digest}\n").as_bytes()));
        if let Err(error) = written {
            debug!("{} cannot be kept: {error}", kept.display());
        }
    }
    Ok(digest)
}

/// The SHA-256 of a file as it stands on the disk now, whatever is kept of it.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn sha256_now(path: &Path) -> io::Result<String> {
    sha256_in(path, None)
}

fn read(file: &mut File) -> io::Result<String> {
    Ok(format!("{:x}", read_all(file, Sha256::new())?.finalize()))
}

/// The digest of what was read before and the rest of a file.
pub(crate) fn read_all(file: &mut File, mut hash: Sha256) -> io::Result<Sha256> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The name under which a path is kept.
fn hex(path: &Path) -> String {
    format!("{:x}", Sha256::digest(path.as_os_str().as_encoded_bytes()))
}

fn is_recent(file: &Metadata) -> bool {
    let changed = changed(file).max(file.modified().ok());
    let age = changed.map(|time| SystemTime::now().duration_since(time));
    // A time in the future tells nothing.
    !matches!(age, Some(Ok(age)) if age >= SETTLED)
}

#[cfg(unix)]
fn changed(file: &Metadata) -> Option<SystemTime> {
    use std::os::unix::fs::MetadataExt;
    let seconds = Duration::from_secs(u64::try_from(file.ctime()).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(seconds)
}

#[cfg(not(unix))]
fn changed(_: &Metadata) -> Option<SystemTime> {
    None
}

/// What of a file changes with its bytes.
#[cfg(unix)]
fn state(file: &Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!(
        "{} {}.{} {}.{} {}.{}",
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec(),
        file.dev(),
        file.ino()
    )
}

#[cfg(not(unix))]
fn state(file: &Metadata) -> String {
    let time = file.modified().ok();
    let time = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    format!("{} {}", file.len(), time.unwrap_or_default().as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of FIPS 180-2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn known_values() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "abc").expect("writable");
        assert_eq!(sha256(&path).expect("readable"), ABC);
        let error = sha256(&folder.path().join("none")).expect_err("missing");
        assert!(error.to_string().contains("none: "), "{error}");
    }

    /// What is kept is believed as long as size, times and number stay.
    #[cfg(unix)]
    #[test]
    fn a_large_file_is_read_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, cache) = (folder.path().join("file"), folder.path().join("cache"));
        let digest = || sha256_in(&path, Some(cache.clone())).expect("readable");
        std::fs::write(&path, vec![1; LARGE as usize]).expect("writable");
        let found = digest();
        assert!(!cache.exists(), "it has only just changed");
        std::thread::sleep(SETTLED + Duration::from_millis(1100));
        assert_eq!(digest(), found);
        let entry = || {
            let mut entries = std::fs::read_dir(&cache).expect("kept");
            let entry = entries.next().expect("one").expect("readable").path();
            assert!(entries.next().is_none());
            entry
        };
        let text = std::fs::read_to_string(entry()).expect("readable");
        assert!(text.ends_with(&format!(" {found}\n")), "{text}");
        std::fs::write(entry(), text.replace(&found, ABC)).expect("writable");
        assert_eq!(digest(), ABC);
        // Of the same size and with the old time.
        let old = path
            .metadata()
            .and_then(|file| file.modified())
            .expect("a time");
        std::fs::write(&path, vec![2; LARGE as usize]).expect("writable");
        let file = File::options().write(true).open(&path).expect("there");
        file.set_modified(old).expect("settable");
        let changed = digest();
        assert!(changed != ABC && changed != found);
        std::fs::write(entry(), "nonsense").expect("writable");
        assert_eq!(digest(), changed);
    }
}
