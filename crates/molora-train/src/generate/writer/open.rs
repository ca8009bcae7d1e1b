//! How writers are read: a model as it is, an adapter, or a run.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use molora_models::{Backbone, BaseDtype};

use super::super::mixture::Mixture;
use super::super::templates::RunTemplates;
use super::Writer;
use crate::base::{AdapterFolder, DeviceSpec, base_model, chat_stop_tokens, stop_tokens};
use crate::data::{ChatTemplate, PromptStyle, TextTokenizer};
use crate::error::{RunProblem, TrainError};
use crate::run::{ReadBase, open_as};

/// The base models that writers have read.
fn bases<'a>(writers: &[&'a Writer]) -> Vec<&'a ReadBase> {
    let bases = writers.iter().filter_map(|writer| writer.read.as_ref());
    bases.collect()
}

impl Writer {
    /// Loads a language model by the name of its folder, or by one that [`base_model::find`] knows, its
    /// matrices in the given type.
    ///
    /// # Errors
    /// A model that writes no text; whatever reading the model, its tokenizer or its chat template
    /// gives.
    pub fn open(name: &str, base_dtype: BaseDtype, device: &Device) -> Result<Self, TrainError> {
        Self::open_beside(name, base_dtype, device, &[])
    }

    /// As [`open`](Self::open); the weights are shared with a writer on the same base, if there is one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_beside(
        name: &str,
        base_dtype: BaseDtype,
        device: &Device,
        others: &[&Self],
    ) -> Result<Self, TrainError> {
        let folder = base_model::find(name, &mut base_model::silent)?.folder;
        let device = device.clone().inner();
        let read = ReadBase::find(&folder, base_dtype, &device, &bases(others))?;
        let mut writer = Self::of(read.backbone(), None, folder, device)?;
        writer.read = Some(read);
        Ok(writer)
    }

    /// Loads a language model with an adapter that PEFT wrote, or `molora export`.
    ///
    /// # Errors
    /// As [`open`](Self::open); an adapter that cannot be read or does not fit the model.
    pub fn of_adapter(
        adapter: &AdapterFolder,
        base_dtype: BaseDtype,
        device: &Device,
    ) -> Result<Self, TrainError> {
        Self::of_adapter_beside(adapter, base_dtype, device, &[])
    }

    /// As [`of_adapter`](Self::of_adapter); the base's weights are shared with a writer on the same base, if there
    /// is one.
    ///
    /// # Errors
    /// As [`of_adapter`](Self::of_adapter).
    pub fn of_adapter_beside(
        adapter: &AdapterFolder,
        base_dtype: BaseDtype,
        device: &Device,
        others: &[&Self],
    ) -> Result<Self, TrainError> {
        let (folder, device) = (adapter.base.folder.clone(), device.clone().inner());
        let read = ReadBase::find(&folder, base_dtype, &device, &bases(others))?;
        let backbone = adapter.attach(read.backbone())?;
        let mut writer = Self::of(backbone, None, folder, device)?;
        writer.read = Some(read);
        Ok(writer)
    }

    /// Loads a finished run. With a `task` gates and routers know that the texts are of this one. The
    /// base's matrices have the given type, or that of the training.
    ///
    /// # Errors
    /// A run that is not finished, a base model that writes no text, a task that the run has not, or none
    /// where each has prompts of its own; whatever reading the run gives.
    pub fn of_run(
        run: &Path,
        task: Option<&str>,
        base_dtype: Option<BaseDtype>,
        device: Option<DeviceSpec>,
    ) -> Result<Self, TrainError> {
        Self::of_run_beside(run, task, (base_dtype, device), &[])
    }

    /// As [`of_run`](Self::of_run); the base's weights are shared with a writer on the same base, if there
    /// is one.
    ///
    /// # Errors
    /// As [`of_run`](Self::of_run).
    pub fn of_run_beside(
        run: &Path,
        task: Option<&str>,
        (base_dtype, device): (Option<BaseDtype>, Option<DeviceSpec>),
        others: &[&Self],
    ) -> Result<Self, TrainError> {
        let known = bases(others);
        let mut opened = open_as(run, base_dtype, device, &known)?;
        let mixture = Mixture::of(run.into(), &mut opened, task)?;
        let templates = RunTemplates::of(run, &opened);
        let device = opened.loaded.device.clone();
        let style = opened.config.recipe.data.writing.prompt;
        let (backbone, folder) = (opened.model.backbone, opened.loaded.folder);
        let dtype = base_dtype.unwrap_or(opened.config.base_dtype);
        let read = ReadBase::of(opened.loaded.base, &folder, dtype, &device);
        let mut writer = Self::of(backbone, Some(mixture), folder, device)?;
        writer.is_chat &= style == PromptStyle::Chat;
        writer.templates = templates;
        writer.read = Some(read);
        Ok(writer)
    }

    fn of(
        backbone: Backbone,
        mixture: Option<Mixture>,
        folder: PathBuf,
        device: Device,
    ) -> Result<Self, TrainError> {
        if !backbone.writes() {
            return Err(TrainError::run(&folder, RunProblem::WritesNoText));
        }
        let mut tokenizer = TextTokenizer::from_folder(&folder)?;
        tokenizer.check_vocabulary(backbone.vocab_size())?;
        let template = ChatTemplate::from_folder(&folder)?;
        let stop_tokens = stop_tokens(&folder, &tokenizer)?;
        let chat_stop_tokens = match &template {
            Some(template) => chat_stop_tokens(&folder, &tokenizer, template)?,
            None => stop_tokens.clone(),
        };
        Ok(Self {
            mixture,
            tokenizer,
            is_chat: template.is_some(),
            templates: None,
            template,
            stop_tokens,
            chat_stop_tokens,
            backbone,
            device,
            folder,
            read: None,
        })
    }
}
