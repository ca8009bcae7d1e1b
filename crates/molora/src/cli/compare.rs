//! `molora compare`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::Args;

use super::choice::Budget;
use super::progress::Progress;
use super::ranks::{Misuse, Voice, on_ranks, set_voice};
use super::signals::stop_on_signal;
use super::source::{FoundBase, SourceArgs};
use super::train::{read_recipe, set_steps};
use super::validation::ValidationArgs;
use super::{print, say};
use molora_train::collective::Collective;
use molora_train::compare::{
    Comparison, Event, LEARNING_RATE, PAGE, Plan, Request, RunEvent, State, TABLES, TrialEvent,
    Tuned, TunedKey, Tuning, check, compare_on, setting_text, tables,
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
    /// Number of seeds (0, 1, ...) that every recipe is trained with
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// What is made equal
    #[arg(long, value_enum, default_value_t = Budget::Params)]
    budget: Budget,
    /// Number of optimizer steps of every recipe
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Try these values on the validation split, for every recipe, and train with the best: a list for
    /// learning_rate (of all stages, their ratios kept) or any key path; several are tried together
    /// [default list: learning_rate up to 1e-2]
    #[arg(long, value_name = "KEY[=V,V,...]", num_args = 0..=1, default_missing_value = LEARNING_RATE,
        value_parser = TunedKey::parse)]
    tune: Vec<TunedKey>,
    /// Number of optimizer steps of a trial; recipes that train experts one by one keep their own
    #[arg(long, value_name = "N", requires = "tune")]
    tune_steps: Option<usize>,
    /// Hold these tasks out of training and measure the finished runs on them, as `molora eval
    /// --unseen` does; separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    unseen: Vec<String>,
    /// Under mpirun or srun: so many ranks compute each run together, and runs are dealt to groups of them
    #[arg(long, value_name = "R", default_value_t = NonZeroUsize::MIN)]
    ranks_per_run: NonZeroUsize,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    validation: ValidationArgs,
    /// Folder to write; a comparison that was stopped continues there
    #[arg(long, value_name = "DIR", default_value = "runs/compare")]
    out: PathBuf,
    /// Change a value of every recipe, for example data.max_length=32; may be repeated
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
}

impl CompareArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        on_ranks(|ranks| self.run_on(ranks))
    }

    fn run_on(&self, ranks: &dyn Collective) -> anyhow::Result<()> {
        let groups = self.groups(ranks)?;
        let stop = stop_on_signal()?;
        let before = |base: &FoundBase| Ok(check(&self.request(base)?)?);
        let request = self.request(&self.source.found(&stop, before)?)?;
        let mut shown = Shown::new();
        let show = &mut |event: Event<'_>| shown.show(event);
        let comparison = compare_on(&request, ranks, groups, &stop, show)?;
        shown.finish();
        print(&closing(&request.out, &comparison))
    }

    /// Number of groups of ranks, of which each makes runs of its own.
    fn groups(&self, ranks: &dyn Collective) -> Result<usize, Misuse> {
        let (count, each) = (ranks.world_size(), self.ranks_per_run.get());
        if !count.is_multiple_of(each) {
            let problem = format!(
                "--ranks-per-run is {each}, and there are {count} ranks, expected a number that divides them"
            );
            return Err(Misuse(problem));
        }
        let groups = count / each;
        // What a run of another group is warned of is nowhere else to be seen.
        if ranks.rank() > 0 && ranks.rank().is_multiple_of(each) {
            set_voice(Voice::Warnings);
        }
        Ok(groups)
    }

    fn request(&self, base: &FoundBase) -> anyhow::Result<Request> {
        let recipes = self.recipes.iter().map(|name| self.recipe(name, base));
        Ok(Request {
            recipes: recipes.collect::<anyhow::Result<_>>()?,
            model: base.model.clone(),
            base_dtype: self.source.base_dtype,
            data: self.source.data(),
            tasks: self.source.tasks.clone(),
            unseen: self.unseen.clone(),
            out: self.out.clone(),
            seeds: self.seeds,
            budget: self.budget.into(),
            alone: false,
            tune: (!self.tune.is_empty()).then_some(Tuning {
                steps: self.tune_steps,
                keys: self.tune.clone(),
            }),
            device: self.source.device,
        })
    }

    fn recipe(&self, name: &str, base: &FoundBase) -> anyhow::Result<Recipe> {
        let mut recipe = overrides::apply(&read_recipe(name, base)?, &self.set)?;
        set_steps(&mut recipe, self.steps)?;
        self.validation.apply(&mut recipe);
        Ok(recipe)
    }
}

/// Shows how far a comparison is.
pub(super) struct Shown {
    progress: Progress,
}

impl Shown {
    pub(super) fn new() -> Self {
        Self {
            progress: Progress::new(),
        }
    }

    pub(super) fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Planned(plan) => say(&planned(plan)),
            Event::Trial(trial) => {
                self.begin();
                say(&trial_line(&trial));
            }
            Event::Tuned(tuned) => {
                self.finish();
                tuned.iter().for_each(|tuned| say(&chosen(tuned)));
            }
            Event::Run(run) => {
                self.begin();
                say(&turn(&run));
            }
            Event::Inside(event) => self.progress.show(event),
        }
    }

    fn begin(&mut self) {
        self.finish();
        self.progress = Progress::new();
    }

    pub(super) fn finish(&mut self) {
        self.progress.finish();
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

fn trial_line(trial: &TrialEvent<'_>) -> String {
    let (number, total, recipe) = (trial.number, trial.total, trial.recipe);
    let done = if trial.is_done { ", tried before" } else { "" };
    let setting = setting_text(trial.setting);
    format!("trial {number} of {total}: {recipe}, {setting}{done}")
}

/// What was chosen for a recipe, and a warning if that lies at an end of what was tried.
fn chosen(tuned: &Tuned) -> String {
    let setting = setting_text(tuned.setting());
    let warning = match &tuned.at_end[..] {
        [] => String::new(),
        keys => format!(
            "\nwarning: {}: {} is at an end of the list: one beyond it may be better",
            tuned.recipe,
            keys.join(", ")
        ),
    };
    format!("{}: chosen {setting}{warning}", tuned.recipe)
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
    let [tables_file, page] = [TABLES, PAGE].map(|name| folder.join(name));
    format!(
        "\n{}\n\nreport: {}, {}\n",
        tables(comparison),
        tables_file.display(),
        page.display()
    )
}
