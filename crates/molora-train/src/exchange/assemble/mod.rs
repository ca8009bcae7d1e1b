//! A run whose experts were trained elsewhere.
//!
//! The adapters become the experts of one bank for each linear layer that any of them changes; ranks
//! and targets may differ. Routers that need no training weigh them:
//!
//! | router | weights of a token's experts | source |
//! |---|---|---|
//! | `uniform` | `1 / E` | the mean |
//! | `arrow` | softmax of the `K` largest `abs(v_e . x)`, `v_e` the direction that expert `e` stretches most | arXiv:2405.11157 |
//! | `phatgoose` | softmax of the `K` largest standardised `g_e . x`, `g_e` the expert's trained gate | arXiv:2402.05859 |
//! | `glider` | as `phatgoose`, with cosines of instructions added | arXiv:2410.07172 |
//!
//! `molora combine` assembles too, where its result is routed: gates of layers are then learned from
//! unlabelled records before the run is written.

mod experts;
mod recipe;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_models::{Adaptable, AdapterSpec, Backbone, TaskModel};

pub(super) use experts::{check_names_of, directions};
pub use recipe::RouterChoice;
pub(super) use recipe::of_given;

use crate::base::base_model::absolute;
use crate::base::{DeviceSpec, bundled};
use crate::collective::Local;
use crate::data::{ChatTemplate, Split, Task, TaskKind, load_tasks, task_names};
use crate::error::{RunProblem, TrainError};
use crate::exchange::refuse_twice;
use crate::recipe::{Recipe, phases};
use crate::run::{
    Finished, Loaded, bare_task, close, find_model, finish, tokenized, with_base_digests,
    with_digests,
};
use crate::store::{Claim, FORMAT, RunConfig, TaskLabels, checkpoint, fresh_head, git_commit};
use crate::train::{Event, Setup, Start, Trained, train};
use experts::Experts;

/// An adapter that becomes an expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Name of the expert, which is that of its task.
    pub name: String,
    /// Folder that PEFT wrote, or the folder of an expert in a run.
    pub folder: PathBuf,
    /// What the expert is for, in words; read by `glider`.
    pub instruction: Option<String>,
}

/// What is put together, and where to.
#[derive(Debug, Clone)]
pub struct AssembleRequest {
    /// Folder of the base model, `bundled:NAME`, or `org/name` on the Hub.
    pub base: String,
    /// The experts, in their order.
    pub experts: Vec<Given>,
    /// How they are weighed.
    pub router: RouterChoice,
    /// Experts for each token; the router's own number if `None`.
    pub top_k: Option<usize>,
    /// Folder with a task for each expert, on which the run is evaluated.
    pub data: Option<String>,
    /// Number of steps that train the routers.
    pub steps: usize,
    /// The run folder.
    pub out: PathBuf,
    /// Whether an older run in that folder may be removed.
    pub force: bool,
    /// Seed of every random draw.
    pub seed: u64,
    /// The device.
    pub device: DeviceSpec,
}

/// What was put together.
#[derive(Debug)]
pub struct Assembled {
    /// Number of adapted layers.
    pub sites: usize,
    /// Rank of the bank, the largest that an expert has.
    pub rank: usize,
    /// Number of experts.
    pub experts: usize,
    /// Scores on the tasks, if there are any.
    pub finished: Option<Finished>,
}

/// Makes a run of experts that PEFT or another run wrote.
///
/// Everything that can be checked is checked before the folder is made.
///
/// # Errors
/// Experts that are named twice, are not there, belong to other base models, change the model in a
/// way that cannot be mixed, or lack what the router needs; any problem with model, data or folder.
pub fn assemble(
    request: &AssembleRequest,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Assembled, TrainError> {
    assemble_by(request, |_, mixture| Ok(mixture), stop, on_event)
}

/// As [`assemble`], with a step that changes the mixture before it is evaluated and written.
pub(super) fn assemble_by(
    request: &AssembleRequest,
    adapt: impl FnOnce(&Loaded, TaskModel) -> Result<TaskModel, TrainError>,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Assembled, TrainError> {
    experts::check_names(request)?;
    refuse_twice(request.experts.iter().map(|given| &given.folder))?;
    let place = Place {
        base: &request.base,
        tasks: &request.experts,
        data: request.data.as_deref(),
        out: &request.out,
        force: request.force,
        seed: request.seed,
        device: request.device,
        trains: request.steps > 0 || request.router.adapts(),
    };
    place.put_together(
        |base| Experts::read(request, base),
        |loaded, mixture, on_event| {
            if request.router.adapts() {
                on_event(Event::Phase("learning gates from unlabelled records"));
            }
            adapt(loaded, mixture)
        },
        stop,
        on_event,
    )
}

/// What a run is put together of.
pub(super) trait Source {
    /// The recipe of the run. A model with a chat template is prompted by it.
    fn recipe(&self, base: &Backbone, has_template: bool) -> Result<Recipe, TrainError>;

    /// Puts all values into a fresh mixture.
    fn fill(&self, mixture: TaskModel, loaded: &Loaded) -> Result<TaskModel, TrainError>;
}

/// Where a run is put together, and for which tasks.
pub(super) struct Place<'a> {
    /// The base model.
    pub(super) base: &'a str,
    /// Its tasks, with what is read for them.
    pub(super) tasks: &'a [Given],
    /// Folder of the tasks' records.
    pub(super) data: Option<&'a str>,
    /// The run folder.
    pub(super) out: &'a Path,
    /// Whether an older run may be removed from there.
    pub(super) force: bool,
    /// Seed of every random draw.
    pub(super) seed: u64,
    /// The device.
    pub(super) device: DeviceSpec,
    /// Whether anything will learn.
    pub(super) trains: bool,
}

impl Place<'_> {
    /// Makes the run; everything that can be checked is checked before the folder is made.
    pub(super) fn put_together<S: Source>(
        &self,
        read: impl FnOnce(&Backbone) -> Result<S, TrainError>,
        adapt: impl FnOnce(
            &Loaded,
            TaskModel,
            &mut dyn FnMut(Event<'_>),
        ) -> Result<TaskModel, TrainError>,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Assembled, TrainError> {
        let claim = self.claim()?;
        self.device.check()?;
        let tasks = self.tasks()?;
        let model = find_model(self.base, stop, on_event)?;
        claim.protect(&[&model.folder])?;
        on_event(Event::Phase("loading model and experts"));
        let device = self.device.open()?;
        let device = match self.trains {
            false => device,
            true => device.autodiff(),
        };
        let base = Backbone::from_folder(&model.folder, &device)?;
        if !base.writes() && self.data.is_none() {
            return Err(TrainError::run(&model.folder, RunProblem::NeedsData));
        }
        let source = read(&base)?;
        let has_template = base.writes() && ChatTemplate::from_folder(&model.folder)?.is_some();
        let config = RunConfig {
            format: FORMAT,
            molora_version: env!("CARGO_PKG_VERSION").into(),
            git_commit: git_commit(),
            model: model.name,
            base_dtype: Default::default(),
            data: self.data.map_or_else(
                || absolute(&self.out.join("data").to_string_lossy()),
                absolute,
            ),
            seed: self.seed,
            device: self.device.to_string(),
            scored: Split::Test,
            tasks: tasks.iter().map(TaskLabels::of).collect(),
            init: None,
            recipe: source.recipe(&base, has_template)?,
            digests: None,
        };
        let config = match self.data {
            Some(_) => with_digests(config, &model.folder)?,
            None => with_base_digests(config, &model.folder)?,
        };
        let device = (self.device, &device);
        let loaded = loaded(&config, &model.folder, base, &tasks, device)?;
        let mixture = source.fill(loaded.mixture(Seed::new(config.seed))?, &loaded)?;
        let mixture = adapt(&loaded, mixture, on_event)?;
        let _lock = claim.begin(&config)?.put()?;
        let run = Assembly {
            place: self,
            config,
            loaded,
        };
        run.finish(mixture, stop, on_event)
    }

    /// Claims the folder; what is read must not go with an older run.
    fn claim(&self) -> Result<Claim, TrainError> {
        let data = self.data.map(bundled::folder).transpose()?;
        let mut inputs = vec![Path::new(self.base)];
        inputs.extend(data.as_deref());
        inputs.extend(self.tasks.iter().map(|given| given.folder.as_path()));
        Claim::new(self.out, self.force, &inputs)
    }

    /// The tasks, with their records if there are data.
    fn tasks(&self) -> Result<Vec<Task>, TrainError> {
        let names: Vec<String> = self.tasks.iter().map(|given| given.name.clone()).collect();
        let mut tasks = match self.data {
            Some(data) => load_tasks(&bundled::folder(data)?, Some(&names))?,
            None => names.iter().map(|name| bare_task(&written(name))).collect(),
        };
        // In the order of the experts.
        tasks.sort_by_key(|task| names.iter().position(|name| *name == task.meta.name));
        for (task, given) in tasks.iter_mut().zip(self.tasks) {
            if let Some(text) = &given.instruction {
                task.meta.instruction.clone_from(text);
            }
        }
        Ok(tasks)
    }
}

/// A task of this name whose answers are texts.
fn written(name: &str) -> TaskLabels {
    TaskLabels {
        name: name.into(),
        kind: TaskKind::Generation,
        labels: Vec::new(),
        label_words: Vec::new(),
        instruction: None,
        data: None,
    }
}

fn loaded(
    config: &RunConfig,
    folder: &Path,
    base: Backbone,
    tasks: &[Task],
    (device_spec, device): (DeviceSpec, &Device),
) -> Result<Loaded, TrainError> {
    let names: Vec<String> = tasks.iter().map(|task| task.meta.name.clone()).collect();
    let spec: AdapterSpec = config.recipe.resolve(&base, &names)?;
    let tasks = tokenized(folder, &base, tasks, &config.recipe.data)?;
    let seed = Seed::new(config.seed).child("heads");
    let head = |task: &TaskLabels| fresh_head(&base, task, seed.child(&task.name), device);
    Ok(Loaded {
        heads: config.tasks.iter().map(head).collect(),
        base,
        spec,
        tasks,
        device: device.clone(),
        device_spec,
        folder: folder.to_owned(),
    })
}

/// A run that has its folder.
struct Assembly<'a> {
    place: &'a Place<'a>,
    config: RunConfig,
    loaded: Loaded,
}

impl Assembly<'_> {
    /// Trains the routers if that is requested, evaluates if there are data, and writes the run.
    fn finish(
        &self,
        mixture: TaskModel,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Assembled, TrainError> {
        let (folder, spec) = (self.place.out, &self.loaded.spec);
        let trained = self.train(mixture, stop, on_event)?;
        let config = &self.config;
        // What is left is short, and nothing could resume it.
        let never = AtomicBool::new(false);
        let finished = match self.place.data {
            Some(_) => Some(finish(
                folder,
                config,
                &self.loaded,
                &trained,
                &Local,
                &never,
                on_event,
            )?),
            None => {
                close(folder, config, &self.loaded, &trained)?;
                None
            }
        };
        checkpoint::forget(folder)?;
        Ok(Assembled {
            sites: trained.model.backbone.sites().len(),
            rank: spec.bank.rank,
            experts: spec.bank.num_experts,
            finished,
        })
    }

    /// Goes through the stages of the recipe, of which the last alone may train.
    fn train(
        &self,
        mixture: TaskModel,
        stop: &AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Trained, TrainError> {
        let (recipe, loaded) = (&self.config.recipe, &self.loaded);
        let names = task_names(&loaded.tasks);
        let phases = phases(&recipe.name, &recipe.stages, &names, 0..names.len())?;
        let setup = Setup {
            recipe,
            stages: &recipe.stages,
            phases: &phases,
            spec: &loaded.spec,
            base: (&loaded.base, self.config.base_name()),
            tasks: &loaded.tasks,
            seed: Seed::new(self.config.seed),
            device: &loaded.device,
            collective: &Local,
            folder: self.place.out,
            stop,
            until: None,
            keeps_end: false,
            init: None,
        };
        let start = Start::Mixture {
            model: Box::new(mixture),
            guide: None,
            only: None,
        };
        train(&setup, start, on_event)
    }
}
