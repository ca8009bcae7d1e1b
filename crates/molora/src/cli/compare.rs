//! `molora compare`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::choice::Budget;
use super::progress::Progress;
use super::source::SourceArgs;
use super::train::{read_recipe, stop_on_signal};
use super::{print, say};
use molora_train::compare::{
    Comparison, Event, Plan, Request, RunEvent, State, TABLES, compare, tables,
};
use molora_train::recipe::{Recipe, overrides};
use molora_train::report::thousands;

/// Options of `molora compare`.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Names of recipes (see `molora list`) or TOML files derived from them, separated by commas;
    /// the first is the reference
    #[arg(required = true, value_delimiter = ',')]
    recipes: Vec<String>,
    /// Train every recipe with so many seeds: 0, 1, ...
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// What is made equal
    #[arg(long, value_enum, default_value_t = Budget::Params)]
    budget: Budget,
    /// Number of optimizer steps of every recipe
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Hold these tasks out of training and measure the finished runs on them, as `molora eval
    /// --unseen` does; separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    unseen: Vec<String>,
    #[command(flatten)]
    source: SourceArgs,
    /// Folder to write; the same request goes on with what is there
    #[arg(long, value_name = "DIR", default_value = "runs/compare")]
    out: PathBuf,
    /// Change a value of every recipe, for example data.max_length=32; may be repeated
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
}

impl CompareArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let request = self.request()?;
        let stop = stop_on_signal()?;
        let mut progress = Progress::new();
        let comparison = compare(&request, &stop, &mut |event| match event {
            Event::Planned(plan) => say(&planned(plan)),
            Event::Run(run) => {
                progress.finish();
                progress = Progress::new();
                say(&turn(&run));
            }
            Event::Inside(event) => progress.show(event),
        })?;
        progress.finish();
        print(&closing(&request.out, &comparison))
    }

    fn request(self) -> anyhow::Result<Request> {
        let recipes = self.recipes.iter().map(|name| self.recipe(name));
        Ok(Request {
            recipes: recipes.collect::<anyhow::Result<_>>()?,
            model: self.source.model(),
            base_dtype: self.source.base_dtype,
            data: self.source.data(),
            tasks: self.source.tasks,
            unseen: self.unseen,
            out: self.out,
            seeds: self.seeds,
            budget: self.budget.into(),
            device: self.source.device,
        })
    }

    fn recipe(&self, name: &str) -> anyhow::Result<Recipe> {
        let mut recipe = overrides::apply(&read_recipe(name)?, &self.set)?;
        if let Some(steps) = self.steps {
            recipe.set_total_steps(steps);
        }
        Ok(recipe)
    }
}

/// Rank and parameters of each recipe.
fn planned(plan: &Plan) -> String {
    let line = |recipe: &molora_train::compare::PlannedRecipe| {
        format!(
            "{}: rank {}, {} trainable parameters beside the heads, {} steps",
            recipe.name,
            recipe.recipe.adapter.bank.rank,
            thousands(recipe.parameters),
            thousands(recipe.steps())
        )
    };
    plan.recipes.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn turn(run: &RunEvent<'_>) -> String {
    let state = match run.state {
        State::New => "",
        State::Unfinished => ", going on",
        State::Finished => ", finished before",
    };
    let (number, total) = (run.number, run.total);
    format!(
        "run {number} of {total}: {}, seed {}{state}",
        run.recipe, run.seed
    )
}

fn closing(folder: &Path, comparison: &Comparison) -> String {
    let report = folder.join(TABLES);
    format!("\n{}\n\nreport: {}\n", tables(comparison), report.display())
}
