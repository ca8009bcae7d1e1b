//! `molora list`.

use std::fmt::Write;

use clap::Args;

use super::download::Downloads;
use super::print;
use molora_train::base::{base_model, bundled};
use molora_train::data::{list_tasks, load_task};
use molora_train::recipe::{self, BaseKind, Recipe};

/// Options of `molora list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Show this recipe as TOML, to be saved, changed and given to `molora train`
    #[arg(long, value_name = "RECIPE")]
    show: Option<String>,
    /// With --show: with the numbers that fit this base model, a folder or org/name on the Hub
    /// [default: the bundled encoder]
    #[arg(long, value_name = "MODEL", requires = "show")]
    model: Option<String>,
}

impl ListArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.show {
            Some(name) => print(&shown(&name, self.model.as_deref())?.to_toml()),
            None => print(&everything()?),
        }
    }
}

fn shown(name: &str, model: Option<&str>) -> anyhow::Result<Recipe> {
    let recipe = recipe::find(name)?;
    let Some(model) = model else {
        return Ok(recipe);
    };
    let mut downloads = Downloads::new();
    let found = base_model::find(model, &mut |progress| downloads.show_all(progress))?;
    Ok(recipe.for_base(BaseKind::of(&found.folder)?))
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
