//! `cargo xtask embed`: packs the starter tasks into the file that every program has in itself.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use flate2::{Compression, GzBuilder};

use crate::workspace;

/// The folder of the tasks, and what stands in front of their paths.
const TASKS: (&str, &str) = ("datasets/tasks/", "datasets/");
/// The file, which is in the package of its crate.
const PACKED: &str = "crates/molora-train/src/base/tasks.json.gz";

/// Writes the texts of all files by their paths, as JSON and gzip.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn run() -> Result<()> {
    let shell = workspace::shell()?;
    let mut texts = BTreeMap::new();
    for file in workspace::files(&shell)? {
        if file.starts_with(TASKS.0) {
            texts.insert(file[TASKS.1.len()..].to_owned(), shell.read_file(&file)?);
        }
    }
    // Without a time, so that the same tasks are the same bytes.
    let mut packed = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    packed.write_all(&serde_json::to_vec(&texts)?)?;
    let packed = packed.finish()?;
    println!("{PACKED}: {} files, {} bytes", texts.len(), packed.len());
    Ok(shell.write_file(PACKED, packed)?)
}
