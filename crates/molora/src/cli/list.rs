//! `molora list`.

use std::fmt::Write;

use clap::Args;

use super::print;
use molora_train::base::bundled;
use molora_train::data::{list_tasks, load_task};
use molora_train::recipe;

/// Options of `molora list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Show this recipe as TOML, to be saved, changed and given to `molora train`
    #[arg(long, value_name = "RECIPE")]
    show: Option<String>,
}

impl ListArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.show {
            Some(name) => print(&recipe::find(&name)?.to_toml()),
            None => print(&everything()?),
        }
    }
}

fn everything() -> anyhow::Result<String> {
    let mut text = String::from("recipes\n");
    for name in recipe::names() {
        writeln!(text, "  {name:<12} {}", recipe::find(name)?.citation)?;
    }
    let folder = bundled::folder(bundled::TASKS)?;
    writeln!(text, "\nbundled tasks in {}", folder.display())?;
    for name in list_tasks(&folder)? {
        let task = load_task(&folder.join(&name))?;
        writeln!(
            text,
            "  {name:<14} {} labels, {} / {} / {} records, {}",
            task.meta.labels.len(),
            task.train.len(),
            task.validation.len(),
            task.test.len(),
            task.meta.metric_text
        )?;
    }
    Ok(text)
}
