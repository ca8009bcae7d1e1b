//! What a model is asked: a run's own template, and chats that its model's template shows.

use std::path::Path;

use crate::data::{Chat, ChatTemplate, DataError, Message, Part, PromptTemplate, TaskMeta};
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

/// The template that wrote the prompts of a run's task, or of all its tasks, if there is one, and what it
/// knows of the task.
pub(super) fn asks(
    run: &Path,
    opened: &Opened,
    task: Option<usize>,
) -> Result<Option<(PromptTemplate, TaskMeta)>, TrainError> {
    let writing = &opened.config.recipe.data.writing;
    let tasks = &opened.config.tasks;
    let only = (tasks.len() == 1).then_some(0);
    let meta = match task.or(only) {
        Some(number) => bare_task(&tasks[number]).meta,
        None if writing.templates.is_empty() => TaskMeta::default(),
        None => {
            let names: Vec<&str> = tasks.iter().map(|task| &task.name[..]).collect();
            let known = names.join(", ");
            return Err(TrainError::run(run, RunProblem::WhichTask { known }));
        }
    };
    let template = writing.template_of(&meta.name)?;
    Ok(template.map(|template| (template, meta)))
}
