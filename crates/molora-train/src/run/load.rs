//! Reading what a run needs: base model, tokenizer, tasks, fresh heads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_models::{Adaptable, AdapterSpec, Backbone, BaseDtype, TaskHead, TaskModel};

use crate::base::{DeviceSpec, bundled, chat_stop_tokens, stop_tokens};
use crate::data::{
    ChatTemplate, Encoder, PromptFormat, PromptStyle, StreamedTask, Task, TextTokenizer,
    TokenizedTask, Writing, WritingConfig, load_tasks_for, tokenize_tasks,
};
use crate::error::{RunProblem, TrainError};
use crate::model::with_stable_ids;
use crate::recipe::{DataConfig, StageConfig};
use crate::store::{RUN, RunConfig, TaskLabels, fresh_head};

/// A base model without adapters as it was read, for models built on it: clones share its weights.
#[derive(Debug, Clone)]
pub(crate) struct ReadBase {
    folder: PathBuf,
    dtype: BaseDtype,
    device: Device,
    backbone: Backbone,
}

impl ReadBase {
    /// The base model of a folder, its matrices in a type: one of those that were read before, or read now.
    ///
    /// # Errors
    /// Whatever reading the model gives.
    pub(crate) fn find(
        folder: &Path,
        dtype: BaseDtype,
        device: &Device,
        known: &[&Self],
    ) -> Result<Self, TrainError> {
        let place = place_of(folder);
        let is_it = |known: &&&Self| known.is_of(&place, dtype, device);
        if let Some(known) = known.iter().find(is_it) {
            return Ok((*known).clone());
        }
        let backbone = Backbone::from_folder_as(folder, dtype, device)?;
        Ok(Self::of(backbone, folder, dtype, device))
    }

    /// A model that was read from a folder.
    pub(crate) fn of(backbone: Backbone, folder: &Path, dtype: BaseDtype, device: &Device) -> Self {
        Self {
            folder: place_of(folder),
            dtype,
            device: device.clone(),
            backbone,
        }
    }

    fn is_of(&self, place: &Path, dtype: BaseDtype, device: &Device) -> bool {
        self.folder == place && self.dtype == dtype && self.device == *device
    }

    /// Whether another one is the same model, in the same type and on the same device.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.is_of(&other.folder, other.dtype, &other.device)
    }

    /// The model, which shares its weights with all others of it.
    pub(crate) fn backbone(&self) -> Backbone {
        self.backbone.clone()
    }
}

/// A folder, however it was named.
fn place_of(folder: &Path) -> PathBuf {
    let place = folder.canonicalize();
    place.unwrap_or_else(|_| folder.to_owned())
}

/// A base model without adapters, the mixture's specification for the tasks, and the tasks.
pub(crate) struct Loaded {
    pub(crate) base: Backbone,
    pub(crate) spec: AdapterSpec,
    pub(crate) heads: Vec<Option<TaskHead>>,
    pub(crate) tasks: Vec<TokenizedTask>,
    pub(crate) device: Device,
    /// Its name.
    pub(crate) device_spec: DeviceSpec,
    /// Folder of the base model.
    pub(crate) folder: PathBuf,
}

impl Loaded {
    /// A mixture with fresh adapters, whose experts are read afterwards, and the given heads.
    ///
    /// # Errors
    /// If the specification does not fit the model.
    pub(crate) fn mixture(&self, seed: Seed) -> Result<TaskModel, TrainError> {
        let mut backbone = self.base.clone();
        let seed = seed.child("adapters");
        let spec = self.spec.to_be_filled();
        backbone.attach(&spec, self.tasks.len(), seed, &self.device)?;
        let heads = self.heads.clone();
        Ok(with_stable_ids(TaskModel { backbone, heads }))
    }
}

/// Loads model and tokenizer, checks the recipe against them and makes fresh heads.
pub(crate) fn load(
    config: &RunConfig,
    folder: &Path,
    tasks: &[Task],
    device: DeviceSpec,
    trains: bool,
) -> Result<Loaded, TrainError> {
    load_beside(config, folder, tasks, device, trains, &[])
}

/// As [`load`]; a base model that is among those that were read before is shared with them.
pub(crate) fn load_beside(
    config: &RunConfig,
    folder: &Path,
    tasks: &[Task],
    device: DeviceSpec,
    trains: bool,
    known: &[&ReadBase],
) -> Result<Loaded, TrainError> {
    let device_spec = device;
    let device = device.open()?;
    let device = if trains { device.autodiff() } else { device };
    let base = ReadBase::find(folder, config.base_dtype, &device, known)?.backbone;
    let recipe = &config.recipe;
    let names: Vec<String> = tasks.iter().map(|task| task.meta.name.clone()).collect();
    let spec = recipe.resolve(&base, &names)?;
    let tasks = tokenized(folder, &base, tasks, &recipe.data)?;
    let seed = Seed::new(config.seed).child("heads");
    let head = |task: &TaskLabels| fresh_head(&base, task, seed.child(&task.name), &device);
    let loaded = Loaded {
        heads: config.tasks.iter().map(head).collect(),
        base,
        spec,
        tasks,
        device,
        device_spec,
        folder: folder.to_owned(),
    };
    if trains {
        for (field, stages) in [("stages", &recipe.stages), ("growth", &recipe.growth)] {
            check_trainable(&loaded, &recipe.name, field, stages)?;
        }
    }
    Ok(loaded)
}

/// Tokenizes tasks for the model in a folder, and checks that its vocabulary has all their tokens.
///
/// # Errors
/// A task that the model cannot answer, or a tokenizer that is missing, broken or not the model's.
pub(crate) fn tokenized(
    folder: &Path,
    base: &Backbone,
    tasks: &[Task],
    data: &DataConfig,
) -> Result<Vec<TokenizedTask>, TrainError> {
    let mut tokenizer = TextTokenizer::from_folder(folder)?;
    tokenizer.check_vocabulary(base.vocab_size())?;
    if base.writes() {
        let writing = Arc::new(writing(folder, base, tokenizer, &data.writing)?);
        let numbered = tasks.iter().enumerate();
        let written = numbered.map(|(index, task)| TokenizedTask::written(task, index, &writing));
        let written = written.collect::<Result<_, _>>()?;
        return Ok(streamed(written, tasks, &Encoder::Writer(writing)));
    }
    let tokenizer = Arc::new(tokenizer);
    let encoder = Encoder::Head(tokenizer.clone(), data.max_length, base.num_token_types());
    let tokenized = tokenize_tasks(tasks, &tokenizer, data.max_length)?;
    let tasks = streamed(tokenized, tasks, &encoder);
    if let Some(types) = base.num_token_types() {
        check_token_types(folder, &tasks, types)?;
    }
    Ok(tasks)
}

/// The tasks with their training splits, where those are streamed.
fn streamed(
    mut tokenized: Vec<TokenizedTask>,
    tasks: &[Task],
    encoder: &Encoder,
) -> Vec<TokenizedTask> {
    for (number, (tokenized, task)) in tokenized.iter_mut().zip(tasks).enumerate() {
        tokenized.streamed = StreamedTask::of(task, number, encoder);
    }
    tokenized
}

/// How the model of a folder is prompted and answers.
fn writing(
    folder: &Path,
    base: &Backbone,
    tokenizer: TextTokenizer,
    config: &WritingConfig,
) -> Result<Writing, TrainError> {
    let format = match config.style(folder)? {
        PromptStyle::Auto | PromptStyle::Plain => PromptFormat::Plain,
        PromptStyle::Chat => match ChatTemplate::from_folder(folder)? {
            Some(template) => PromptFormat::Chat(Arc::new(template)),
            None => return Err(TrainError::run(folder, RunProblem::PromptNeedsTemplate)),
        },
    };
    let start = match base {
        Backbone::EncoderDecoder(model) => Some(model.start_token()),
        _ => None,
    };
    let ends = match &format {
        PromptFormat::Plain => stop_tokens(folder, &tokenizer)?,
        PromptFormat::Chat(template) => chat_stop_tokens(folder, &tokenizer, template)?,
    };
    Ok(Writing::new(tokenizer, format, config, ends, start))
}

/// Refuses a stage that would train nothing.
fn check_trainable(
    loaded: &Loaded,
    recipe: &str,
    field: &str,
    stages: &[StageConfig],
) -> Result<(), TrainError> {
    for (index, stage) in stages.iter().enumerate() {
        if stage.transform.is_some() {
            continue;
        }
        let mut backbone = loaded.base.clone();
        let spec = stage.spec(&loaded.spec).to_be_filled();
        backbone.attach(&spec, loaded.tasks.len(), Seed::new(0), &loaded.device)?;
        let heads = loaded.heads.clone();
        if stage.num_trained(&TaskModel { backbone, heads }) == 0 {
            let problem = format!("{field}.{index}.trainable matches no parameter of this recipe");
            return Err(TrainError::Recipe {
                name: recipe.into(),
                problems: vec![problem],
            });
        }
    }
    Ok(())
}

/// Checks that the model has a row for every token type; a tokenizer gives one to second texts even
/// where the model knows only one.
fn check_token_types(
    model: &Path,
    tasks: &[TokenizedTask],
    limit: usize,
) -> Result<(), TrainError> {
    for task in tasks {
        let splits = [&task.train, &task.validation, &task.test];
        let mut types = splits.into_iter().flatten().flat_map(|e| &e.type_ids);
        if let Some(&found) = types.find(|&&found| found as usize >= limit) {
            let problem = RunProblem::TokenType {
                found,
                task: task.name.clone(),
                limit,
            };
            return Err(TrainError::run(&model.join("tokenizer.json"), problem));
        }
    }
    Ok(())
}

/// Loads a run's tasks and checks that their labels still mean what its heads learned.
pub(crate) fn load_run_tasks(
    folder: &Path,
    config: &RunConfig,
    data: Option<&str>,
) -> Result<Vec<Task>, TrainError> {
    let data_is_own = data.is_none();
    let mut tasks = Vec::new();
    for trained in &config.tasks {
        let own = trained.data.as_deref().unwrap_or(&config.data);
        let data = bundled::folder(data.unwrap_or(own))?;
        let name = std::slice::from_ref(&trained.name);
        let writing = &config.recipe.data.writing;
        // Other data are scored, and need not be such as can be streamed.
        let streaming = config.recipe.data.streaming && data_is_own;
        let found = load_tasks_for(&data, Some(name), writing, streaming)?;
        let task = &found[0];
        if task.meta.labels != trained.labels {
            let problem = RunProblem::OtherLabels {
                task: trained.name.clone(),
                run: folder.join(RUN),
                found: brief(&task.meta.labels),
                expected: brief(&trained.labels),
            };
            return Err(TrainError::run(
                &data.join(&trained.name).join("task.json"),
                problem,
            ));
        }
        tasks.extend(found);
    }
    Ok(tasks)
}

/// A list of labels cut to a readable length.
fn brief(labels: &[String]) -> String {
    let shown: Vec<&str> = labels.iter().take(4).map(String::as_str).collect();
    let more = if labels.len() > shown.len() {
        ", ..."
    } else {
        ""
    };
    format!("{} labels ({}{more})", labels.len(), shown.join(", "))
}
