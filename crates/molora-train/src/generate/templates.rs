//! Prompts of a model: a run's own template, and chats that its model's template shows.

use std::path::{Path, PathBuf};

use crate::data::{
    Chat, ChatTemplate, DataError, Message, Part, PromptTemplate, TaskMeta, WritingConfig,
};
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
pub(super) struct Asks {
    run: PathBuf,
    writing: WritingConfig,
    tasks: Vec<TaskMeta>,
    /// The one of the task that texts are of, and what it knows of the task.
    pub(super) now: Option<(PromptTemplate, TaskMeta)>,
}

impl Asks {
    /// Of a run that was read, for texts of a task.
    ///
    /// # Errors
    /// As [`set_task`](Self::set_task).
    pub(super) fn of(run: &Path, opened: &Opened, task: Option<usize>) -> Result<Self, TrainError> {
        let tasks = opened.config.tasks.iter();
        let mut asks = Self {
            run: run.into(),
            writing: opened.config.recipe.data.writing.clone(),
            tasks: tasks.map(|task| bare_task(task).meta).collect(),
            now: None,
        };
        asks.set_task(task)?;
        Ok(asks)
    }

    /// Takes the template of another task, or with `None` that of all.
    ///
    /// # Errors
    /// A template that is broken, and no task where tasks have templates of their own.
    pub(super) fn set_task(&mut self, task: Option<usize>) -> Result<(), TrainError> {
        let only = (self.tasks.len() == 1).then_some(0);
        let meta = match task.or(only) {
            Some(number) => self.tasks[number].clone(),
            None if self.writing.templates.is_empty() => TaskMeta::default(),
            None => {
                let names: Vec<&str> = self.tasks.iter().map(|task| &task.name[..]).collect();
                let known = names.join(", ");
                return Err(TrainError::run(&self.run, RunProblem::WhichTask { known }));
            }
        };
        let template = self.writing.template_of(&meta.name)?;
        self.now = template.map(|template| (template, meta));
        Ok(())
    }
}
