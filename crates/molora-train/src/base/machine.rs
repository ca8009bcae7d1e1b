//! What is measured once for a machine, and kept; and how much memory it has free.

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

/// Bytes of memory that are free for new work: what Linux calls available, but no more than the control groups of
/// this process, such as those of a container or a batch system, leave it; `None` where the system does not
/// report it.
pub fn free_memory_bytes() -> Option<u64> {
    let free = available(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(left_by_groups().map_or(free, |left| left.min(free)))
}

/// `MemAvailable` of `/proc/meminfo`, which is in KiB.
fn available(meminfo: &str) -> Option<u64> {
    let value = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// What the tightest control group of this process leaves (version 2 of Linux' control groups).
fn left_by_groups() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let folder = root.join(own);
    let folders = folder.ancestors().take_while(|path| path.starts_with(root));
    folders.filter_map(left_by_group).min()
}

fn left_by_group(folder: &Path) -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    // Without a limit it says `max`.
    let limit = number(read("memory.max")?)?;
    let used = number(read("memory.current")?)?;
    let stat = read("memory.stat").unwrap_or_default();
    let files = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "));
    // Pages of files that no process uses are given up for new work.
    let unused = files.and_then(|text| number(text.to_owned())).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(unused)))
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
    fn free_memory_is_what_linux_calls_available() {
        let text = "MemTotal:       16 kB\nMemFree:         2 kB\nMemAvailable:    8 kB\n";
        assert_eq!(available(text), Some(8192));
        assert_eq!(available("MemTotal: 16 kB"), None);
    }

    #[test]
    fn a_control_group_leaves_what_is_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |file: &str, text: &str| {
            std::fs::write(folder.path().join(file), text).expect("writable");
        };
        assert_eq!(left_by_group(folder.path()), None);
        write("memory.current", "700\n");
        write("memory.max", "max\n");
        assert_eq!(left_by_group(folder.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(left_by_group(folder.path()), Some(300));
        write("memory.stat", "file 300\ninactive_file 200\n");
        assert_eq!(left_by_group(folder.path()), Some(500));
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
