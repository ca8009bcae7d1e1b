//! `molora reproduce`.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;

use super::choice::Budget;
use super::compare::Shown;
use super::signals::stop_on_signal;
use super::source::{FoundBase, SourceArgs};
use super::train::{read_recipe, set_steps};
use super::validation::ValidationArgs;
use super::{print, print_raw, read_utf8};
use molora_train::compare;
use molora_train::recipe::{Recipe, overrides};
use molora_train::suite::{self, Prepared, Reproduction, Request, Suite, prepare, tables};

/// What the number of steps of an epoch depends on.
const BATCH_SIZE: &str = "data.sampling.batch_size";

/// Options of `molora reproduce`.
#[derive(Debug, Args)]
pub(super) struct ReproduceArgs {
    /// Name of a suite (see --list) or a TOML file derived from one
    #[arg(required_unless_present = "list")]
    suite: Option<String>,
    /// List the suites with the papers whose tables they are
    #[arg(long)]
    list: bool,
    /// Print the suite as TOML, with the files that it needs, to be edited and given back
    #[arg(long, requires = "suite")]
    show: bool,
    /// Names of recipes (see `molora list`) or TOML files derived from them, separated by commas
    /// [default: those of the papers' rows]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    recipes: Vec<String>,
    /// Number of seeds (0, 1, ...) that every recipe is trained with
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Keep at most N records of each split of each task, the same ones each time
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// What is made equal
    #[arg(long, value_enum, default_value_t = Budget::Steps)]
    budget: Budget,
    /// Number of optimizer steps of every recipe [default: the papers' epochs or steps]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    validation: ValidationArgs,
    /// Folder to write; a reproduction that was stopped continues there [default: runs/<suite>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Change a value of every recipe, for example data.sampling.batch_size=8; may be repeated
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
}

impl ReproduceArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Some(name) = self.suite.as_deref().filter(|_| !self.list) else {
            return print(&list()?);
        };
        let suite = read_suite(name)?;
        if self.show {
            return match suite::source(name) {
                Some(text) => print_raw(text),
                None => print(&read_utf8(Path::new(name))?),
            };
        }
        let stop = stop_on_signal()?;
        let base = self.source.found(&stop, |_| Ok(()))?;
        let data = self.source.data();
        let tasks = self.source.tasks.as_deref();
        let default = || Path::new("runs").join(&suite.name);
        let out = self.out.clone().unwrap_or_else(default);
        let recipes = self.named_recipes(&suite, &base)?;
        let prepared = prepare(&suite, Path::new(&data), tasks, self.limit, &out)?;
        let request = self.request(suite, prepared, recipes, &base)?;
        let mut shown = Shown::new();
        let found = suite::reproduce(&request, &stop, &mut |event| shown.show(event))?;
        shown.finish();
        print(&closing(&out, &found))
    }

    /// The recipes as they are bundled, or as their files say.
    fn named_recipes(&self, suite: &Suite, base: &FoundBase) -> anyhow::Result<Vec<Recipe>> {
        let of_papers = || {
            let mut names: Vec<String> = Vec::new();
            for name in suite.rows.iter().filter_map(|row| row.recipe.clone()) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            names
        };
        let names = match (&self.recipes[..], of_papers()) {
            ([], papers) if papers.is_empty() => vec!["lora".to_owned(), "samora".to_owned()],
            ([], papers) => papers,
            (names, _) => names.to_vec(),
        };
        names.iter().map(|name| read_recipe(name, base)).collect()
    }

    fn request(
        &self,
        suite: Suite,
        prepared: Prepared,
        recipes: Vec<Recipe>,
        base: &FoundBase,
    ) -> anyhow::Result<Request> {
        let set_up = |recipe: Recipe| -> anyhow::Result<Recipe> {
            let recipe = suite.set_up(&recipe, base.kind, &prepared)?;
            let mut recipe = overrides::apply(&recipe, &self.set)?;
            if self
                .set
                .iter()
                .any(|set| set.trim_start().starts_with(BATCH_SIZE))
            {
                suite.set_steps(&mut recipe, &prepared);
            }
            set_steps(&mut recipe, self.steps)?;
            self.validation.apply(&mut recipe);
            Ok(recipe)
        };
        let recipes = recipes.into_iter().map(set_up);
        let compare = compare::Request {
            recipes: recipes.collect::<anyhow::Result<_>>()?,
            model: base.model.clone(),
            base_dtype: self.source.base_dtype,
            data: prepared.data().display().to_string(),
            tasks: Some(prepared.trained.clone()),
            unseen: Vec::new(),
            out: prepared.folder.clone(),
            seeds: self.seeds,
            budget: self.budget.into(),
            alone: true,
            tune: None,
            device: self.source.device,
        };
        Ok(Request {
            suite,
            prepared,
            compare,
            kind: base.kind,
        })
    }
}

/// A suite by name, or from a file if the name looks like one.
fn read_suite(name: &str) -> anyhow::Result<Suite> {
    if !name.ends_with(".toml") {
        return Ok(suite::find(name)?);
    }
    Ok(Suite::from_toml(&read_utf8(Path::new(name))?, name)?)
}

fn list() -> anyhow::Result<String> {
    let mut text = String::from("suites (--show for their files, prompts and numbers)\n\n");
    for name in suite::names() {
        let found = suite::find(name)?;
        let held_out = found.tasks.iter().filter(|task| task.held_out).count();
        let trained = found.tasks.len() - held_out;
        let more = match held_out {
            0 => String::new(),
            count => format!(", {count} held out"),
        };
        let tasks = if trained == 1 { "task" } else { "tasks" };
        let rows = found.rows.len();
        writeln!(text, "  {name:<12} {}", found.title)?;
        writeln!(
            text,
            "  {:<12} {trained} {tasks}{more}; {rows} rows of papers",
            ""
        )?;
    }
    Ok(text)
}

fn closing(folder: &Path, found: &Reproduction) -> String {
    format!(
        "\n{}\n\nreport: {}, {}\n",
        tables(found),
        folder.join(suite::TABLE).display(),
        folder.join("comparison").join(compare::PAGE).display()
    )
}
