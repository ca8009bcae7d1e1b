//! `molora add-expert`: one more expert beside those of a finished run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use molora_kernels::random::Seed;
use molora_models::{AdapterSpec, Backbone, TaskModel, load_heads};

use super::mixture::{Newcomer, fill};
use super::plan::{Origins, Way, grown, way};
use super::together::widen;
use super::{names, progress, stored_mixture};
use crate::base::base_model::absolute;
use crate::base::files::{copy, is_there};
use crate::base::place::{NewFolder, discard};
use crate::base::{DeviceSpec, bundled};
use crate::collective::Local;
use crate::data::{Task, load_tasks_for};
use crate::error::{GrowthProblem, TrainError};
use crate::guide::{Instructions, check_instructions};
use crate::model::{NewValues, with_stable_ids};
use crate::recipe::Scope;
use crate::recipe::{DataConfig, InstructionConfig, Phase, StageConfig, phases};
use crate::report::{Record, StepWriter, read_records};
use crate::run::{
    Finished, Loaded, device_of, find_model, finish, load, load_run_tasks, read_finished,
    refuse_changed,
};
use crate::store::manifest::foresee;
use crate::store::{
    GROWING, RUN, RunConfig, STAGES, STEPS, Swap, Writing, check_name, pool, read_config,
    write_config,
};
use crate::train::{Event, Setup, Start, Trained, train, transform};

/// The request of a user.
#[derive(Debug, Clone)]
pub struct AddRequest {
    /// Folder of a finished run.
    pub run: PathBuf,
    /// Name of the task whose expert is trained.
    pub task: String,
    /// Folder with the task's folder, or `bundled:tasks`; the run's own if `None`.
    pub data: Option<String>,
    /// The group of experts that it joins, which may be a new one; the task's own if `None`.
    pub group: Option<String>,
    /// The device; the run's own if `None`.
    pub device: Option<DeviceSpec>,
}

/// Trains one more expert and admits it. Experts that were there keep every bit.
///
/// Where experts are trained alone, it is the one that a training of all tasks together would have given,
/// if each got as many steps: it depends on seed, stage and task alone. Where they were trained together, a
/// fresh one is trained among them; a method whose tasks weigh experts apart gets none, and the new task
/// learns to weigh those that are there.
///
/// # Errors
/// If the run is not finished, its method has no place for another expert, or there is one of the task
/// already; any problem with the task; [`TrainError::GrowthInterrupted`] if `stop` was set, after a checkpoint
/// from which the same request resumes. The run is then as it was.
pub fn add_expert(
    request: &AddRequest,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, TrainError> {
    let run = &request.run;
    let _writing = Writing::begin(run)?;
    let old = read_finished(run)?;
    let way = way(run, &old)?;
    if names(&old).contains(&request.task) {
        let task = request.task.clone();
        let problem = GrowthProblem::HasExpert { task };
        return Err(TrainError::run(run, problem));
    }
    let data = request.data.as_deref().map_or(old.data.clone(), absolute);
    check_name(run, "name of a task", &request.task)?;
    let task = find_task(&data, &request.task, &old.recipe.data)?;
    let config = grown(run, &old, way, (&task, &data), request.group.as_deref())?;
    if config.recipe.instructions().is_some() {
        check_instructions([(&task.meta.name, &task.meta.instruction)])?;
    }
    let device = device_of(run, &config, request.device)?;
    let tasks = load_run_tasks(run, &config, None)?;
    let stages = match way {
        Way::Apart => config.recipe.growth.clone(),
        Way::Together(growth) => {
            let recipe = &config.recipe;
            recipe.growth_together(growth, &request.task, old.tasks.len())
        }
    };
    check_growth(&config, &stages)?;
    let model = find_model(&config.model, stop, on_event)?;
    refuse_changed(run, &old, &model.folder)?;
    on_event(Event::Phase("loading model and tasks"));
    let loaded = load(&config, &model.folder, &tasks, device, true)?;
    let growth = Growth {
        run,
        work: run.join(format!("{GROWING}{}", request.task)),
        name: &request.task,
        old,
        config,
        way,
        stages,
        loaded,
        stop,
    };
    let finished = growth.go(on_event);
    finished.map_err(|error| match error {
        TrainError::Interrupted { step, .. } => TrainError::GrowthInterrupted {
            step,
            run: run.clone(),
        },
        error => error,
    })
}

/// Checks a recipe with one more task against its tasks, before there is a model.
fn check_growth(config: &RunConfig, stages: &[StageConfig]) -> Result<(), TrainError> {
    let (recipe, names) = (&config.recipe, names(config));
    recipe.for_tasks(&names)?;
    let new = names.len() - 1..names.len();
    phases(&recipe.name, &recipe.stages, &names, new)?;
    phases(&recipe.name, stages, &names, 0..names.len())?;
    Ok(())
}

fn find_task(data: &str, name: &String, config: &DataConfig) -> Result<Task, TrainError> {
    let names = std::slice::from_ref(name);
    let (writing, streaming) = (&config.writing, config.streaming);
    let mut tasks = load_tasks_for(&bundled::folder(data)?, Some(names), writing, streaming)?;
    Ok(tasks.remove(0))
}

/// A run that gets one more expert, the last.
struct Growth<'a> {
    run: &'a Path,
    work: PathBuf,
    name: &'a String,
    old: RunConfig,
    config: RunConfig,
    way: Way,
    /// What is trained once the expert has joined the others.
    stages: Vec<StageConfig>,
    loaded: Loaded,
    stop: &'a AtomicBool,
}

impl Growth<'_> {
    fn go(&self, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Finished, TrainError> {
        let (steps, instructions, model, only) = match self.way {
            Way::Apart => {
                self.begin()?;
                let steps = self.train_expert(on_event)?;
                (steps, self.instructions()?, self.join()?, None)
            }
            Way::Together(_) => {
                let (model, new) = self.widen()?;
                self.begin()?;
                fs_err::create_dir_all(self.joined())?;
                (Vec::new(), None, model, Some(Box::new(new)))
            }
        };
        let guide = instructions.as_ref();
        let start = Start::Mixture {
            model: Box::new(model),
            guide: guide.map(|instructions| instructions.guide(&self.loaded.device)),
            only,
        };
        let (trained, more) = self.train_mixture(start, on_event)?;
        let steps = [steps, more].concat();
        self.admit(trained, &steps, instructions.as_ref(), on_event)
    }

    /// Makes the working folder, or checks that it was made for the same; one without its
    /// configuration, where nothing can have been trained, is made anew.
    fn begin(&self) -> Result<(), TrainError> {
        if !is_there(&self.work.join(RUN)) {
            discard(&self.work)?;
            let new = NewFolder::for_place(&self.work)?;
            write_config(new.path(), &self.config)?;
            return new.put();
        }
        if read_config(&self.work).is_ok_and(|begun| begun == self.config) {
            return Ok(());
        }
        Err(TrainError::run(&self.work, GrowthProblem::BegunOtherwise))
    }

    /// Folder in which the mixture trains; it is there once an expert that is trained alone is trained.
    fn joined(&self) -> PathBuf {
        self.work.join("joined")
    }

    fn setup<'a>(
        &'a self,
        folder: &'a Path,
        stages: &'a [StageConfig],
        phases: &'a [Phase],
        seed: Seed,
    ) -> Setup<'a> {
        Setup {
            recipe: &self.config.recipe,
            stages,
            phases,
            spec: &self.loaded.spec,
            base: (&self.loaded.base, self.config.base_name()),
            tasks: &self.loaded.tasks,
            seed,
            device: &self.loaded.device,
            collective: &Local,
            folder,
            stop: self.stop,
            until: None,
            keeps_end: false,
            init: None,
        }
    }

    /// Trains the expert alone, with its gate and head, and returns the records.
    fn train_expert(&self, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Vec<Record>, TrainError> {
        if !self.joined().exists() {
            let (recipe, names) = (&self.config.recipe, names(&self.config));
            let new = names.len() - 1..names.len();
            let mut phases = phases(&recipe.name, &recipe.stages, &names, new)?;
            phases.retain(|phase| phase.expert.is_some());
            let seed = Seed::new(self.config.seed);
            let setup = self.setup(&self.work, &recipe.stages, &phases, seed);
            on_event(Event::Phase("training the expert"));
            train(&setup, Start::Fresh(self.loaded.heads.clone()), on_event)?;
            fs_err::create_dir_all(self.joined())?;
        }
        Ok(read_records(&self.work.join(STEPS))?)
    }

    /// The old mixture with the new expert, as it was written, beside its others.
    fn join(&self) -> Result<TaskModel, TrainError> {
        let Loaded { base, device, .. } = &self.loaded;
        let seed = Seed::new(self.config.seed);
        let mut model = self.loaded.mixture(seed)?;
        let old = stored_mixture(self.run, &self.old, base, device)?;
        let folder = pool::expert_folder(&self.work, self.name);
        let newcomer = self.newcomer(&folder)?;
        let origins = Origins::of(&self.old, &self.config);
        fill(
            &mut model.backbone,
            &old.backbone,
            &origins,
            Some(&newcomer),
        )
        .map_err(|problem| TrainError::run(&folder, problem))?;
        let last = model.heads.len() - 1;
        model.heads[..last].clone_from_slice(&old.heads);
        let name = std::slice::from_ref(self.name);
        load_heads(&folder.join(pool::HEAD), name, &mut model.heads[last..])?;
        Ok(with_stable_ids(model))
    }

    /// The old mixture with a fresh start for what is new, and which values that are.
    fn widen(&self) -> Result<(TaskModel, NewValues), TrainError> {
        let Loaded {
            base, device, spec, ..
        } = &self.loaded;
        let mut model = self.loaded.mixture(Seed::new(self.config.seed))?;
        let old = stored_mixture(self.run, &self.old, base, device)?;
        let origins = Origins::of(&self.old, &self.config);
        let new = widen(&mut model, &old, spec, &origins, device);
        let trains = |stage: &StageConfig| new.has_any(&stage.trainable);
        if let Some(stage) = self.stages.iter().find(|stage| !trains(stage)) {
            let problem = format!("stage {} would train nothing that is new", stage.name);
            return Err(TrainError::Recipe {
                name: self.config.recipe.name.clone(),
                problems: vec![problem],
            });
        }
        Ok((model, new))
    }

    fn newcomer(&self, folder: &Path) -> Result<Newcomer, TrainError> {
        let setup = self.setup(&self.work, &[], &[], Seed::new(self.config.seed));
        let fresh = |gated: bool| -> Result<(Backbone, AdapterSpec), TrainError> {
            let spec = self.loaded.spec.one_expert(gated);
            Ok((transform::one_expert(&setup, &spec)?, spec))
        };
        let (mut alone, spec) = fresh(false)?;
        pool::load(folder, &mut alone, &spec, self.config.base_name())?;
        let has_gate = self
            .config
            .recipe
            .stages
            .iter()
            .any(|stage| stage.scope == Scope::EachGate);
        let read_gate = || {
            let (mut gate, spec) = fresh(true)?;
            pool::load_gate(folder, &mut gate, &spec)?;
            Ok::<_, TrainError>(gate)
        };
        Ok(Newcomer {
            expert: alone,
            gate: has_gate.then(read_gate).transpose()?,
            rows_from: self.loaded.spec.rows_from(),
        })
    }

    /// The run's instructions with the new one; the weight stays.
    fn instructions(&self) -> Result<Option<Instructions>, TrainError> {
        let Some(config) = self.config.recipe.instructions() else {
            return Ok(None);
        };
        let mut all = Instructions::load(self.run, &names(&self.old))?;
        let config = InstructionConfig {
            encoder: all.encoder.clone(),
            ..config.clone()
        };
        let task = self.loaded.tasks.last().expect("the new one");
        let text = [(task.name.clone(), task.instruction.clone())];
        let new = Instructions::embed(&config, &text, &self.loaded.device)?;
        all.experts.extend(new.experts);
        Ok(Some(all))
    }

    /// Goes through the stages of the mixture, if there are any, and returns the records.
    fn train_mixture(
        &self,
        start: Start,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(Trained, Vec<Record>), TrainError> {
        let recipe = &self.config.recipe;
        let folder = self.joined();
        let names = names(&self.config);
        let phases = phases(&recipe.name, &self.stages, &names, 0..names.len())?;
        let seed = Seed::new(self.config.seed).child("growth").child(self.name);
        let setup = self.setup(&folder, &self.stages, &phases, seed);
        if !phases.is_empty() {
            on_event(Event::Phase("training the mixture"));
        }
        let trained = train(&setup, start, on_event)?;
        let steps = read_records(&folder.join(STEPS))?;
        Ok((trained, steps))
    }

    /// Evaluates the grown run, writes all of it beside the old one and puts it in its place.
    fn admit(
        &self,
        mut trained: Trained,
        more: &[Record],
        instructions: Option<&Instructions>,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Finished, TrainError> {
        let swap = Swap::prepare(&self.work)?;
        let new = swap.new_files();
        if let Some(instructions) = instructions {
            instructions.save(&new)?;
        }
        let mut steps = read_records(&self.run.join(STEPS))?;
        steps.extend_from_slice(more);
        write_steps(&new, &mut steps)?;
        trained.progress = progress(&steps);
        let finished = finish(
            &new,
            &self.config,
            &self.loaded,
            &trained,
            &Local,
            self.stop,
            on_event,
        )?;
        write_config(&new, &self.config)?;
        swap.keep(self.run, self.name, STAGES)?;
        if self.way == Way::Apart {
            let folder = pool::expert_folder(&self.work, self.name);
            fs_err::create_dir_all(new.join(pool::EXPERTS))?;
            copy(&folder, &pool::expert_folder(&new, self.name))?;
        }
        if self.stop.load(Ordering::SeqCst) {
            let (step, run) = (trained.progress.step, self.run.to_owned());
            return Err(TrainError::Interrupted { step, run });
        }
        let dropped = [STAGES.into(), format!("{GROWING}{}", self.name)];
        foresee(&new, self.run, &dropped)?;
        swap.commit(self.run, &dropped)?;
        Ok(finished)
    }
}

/// Writes the records with consecutive numbers.
fn write_steps(folder: &Path, steps: &mut [Record]) -> Result<(), TrainError> {
    let mut writer = StepWriter::open(folder.join(STEPS))?;
    let mut done = 0;
    for record in steps {
        match record {
            Record::Step(record) => {
                done += 1;
                record.step = done;
                writer.write(record)?;
            }
            Record::Validation(record) => {
                record.step = done;
                writer.write_validation(record)?;
            }
            Record::Guard(record) => {
                record.step = done;
                writer.write_guard(record)?;
            }
        }
    }
    Ok(writer.sync()?)
}
