//! `molora train`.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use clap::Args;

use super::batch::BatchArgs;
use super::choice::ScheduleChoice;
use super::progress::Progress;
use super::ranks::{on_ranks, one_process};
use super::signals::stop_on_signal;
use super::source::{FoundBase, SourceArgs};
use super::validation::ValidationArgs;
use super::{print, read_utf8};
use molora_train::collective::Collective;
use molora_train::data::Split;
use molora_train::recipe::{self, LogFormat, MAX_STEPS, Recipe, overrides};
use molora_train::report::{dry_run_table, idle_summary, summary_table, task_table};
use molora_train::run::{
    Event, Finished, Request, ResumeOptions, check, dry_run, resume_on, train_on,
};

/// Options of `molora train`.
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// Name of a recipe (see `molora list`) or a TOML file derived from one
    #[arg(required_unless_present = "resume", conflicts_with = "resume")]
    recipe: Option<String>,
    /// Continue an unfinished run, or with --steps a finished one
    #[arg(long, value_name = "RUN", conflicts_with_all = ["model", "data", "tasks", "out", "seed",
        "epochs", "base_dtype", "device", "set", "force", "eval_every", "eval_limit", "batch_size"])]
    resume: Option<PathBuf>,
    #[command(flatten)]
    source: SourceArgs,
    /// Folder to write [default: runs/<recipe>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of every random draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of optimizer steps, which the stages of the recipe share as before; with --resume the
    /// number in all that a finished run goes on to
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    steps: Option<usize>,
    /// With --resume and --steps, the learning rate over the new steps: as if the run had always had
    /// so many (extend), or with a new warm-up and decay (restart)
    /// [default: extend]
    #[arg(long, value_enum)]
    schedule: Option<ScheduleChoice>,
    /// Train for E epochs: E times the number of all training records; 0.5 is half of them
    #[arg(
        long,
        value_name = "E",
        conflicts_with = "steps",
        allow_negative_numbers = true
    )]
    epochs: Option<f64>,
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    validation: ValidationArgs,
    /// Write a checkpoint after the step that ends N seconds, or more, after the last one, beside those of
    /// checkpoint_every
    #[arg(long, value_name = "N")]
    checkpoint_every_seconds: Option<NonZeroU64>,
    /// Log the training for another program too: tensorboard, into the run's folder of that name
    #[arg(
        long,
        value_name = "PROGRAM",
        value_delimiter = ',',
        conflicts_with = "resume"
    )]
    log: Vec<LogFormat>,
    /// Change a value of the recipe, for example adapter.bank.rank=4; may be repeated
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Initial weights: those of a run or of a PEFT adapter; heads are matched by the names of tasks
    #[arg(long, value_name = "RUN|ADAPTER", conflicts_with = "resume")]
    init: Option<PathBuf>,
    /// Replace an older run in the same folder
    #[arg(long)]
    force: bool,
    /// Print layers, parameters and data of the run, and the memory and time that it will take, by a few
    /// steps of each stage; nothing is written
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// With --resume: repeat the run from this stage on
    #[arg(
        long,
        value_name = "STAGE",
        requires = "resume",
        conflicts_with = "steps"
    )]
    from_stage: Option<String>,
    /// Stop at the end of this stage; --resume continues
    #[arg(long, value_name = "STAGE")]
    until_stage: Option<String>,
}

impl TrainArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        // Not as a rule of clap, which passes over an option that the recipe contradicts.
        ensure!(
            self.schedule.is_none() || (self.resume.is_some() && self.steps.is_some()),
            "--schedule needs --resume and --steps"
        );
        on_ranks(|ranks| self.run_on(ranks))
    }

    fn run_on(&self, ranks: &dyn Collective) -> anyhow::Result<()> {
        if self.dry_run {
            one_process("--dry-run", ranks)?;
        }
        let stop = stop_on_signal()?;
        let mut progress = Progress::new();
        let mut show = |event: Event<'_>| progress.show(event);
        let part = ResumeOptions {
            from: self.from_stage.clone(),
            until: self.until_stage.clone(),
            steps: self.steps,
            schedule: self.schedule.unwrap_or_default().into(),
            checkpoint_every_seconds: self.checkpoint_every_seconds,
        };
        let (folder, finished) = match &self.resume {
            Some(folder) => (
                folder.clone(),
                resume_on(folder, &part, ranks, &stop, &mut show)?,
            ),
            None => {
                let before = |base: &FoundBase| Ok(check(&self.request(base)?)?);
                let request = self.request(&self.source.found(&stop, before)?)?;
                if self.dry_run {
                    let dry = dry_run(&request, &stop, &mut show)?;
                    progress.finish();
                    return print(&format!("\n{}", dry_run_table(&dry)));
                }
                let finished = train_on(&request, ranks, &stop, &mut show)?;
                (request.out, finished)
            }
        };
        progress.finish();
        print(&closing(&folder, &finished))
    }

    fn request(&self, base: &FoundBase) -> anyhow::Result<Request> {
        let name = self.recipe.as_deref().unwrap_or_default();
        let mut recipe = overrides::apply(&read_recipe(name, base)?, &self.set)?;
        set_steps(&mut recipe, self.steps)?;
        let memory = self.batch.apply(&mut recipe)?;
        self.validation.apply(&mut recipe);
        if self.checkpoint_every_seconds.is_some() {
            recipe.checkpoint.every_seconds = self.checkpoint_every_seconds;
        }
        if !self.log.is_empty() {
            recipe.report.log.clone_from(&self.log);
        }
        let default = || Path::new("runs").join(&recipe.name);
        let out = self.out.clone().unwrap_or_else(default);
        if self.force && is_inside(Path::new(name), &out) {
            let out = out.display();
            bail!("{name}: lies in {out}, which --force would remove; choose another --out");
        }
        Ok(Request {
            out,
            recipe,
            model: base.model.clone(),
            base_dtype: self.source.base_dtype,
            data: self.source.data(),
            tasks: self.source.tasks.clone(),
            init: self.init.clone(),
            epochs: self.epochs,
            memory,
            force: self.force,
            seed: self.seed,
            device: self.source.device,
            scored: Split::Test,
            until: self.until_stage.clone(),
        })
    }
}

/// Gives a recipe the steps that `--steps` asks for, if it does.
pub(super) fn set_steps(recipe: &mut Recipe, steps: Option<usize>) -> anyhow::Result<()> {
    let Some(steps) = steps else {
        return Ok(());
    };
    ensure!(
        (1..=MAX_STEPS).contains(&(steps as u64)),
        "--steps is {steps}, expected 1 to {MAX_STEPS}"
    );
    recipe.set_total_steps(steps);
    Ok(())
}

/// Whether a file is there and lies in a folder.
fn is_inside(file: &Path, folder: &Path) -> bool {
    let [file, folder] = [file, folder].map(Path::canonicalize);
    matches!((file, folder), (Ok(file), Ok(folder)) if file.is_file() && file.starts_with(&folder))
}

/// A recipe by name, with the numbers that fit the base model, or from a file if the name looks like
/// one.
pub(super) fn read_recipe(name: &str, base: &FoundBase) -> anyhow::Result<Recipe> {
    if !name.ends_with(".toml") {
        return Ok(recipe::find_for(name, base.kind)?);
    }
    let text = read_utf8(Path::new(name))?;
    Ok(Recipe::from_toml(&text, name)?)
}

/// What is printed at the end of a run.
pub(super) fn closing(folder: &Path, finished: &Finished) -> String {
    let idle = idle_summary(&finished.routing).map(|text| text + "\n\n");
    format!(
        "\n{}\n\n{}\n\n{}report: {}\n",
        task_table(
            &finished.eval,
            finished.base.as_ref().map(|base| &base.scores)
        ),
        summary_table(&finished.summary),
        idle.unwrap_or_default(),
        folder.join("report.html").display()
    )
}
