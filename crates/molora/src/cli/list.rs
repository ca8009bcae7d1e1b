//! `molora list`.

use std::fmt::Write;

use clap::{Args, ValueEnum};

use super::choice::How;
use super::download::Downloads;
use super::print;
use molora_train::base::{base_model, bundled};
use molora_train::data::{list_tasks, load_task};
use molora_train::recipe::{self, BaseKind, Group, Recipe};

/// What the columns mean.
const LEGEND: &str = "
Columns: what is special; trained parameters of a site (D, O: input and output width, R: rank, E:
experts, T: tasks; for other letters see docs/methods); where it was measured, the time of a training
step as a multiple of that of lora with as many parameters (docs/benchmarks).
";

/// Options of `molora list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print this recipe as TOML, to be edited and given to `molora train`
    #[arg(long, value_name = "RECIPE")]
    show: Option<String>,
    /// With --show: use the defaults for this base model, a folder or org/name on the Hub
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
    let mut text = String::from("recipes (--show NAME for their numbers and papers)\n");
    for group in Group::ALL {
        writeln!(text, "\n{}", group.title())?;
        for name in recipe::names() {
            let about = recipe::about(name)
                .filter(|_| recipe::find(name).is_ok_and(|found| Group::of(&found) == group));
            if let Some(about) = about {
                let time = about.step_time.map(|time| format!("{time:.1}x"));
                let line = format!(
                    "  {name:<12} {:<66} {:<36} {}",
                    about.special,
                    about.parameters,
                    time.unwrap_or_default()
                );
                writeln!(text, "{}", line.trim_end())?;
            }
        }
    }
    writeln!(text, "\nmerged: one expert of many, by `molora combine`")?;
    for how in How::value_variants() {
        let value = how.to_possible_value().expect("none is hidden");
        let help = value
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        // Options are said by `combine --help`.
        let what = help.split([';', ',']).next().unwrap_or_default();
        writeln!(text, "  {:<16} {what}", value.get_name())?;
    }
    text.push_str(LEGEND);
    // Recipes are there without them.
    let folder = match bundled::folder(bundled::TASKS) {
        Ok(folder) => folder,
        Err(error) => {
            writeln!(text, "\n{error}")?;
            return Ok(text);
        }
    };
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
