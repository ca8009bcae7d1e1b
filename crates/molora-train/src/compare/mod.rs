//! An honest comparison: several recipes, several seeds, the same data, an equal budget.
//!
//! | file in a comparison's folder | content |
//! |---|---|
//! | `compare.toml` | the request, with the chosen ranks: [`Plan`] |
//! | `trials/<recipe>-<n>.json` | one setting that was tried on the validation split: [`Trial`] |
//! | `runs/<recipe>-seed<k>/` | one run folder each, as [`crate::run`] writes it |
//! | `compare.json` | the result: [`Comparison`]; numbers are fractions and seconds |
//! | `compare.md` | the same as Markdown tables, in per cent |
//! | `compare.html` | a page with the same, the runs' curves, and scores against parameters |
//!
//! How to read it, and what the interval covers, is in `docs/comparing.md`.

mod agree;
mod crew;
mod error;
mod outcome;
mod page;
mod plan;
mod rank;
mod result;
mod setting;
mod table;
mod table_parts;
mod tune;
mod unseen;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use molora_models::BaseDtype;

use crate::base::DeviceSpec;
use crate::base::place::{write_atomically, write_json_atomically};
use crate::collective::{Collective, Local};
use crate::recipe::Recipe;
use crate::store::{RUN, SUMMARY, check_page, read_config, recover};
use crate::{TrainError, run};

use crew::Crew;
pub use error::CompareError;
pub use page::{is_comparison, page_of_comparison, page_of_runs, runs_of};
pub use plan::{Budget, Plan, PlannedRecipe, PlannedTask};
pub use rank::{Counter, RankChoice};
pub use result::{Comparison, DeadExperts, RecipeResult, TaskResult, WorstTask};
pub use setting::{LEARNING_RATE, Setting, TunedKey, Tuning, setting_text};
pub use table::tables;
pub use tune::{Trial, TrialEvent, Tuned};
pub use unseen::{UnseenComparison, UnseenResult};

/// File of the resolved request in a comparison's folder.
pub const COMPARISON: &str = "compare.toml";
/// File of the result in a comparison's folder.
pub(crate) const RESULT: &str = "compare.json";
/// File of the result's tables in a comparison's folder.
pub const TABLES: &str = "compare.md";
/// File of the page in a comparison's folder.
pub const PAGE: &str = "compare.html";

/// The request of a user.
#[derive(Debug, Clone)]
pub struct Request {
    /// The recipes, the reference first.
    pub recipes: Vec<Recipe>,
    /// Folder of the base model, `bundled:NAME`, or `org/name` on the Hub.
    pub model: String,
    /// The type in which the base's matrices are kept.
    pub base_dtype: BaseDtype,
    /// Folder of the tasks, or `bundled:tasks`.
    pub data: String,
    /// The tasks to train on; all in the folder if `None`.
    pub tasks: Option<Vec<String>>,
    /// Tasks that are held out of training, on which the finished runs are measured.
    pub unseen: Vec<String>,
    /// The comparison's folder.
    pub out: PathBuf,
    /// Every recipe is trained with the seeds below this number.
    pub seeds: u64,
    /// What is made equal between the recipes.
    pub budget: Budget,
    /// Whether one recipe is enough, which is then compared with nothing.
    pub alone: bool,
    /// What is tried on the validation split before the runs.
    pub tune: Option<Tuning>,
    /// The device.
    pub device: DeviceSpec,
}

/// Events of a comparison.
#[derive(Debug)]
pub enum Event<'a> {
    /// Everything is checked and the ranks are chosen.
    Planned(&'a Plan),
    /// The next trial of a setting.
    Trial(TrialEvent<'a>),
    /// What was tried, and chosen.
    Tuned(&'a [Tuned]),
    /// The next run.
    Run(RunEvent<'a>),
    /// Something from inside the run.
    Inside(run::Event<'a>),
}

/// One run of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct RunEvent<'a> {
    /// Its number, from 1.
    pub number: usize,
    /// Number of runs.
    pub total: usize,
    /// Name of the recipe.
    pub recipe: &'a str,
    /// The seed.
    pub seed: u64,
    /// How far it is.
    pub state: State,
}

/// How far a run is when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not begun.
    New,
    /// Stopped before its end.
    Unfinished,
    /// At its end.
    Finished,
}

/// Trains what is not trained yet and writes the result.
///
/// Everything that can be checked is checked before the folder is made. Runs go seed by seed, so
/// that a comparison that was stopped has all recipes equally often.
///
/// # Errors
/// See [`CompareError`]; [`CompareError::Interrupted`] if `stop` was set, after a checkpoint.
pub fn compare(
    request: &Request,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Comparison, CompareError> {
    compare_on(request, &Local, 1, stop, on_event)
}

/// [`compare`] on several ranks: each calls this with the same request, and sees the same folder. Trials and runs are dealt
/// to `groups` of them, and each of a group's runs is computed by all of its ranks. Every rank hears of the runs of its own
/// group and gets the whole result; rank 0 writes it.
///
/// # Errors
/// As [`compare`], and if the ranks differ in what they compare, a rank does not see the folder, or one of them ends.
///
/// # Panics
/// If there are not 1 to `collective.world_size()` groups.
pub fn compare_on(
    request: &Request,
    collective: &dyn Collective,
    groups: usize,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Comparison, CompareError> {
    plan::check_folder(&request.out)?;
    // Before anything is trained.
    check_page(&request.out.join(PAGE))?;
    let mut inside = |event: run::Event<'_>| on_event(Event::Inside(event));
    let (plan, tasks) = plan::resolve(request, stop, &mut inside)?;
    let crew = Crew::new(collective, groups)?;
    let _lock = crew.begin(&plan, &request.out)?;
    on_event(Event::Planned(&plan));
    let (plan, tuned) = tune::tune_all(request, &plan, &crew, stop, on_event)?;
    on_event(Event::Tuned(&tuned));
    train_all(request, &plan, &crew, stop, on_event)?;
    let outcomes = outcome::read_all(&plan, &request.out, &tasks.trained)?;
    let mut comparison = Comparison::new(&plan, &outcomes);
    comparison.tuned = tuned;
    if !plan.unseen.is_empty() {
        // The first rank measures, and the others read what it found.
        let mut measure =
            || unseen::measure_all(&plan, &request.out, request.device, stop, on_event);
        if crew.is_first() {
            measure()?;
        }
        crew.all_are_here()?;
        let reports = measure()?;
        comparison.unseen = Some(UnseenComparison::new(&plan, &tasks.unseen, &reports));
    }
    if !crew.is_first() {
        return Ok(comparison);
    }
    write_json_atomically(&request.out.join(RESULT), &comparison)?;
    let text = table::document(&comparison);
    write_atomically(&request.out.join(TABLES), text.as_bytes())?;
    page::write(&plan, &comparison, &request.out)?;
    Ok(comparison)
}

/// Checks all of a request that can be checked without its base model; [`compare`] does so too.
///
/// # Errors
/// As [`compare`].
pub fn check(request: &Request) -> Result<(), CompareError> {
    plan::check_folder(&request.out)?;
    plan::checked(request).map(drop)
}

fn train_all(
    request: &Request,
    plan: &Plan,
    crew: &Crew<'_>,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<(), CompareError> {
    let total = plan.recipes.len() * plan.seeds as usize;
    let runs = (0..plan.seeds).flat_map(|seed| plan.recipes.iter().map(move |r| (seed, r)));
    for (index, (seed, recipe)) in runs.enumerate() {
        if !crew.does(index % plan.recipes.len(), seed as usize) {
            continue;
        }
        let one = One {
            request,
            plan,
            recipe,
            seed,
            crew,
        };
        let folder = run_folder(&request.out, &recipe.name, seed);
        let (number, state) = (index + 1, crew.state(&folder)?);
        let what = "run";
        let interrupted = CompareError::Interrupted {
            what,
            number,
            total,
        };
        on_event(Event::Run(RunEvent {
            number,
            total,
            recipe: &recipe.name,
            seed,
            state,
        }));
        if crew.is_stopped(stop)? && state != State::Finished {
            return Err(interrupted);
        }
        let mut inside = |event: run::Event<'_>| on_event(Event::Inside(event));
        match one.go_on(&folder, state, stop, &mut inside) {
            Err(CompareError::Train(TrainError::Interrupted { .. })) => {
                return Err(interrupted);
            }
            other => other?,
        }
    }
    crew.all_are_here()
}

/// Folder of one run of a comparison.
pub fn run_folder(out: &Path, recipe: &str, seed: u64) -> PathBuf {
    out.join("runs").join(format!("{recipe}-seed{seed}"))
}

fn state(folder: &Path) -> State {
    match (folder.join(SUMMARY).is_file(), folder.join(RUN).is_file()) {
        (true, _) => State::Finished,
        (false, true) => State::Unfinished,
        (false, false) => State::New,
    }
}

/// One run and what it belongs to.
struct One<'a> {
    request: &'a Request,
    plan: &'a Plan,
    recipe: &'a PlannedRecipe,
    seed: u64,
    crew: &'a Crew<'a>,
}

impl One<'_> {
    fn go_on(
        &self,
        folder: &Path,
        state: State,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(run::Event<'_>),
    ) -> Result<(), CompareError> {
        if state == State::New {
            let request = self.plan.run(self.request, self.recipe, self.seed, folder);
            run::train_on(&request, self.crew.group(), stop, on_event)?;
            return Ok(());
        }
        self.check(folder)?;
        match state {
            State::Unfinished => drop(run::resume_on(
                folder,
                &run::ResumeOptions::default(),
                self.crew.group(),
                stop,
                on_event,
            )?),
            // A kill after its end may have left checkpoints.
            _ if self.crew.writes() => drop(recover(folder)?),
            _ => {}
        }
        Ok(())
    }

    /// Refuses a run of another recipe, seed, model or data.
    fn check(&self, folder: &Path) -> Result<(), CompareError> {
        let config = read_config(folder)?;
        let plan = self.plan;
        let tasks = config.tasks.iter().map(|task| &task.name);
        let is_ours = config.recipe == self.recipe.recipe
            && config.seed == self.seed
            && (&config.model, &config.data) == (&plan.model, &plan.data)
            && config.base_dtype == plan.base_dtype
            && tasks.eq(plan.tasks.iter().map(|task| &task.name));
        match is_ours {
            true => Ok(()),
            false => {
                let text = "is not a run of this comparison; remove it to train it again";
                Err(CompareError::folder(&folder.join(RUN), text))
            }
        }
    }
}
