//! `molora describe`.

use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use molora_models::BaseDtype;

use super::print_written;
use molora_train::base::{DeviceSpec, bundled, write_atomically};
use molora_train::data::{load_tasks, task_path};
use molora_train::generate::{Writer, describe};

/// Options of `molora describe`.
#[derive(Debug, Args)]
pub(super) struct DescribeArgs {
    /// Name of the task
    task: String,
    /// Language model: a folder in Hugging Face layout, or org/name on the Hub
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Folder with one sub-folder per task [default: the bundled tasks]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Number of training records in the prompt
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=32))]
    examples: u8,
    /// Seed by which these records are chosen
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where to compute: cpu, ndarray, wgpu or cuda
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// Replace the instruction in the task's task.json
    #[arg(long)]
    write: bool,
}

impl DescribeArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let data = bundled::folder(self.data.as_deref().unwrap_or(bundled::TASKS))?;
        let tasks = load_tasks(&data, Some(std::slice::from_ref(&self.task)))?;
        let [task] = &tasks[..] else {
            bail!("{}: expected one task of that name", self.task);
        };
        let device = self.device.open()?;
        let writer = Writer::open(&self.model, BaseDtype::default(), &device)?;
        let text = describe(task, self.examples.into(), self.seed, &writer)?;
        if self.write {
            let path = task_path(&data, &self.task).join("task.json");
            replace(&path, &task.meta.instruction, &text)?;
        }
        print_written(&format!("{text}\n"))
    }
}

/// Replaces the instruction in a `task.json` and nothing else.
fn replace(path: &Path, old: &str, new: &str) -> anyhow::Result<()> {
    let name = || path.display().to_string();
    let file = std::fs::read_to_string(path).with_context(name)?;
    let key = file
        .find("\"instruction\"")
        .with_context(|| format!("{}: key \"instruction\" is missing", path.display()))?;
    let (old, new) = (serde_json::to_string(old)?, serde_json::to_string(new)?);
    let Some(place) = file[key..].find(&old) else {
        bail!(
            "{}: the instruction is written with escapes that differ from {old}: put {new} there by \
             hand",
            path.display()
        );
    };
    let start = key + place;
    let text = format!("{}{new}{}", &file[..start], &file[start + old.len()..]);
    write_atomically(path, text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_instruction_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("task.json");
        std::fs::write(&path, "{\"x\": \"old\",\n \"instruction\": \"old\"}").expect("writable");
        replace(&path, "old", "say \"new\"").expect("there");
        let text = std::fs::read_to_string(&path).expect("readable");
        assert_eq!(
            text,
            "{\"x\": \"old\",\n \"instruction\": \"say \\\"new\\\"\"}"
        );
        assert!(replace(&path, "older", "new").is_err());
    }
}
