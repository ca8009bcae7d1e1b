//! What is measured once for a machine, and kept.

use std::io::Write;
use std::path::{Path, PathBuf};

use molora_kernels::crossover;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tracing::{debug, info};

/// Name of the file in the cache folder.
const FILE: &str = "machine.toml";
/// Its first line.
const COMMENT: &str = "# What molora measured on this machine. Remove it to measure again.\n";

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    /// What the measurements depend on: a home folder may be shared between machines.
    processor: String,
    /// See [`crossover::sparse_ratio`].
    sparse_ratio: usize,
}

/// Sets what depends on the processor as it was measured when molora first ran here: from how many
/// experts on a mixture leaves out those not selected. The first call on a machine measures (a fifth
/// of a second) and keeps the result in `molora/machine.toml` of the user's cache folder
/// (`XDG_CACHE_HOME`, else `~/.cache`), so that later runs round as earlier ones did. Where nothing can
/// be kept, the default stays.
pub fn tune() {
    match cache_folder() {
        Some(folder) => tune_in(&folder.join("molora")),
        None => debug!("no home folder to keep measurements in"),
    }
}

pub(crate) fn cache_folder() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty());
    cache
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
}

fn tune_in(folder: &Path) {
    let path = folder.join(FILE);
    let machine = read(&path).or_else(|| {
        let measured = measure();
        info!(
            sparse_ratio = measured.sparse_ratio,
            "measured this machine"
        );
        match keep(&measured, &path) {
            // Of two programs that measure at once, both take what the first one kept.
            Ok(()) => read(&path),
            Err(error) => {
                debug!("{} cannot be written: {error}", path.display());
                None
            }
        }
    });
    if let Some(machine) = machine {
        crossover::set_sparse_ratio(machine.sparse_ratio);
    }
}

/// What was measured on this machine, if the file can be read and is of this machine.
fn read(path: &Path) -> Option<Machine> {
    let text = std::fs::read_to_string(path).ok()?;
    let machine: Machine = toml::from_str(&text).ok()?;
    let is_usable = machine.processor == processor() && machine.sparse_ratio > 0;
    is_usable.then_some(machine)
}

/// Writes the file in one step, unless there is a usable one by now.
fn keep(machine: &Machine, path: &Path) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = NamedTempFile::new_in(folder)?;
    let text = toml::to_string(machine).map_err(std::io::Error::other)?;
    file.write_all(COMMENT.as_bytes())?;
    file.write_all(text.as_bytes())?;
    match read(path) {
        Some(_) => Ok(()),
        None => file.persist(path).map(drop).map_err(|error| error.error),
    }
}

fn measure() -> Machine {
    Machine {
        processor: processor(),
        sparse_ratio: crossover::measure_sparse_ratio(),
    }
}

/// Architecture and the widest vectors; not how many threads, on which no result may depend.
fn processor() -> String {
    format!("{} {}", std::env::consts::ARCH, vectors())
}

#[cfg(target_arch = "x86_64")]
fn vectors() -> &'static str {
    match (
        is_x86_feature_detected!("avx512f"),
        is_x86_feature_detected!("avx2"),
    ) {
        (true, _) => "avx512",
        (_, true) => "avx2",
        _ => "sse2",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn vectors() -> &'static str {
    "vectors"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_this_machine(sparse_ratio: usize) -> Machine {
        Machine {
            processor: processor(),
            sparse_ratio,
        }
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new").join(FILE);
        assert_eq!(read(&path), None);
        keep(&of_this_machine(5), &path).expect("can be written");
        assert_eq!(read(&path), Some(of_this_machine(5)));
        // The first one stays.
        keep(&of_this_machine(9), &path).expect("nothing to write");
        assert_eq!(read(&path), Some(of_this_machine(5)));
    }

    #[test]
    fn a_file_of_another_machine_or_of_nonsense_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE);
        let other = "processor = \"abacus\"\nsparse_ratio = 5\n";
        let none = format!("processor = {:?}\nsparse_ratio = 0\n", processor());
        for text in [other, "sparse_ratio", "", none.as_str()] {
            std::fs::write(&path, text).expect("can be written");
            assert_eq!(read(&path), None, "{text}");
            keep(&of_this_machine(7), &path).expect("can be written");
            assert_eq!(read(&path), Some(of_this_machine(7)), "{text}");
        }
    }
}
