//! A comparison as it was requested and resolved: `compare.toml`.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use molora_models::{Backbone, BaseDtype};
use serde::{Deserialize, Serialize};

use super::error::CompareError;
use super::rank::{Counter, RankChoice};
use super::setting::{Setting, Tuning, setting_text, with_setting};
use super::{COMPARISON, Request};
use crate::base::base_model::{self, absolute};
use crate::base::bundled;
use crate::data::{
    DataError, Split, Task, list_tasks, load_tasks, load_tasks_for, require_classification,
};
use crate::recipe::Recipe;
use crate::report::SCHEMA_VERSION;
use crate::run::{check_tasks, with_groups};
use crate::store::is_empty;
use crate::unseen::check_probed;
use crate::{TrainError, run};

/// What is made equal between recipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Trainable parameters beside the heads: ranks are chosen to come near the first recipe's.
    Params,
    /// Optimizer steps only: recipes keep their ranks.
    Steps,
}

/// Everything that decides a comparison's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// Version of molora that wrote the file.
    pub molora_version: String,
    /// Folder of the base model, `bundled:NAME`, or `hub:org/name@commit`.
    pub model: String,
    /// The type in which the base's matrices are kept.
    #[serde(default, skip_serializing_if = "BaseDtype::is_default")]
    pub base_dtype: BaseDtype,
    /// Folder of the tasks, or `bundled:tasks`.
    pub data: String,
    /// Name of the device.
    pub device: String,
    /// Every recipe is trained with the seeds below this number.
    pub seeds: u64,
    /// What is made equal.
    pub budget: Budget,
    /// What is tried on the validation split before the runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tune: Option<Tuning>,
    /// The tasks in the order of their numbers.
    pub tasks: Vec<PlannedTask>,
    /// The tasks that are held out of training and measured afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<PlannedTask>,
    /// The recipes, the reference first.
    pub recipes: Vec<PlannedRecipe>,
}

impl Plan {
    /// One of its runs.
    pub(super) fn run(
        &self,
        request: &Request,
        recipe: &PlannedRecipe,
        seed: u64,
        folder: &Path,
    ) -> run::Request {
        let tasks = self.tasks.iter().map(|task| task.name.clone());
        run::Request {
            recipe: recipe.recipe.clone(),
            model: self.model.clone(),
            base_dtype: self.base_dtype,
            data: request.data.clone(),
            tasks: Some(tasks.collect()),
            out: folder.to_owned(),
            init: None,
            epochs: None,
            memory: None,
            force: false,
            seed,
            device: request.device,
            scored: Split::Test,
            until: None,
        }
    }
}

/// A task of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedTask {
    /// Name of the task.
    pub name: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// Numbers of records for training, validation and test.
    pub records: [usize; 3],
}

/// A recipe as it is trained, with the rank that was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedRecipe {
    /// Its name.
    pub name: String,
    /// Scalars of adapters, routers and gates.
    pub parameters: usize,
    /// The recipe.
    pub recipe: Recipe,
}

impl PlannedRecipe {
    /// Steps over all stages.
    pub fn steps(&self) -> usize {
        steps(&self.recipe)
    }
}

/// Tasks with all their records.
#[derive(Debug)]
pub(super) struct Tasks {
    /// Those that are trained on.
    pub(super) trained: Vec<Task>,
    /// Those that are held out.
    pub(super) unseen: Vec<Task>,
}

/// Checks a request against model and data and chooses the ranks; also the tasks that it read.
pub(super) fn resolve(
    request: &Request,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(run::Event<'_>),
) -> Result<(Plan, Tasks), CompareError> {
    let (recipes, all) = checked(request)?;
    let tasks = &all.trained;
    let model = run::find_model(&request.model, stop, on_event)?;
    let with_prompt = |recipe| run::with_prompt(recipe, &model.folder);
    let recipes: Result<_, TrainError> = recipes.into_iter().map(with_prompt).collect();
    let recipes = recipes?;
    let plan = Plan {
        version: SCHEMA_VERSION,
        molora_version: env!("CARGO_PKG_VERSION").into(),
        recipes: planned_recipes(request, recipes, &model.folder, tasks)?,
        model: model.name,
        base_dtype: request.base_dtype,
        data: absolute(&request.data),
        device: request.device.to_string(),
        seeds: request.seeds,
        budget: request.budget,
        tune: request.tune.clone(),
        tasks: tasks.iter().map(planned_task).collect(),
        unseen: all.unseen.iter().map(planned_task).collect(),
    };
    Ok((plan, all))
}

/// Checks what can be checked without the model: the recipes for the tasks, and these.
pub(super) fn checked(request: &Request) -> Result<(Vec<Recipe>, Tasks), CompareError> {
    check(request)?;
    let data = bundled::folder(&request.data)?;
    let tasks = read_tasks(&data, request).map_err(TrainError::from)?;
    let recipes = with_tasks(request, &tasks.trained)?;
    for recipe in &recipes {
        for setting in request.tune.iter().flat_map(Tuning::settings) {
            check_equal(recipe, &setting, &with_setting(recipe, &setting)?)?;
        }
    }
    Ok((recipes, tasks))
}

/// The tasks that are trained on, which are all but the unseen ones if none are named, and those.
fn read_tasks(data: &Path, request: &Request) -> Result<Tasks, DataError> {
    let unseen = match &request.unseen[..] {
        [] => Vec::new(),
        names => load_tasks(data, Some(names))?,
    };
    let names = match &request.tasks {
        Some(names) => names.clone(),
        None => list_tasks(data)?
            .into_iter()
            .filter(|name| !request.unseen.contains(name))
            .collect(),
    };
    if let Some(name) = names.iter().find(|name| request.unseen.contains(name)) {
        let problem = format!("task \"{name}\" is in --tasks and in --unseen");
        return Err(DataError::Selection(problem));
    }
    if names.is_empty() {
        let problem = "--unseen leaves no task to train on".into();
        return Err(DataError::Selection(problem));
    }
    // Templates decide how many questions a record becomes.
    let writing = request.recipes.first().map(|recipe| &recipe.data.writing);
    let writing = writing.filter(|writing| writing.has_templates()).cloned();
    let streaming = request.recipes.iter().all(|recipe| recipe.data.streaming);
    let trained = load_tasks_for(data, Some(&names), &writing.unwrap_or_default(), streaming)?;
    require_classification(&unseen)?;
    Ok(Tasks { trained, unseen })
}

fn check(request: &Request) -> Result<(), CompareError> {
    let recipes = &request.recipes;
    if recipes.len() < 2 && !(request.alone && recipes.len() == 1) {
        let found = recipes.len();
        return Err(CompareError::TooFew { found });
    }
    for (index, recipe) in recipes.iter().enumerate() {
        if recipes[..index]
            .iter()
            .any(|other| other.name == recipe.name)
        {
            let name = recipe.name.clone();
            return Err(CompareError::Twice { name });
        }
        recipe.check()?;
    }
    if request.seeds == 0 {
        return Err(CompareError::NoSeeds);
    }
    if let Some(tuning) = &request.tune {
        tuning.check(recipes)?;
    }
    request.device.check()?;
    base_model::check(&request.model)?;
    check_steps(request)
}

/// The recipes with the groups that the data give, checked against the tasks.
fn with_tasks(request: &Request, tasks: &[Task]) -> Result<Vec<Recipe>, TrainError> {
    let one = |recipe: &Recipe| {
        let recipe = with_groups(recipe, tasks)?;
        check_tasks(&recipe, tasks)?;
        Ok(recipe)
    };
    request.recipes.iter().map(one).collect()
}

/// Steps of a recipe over all stages.
pub(super) fn steps(recipe: &Recipe) -> usize {
    recipe.stages.iter().map(|stage| stage.steps).sum()
}

fn check_steps(request: &Request) -> Result<(), CompareError> {
    let first = &request.recipes[0];
    let (first_steps, mut others) = (steps(first), request.recipes.iter());
    let other = others.find(|other| steps(other) != first_steps);
    match (request.budget, other) {
        (Budget::Steps, Some(other)) => Err(CompareError::UnequalSteps {
            first: first.name.clone(),
            steps: first_steps,
            other: other.name.clone(),
            other_steps: steps(other),
        }),
        _ => Ok(()),
    }
}

fn planned_task(task: &Task) -> PlannedTask {
    PlannedTask {
        name: task.meta.name.clone(),
        labels: task.meta.labels.clone(),
        records: [task.num_train(), task.validation.len(), task.test.len()],
    }
}

/// Refuses a setting that changes how much a recipe is trained: it would win by having more.
fn check_equal(recipe: &Recipe, setting: &Setting, changed: &Recipe) -> Result<(), CompareError> {
    let rows = |recipe: &Recipe| recipe.data.sampling.batch_size;
    for (what, [old, new]) in [
        ("steps", [recipe, changed].map(steps)),
        ("examples in a batch", [recipe, changed].map(rows)),
    ] {
        if old != new {
            return Err(unequal(&recipe.name, setting, what, old, new));
        }
    }
    Ok(())
}

/// Refuses a setting that changes the number of parameters, where these are to be equal.
fn check_parameters(
    budget: Budget,
    planned: &PlannedRecipe,
    setting: &Setting,
    changed: &Recipe,
    parameters: impl Fn() -> Result<usize, TrainError>,
) -> Result<(), CompareError> {
    if budget == Budget::Params && changed.adapter != planned.recipe.adapter {
        let (old, new) = (planned.parameters, parameters()?);
        if old != new {
            let what = "parameters (see --budget steps)";
            return Err(unequal(&planned.name, setting, what, old, new));
        }
    }
    Ok(())
}

fn unequal(name: &str, setting: &Setting, what: &str, old: usize, new: usize) -> CompareError {
    let setting = setting_text(setting);
    CompareError::Tuning {
        problem: format!("{setting} gives {name} {new} {what} instead of {old}"),
    }
}

fn planned_recipes(
    request: &Request,
    recipes: Vec<Recipe>,
    model: &Path,
    tasks: &[Task],
) -> Result<Vec<PlannedRecipe>, CompareError> {
    let device = request.device.open()?;
    let base = Backbone::from_folder(model, &device).map_err(TrainError::from)?;
    if !request.unseen.is_empty() {
        check_probed(model, &base)?;
    }
    let counter = Counter {
        base: &base,
        num_tasks: tasks.len(),
        device: &device,
    };
    let names: Vec<String> = tasks.iter().map(|task| task.meta.name.clone()).collect();
    let mut planned: Vec<PlannedRecipe> = Vec::new();
    for mut recipe in recipes {
        let spec = recipe.resolve(&base, &names)?;
        let choice = match (request.budget, planned.first()) {
            (Budget::Params, Some(reference)) => counter.nearest(&spec, reference.parameters)?,
            _ => RankChoice {
                rank: spec.bank.rank,
                parameters: counter.parameters(&spec)?,
            },
        };
        recipe.adapter.bank.rank = choice.rank;
        let recipe = PlannedRecipe {
            name: recipe.name.clone(),
            parameters: choice.parameters,
            recipe,
        };
        for setting in request.tune.iter().flat_map(Tuning::settings) {
            let changed = with_setting(&recipe.recipe, &setting)?;
            let spec = changed.resolve(&base, &names)?;
            check_parameters(request.budget, &recipe, &setting, &changed, || {
                counter.parameters(&spec)
            })?;
        }
        planned.push(recipe);
    }
    Ok(planned)
}

/// Refuses a folder that holds something else than a comparison.
pub(super) fn check_folder(folder: &Path) -> Result<(), CompareError> {
    if !folder.exists() {
        return Ok(());
    }
    if !folder.is_dir() {
        let text = "is a file, expected a folder or nothing";
        return Err(CompareError::folder(folder, text));
    }
    if !is_empty(folder)? && !folder.join(COMPARISON).is_file() {
        let text = "holds files but no compare.toml: not a comparison; choose another --out";
        return Err(CompareError::folder(folder, text));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::compare) fn plan() -> Plan {
        let recipe = crate::recipe::find("samora").expect("listed");
        Plan {
            version: SCHEMA_VERSION,
            molora_version: "0.1.0".into(),
            model: "bundled:m".into(),
            base_dtype: BaseDtype::Bf16,
            data: "bundled:tasks".into(),
            device: "cpu".into(),
            seeds: 3,
            budget: Budget::Params,
            tune: None,
            tasks: vec![PlannedTask {
                name: "pets".into(),
                labels: vec!["cat".into(), "dog".into()],
                records: [3, 2, 1],
            }],
            unseen: Vec::new(),
            recipes: vec![PlannedRecipe {
                name: recipe.name.clone(),
                parameters: 12,
                recipe,
            }],
        }
    }

    #[test]
    fn a_plan_survives_its_own_text() {
        let plan = plan();
        let text = toml::to_string(&plan).expect("plain data");
        assert_eq!(toml::from_str::<Plan>(&text).expect("its own text"), plan);
    }
}
