//! Prompts of a model: a run's own template, and chats that its model's template shows.

use std::path::{Path, PathBuf};

use crate::data::{Chat, ChatTemplate, DataError, Message, Part, TaskMeta, WritingConfig};
use crate::error::{RunProblem, TrainError};
use crate::run::{Opened, bare_task};

/// Refuses a chat whose text would lack functions, calls or results, and warns of what else it would lack.
pub(super) fn check_parts(
    template: &ChatTemplate,
    row: usize,
    messages: &[Message],
    tools: Option<&str>,
) -> Result<(), TrainError> {
    let format = "the model's chat template";
    for part in Chat::parts(messages, tools) {
        let id = (row + 1).to_string();
        match part {
            _ if template.shows(part) => {}
            Part::Tools | Part::Calls | Part::Results => {
                let part = part.name();
                return Err(DataError::NotShown { id, part, format }.into());
            }
            Part::Reasoning | Part::Names => {
                tracing::warn!("prompt {id}: {format} does not show {}", part.name());
            }
        }
    }
    Ok(())
}

/// The templates of a run that wrote the prompts of its tasks.
#[derive(Debug)]
pub(super) struct RunTemplates {
    run: PathBuf,
    writing: WritingConfig,
    tasks: Vec<TaskMeta>,
}

impl RunTemplates {
    /// Of a run that was read; none if it has no template of its own.
    pub(super) fn of(run: &Path, opened: &Opened) -> Option<Self> {
        let writing = &opened.config.recipe.data.writing;
        let tasks = opened.config.tasks.iter();
        let has_some = writing.template.is_some() || !writing.templates.is_empty();
        has_some.then(|| Self {
            run: run.into(),
            writing: writing.clone(),
            tasks: tasks.map(|task| bare_task(task).meta).collect(),
        })
    }

    /// A text as the template of its task makes a prompt of it, if the task has one; `number` counts prompts
    /// from 1.
    ///
    /// # Errors
    /// No task where tasks have templates of their own, a template that is broken, or one that reads what a
    /// text alone does not have.
    pub(super) fn prompt_of(
        &self,
        text: &str,
        number: usize,
        task: Option<usize>,
    ) -> Result<Option<String>, TrainError> {
        let only = (self.tasks.len() == 1).then_some(0);
        let none = TaskMeta::default();
        let meta = match task.or(only) {
            Some(number) => &self.tasks[number],
            None if self.writing.templates.is_empty() => &none,
            None => {
                let names: Vec<&str> = self.tasks.iter().map(|task| &task.name[..]).collect();
                let known = names.join(", ");
                return Err(TrainError::run(&self.run, RunProblem::WhichTask { known }));
            }
        };
        let template = self.writing.template_of(&meta.name)?;
        let prompt = template.map(|template| template.prompt_of(text, number, meta));
        Ok(prompt.transpose()?)
    }
}
