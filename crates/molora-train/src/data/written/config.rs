//! How texts are made for generative models, as a recipe defines it.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::error::DataError;
use crate::data::prompt::PromptTemplate;
use crate::data::{ChatError, ChatTemplate};

/// How texts are put together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptStyle {
    /// [`Chat`](Self::Chat) where the model's folder has a chat template, which instruction-tuned models
    /// have, else [`Plain`](Self::Plain). A run keeps which of them it was.
    #[default]
    Auto,
    /// Instruction, input, `Answer:`.
    Plain,
    /// The model's chat template.
    Chat,
}

impl PromptStyle {
    /// The style for the model of a folder, which is not [`Auto`](Self::Auto) any more.
    ///
    /// # Errors
    /// [`ChatError`] if the folder has a template that is broken.
    pub fn resolved(self, folder: &Path) -> Result<Self, ChatError> {
        let has_template = || Ok(ChatTemplate::from_folder(folder)?.is_some());
        Ok(match self {
            Self::Auto if has_template()? => Self::Chat,
            Self::Auto => Self::Plain,
            style => style,
        })
    }
}

/// What counts alike in the loss of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// Every example, however long its answer is: tasks with long answers do not drown the others.
    #[default]
    Examples,
    /// Every token of an answer, as in transformers.
    Tokens,
}

/// How records become texts for generative models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WritingConfig {
    /// Texts are cut at this many tokens, prompts at their beginning.
    pub max_length: usize,
    /// How prompts look.
    pub prompt: PromptStyle,
    /// A template that writes the prompts of all tasks, in Jinja over a record's fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Templates for single tasks, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub templates: BTreeMap<String, String>,
    /// Whether short texts of one task share a row in training; they do not see each other.
    pub packing: bool,
    /// What counts alike in the loss of a batch.
    pub average: Average,
    /// Most tokens of a generated answer in evaluation.
    pub max_new_tokens: usize,
}

impl Default for WritingConfig {
    fn default() -> Self {
        Self {
            max_length: 512,
            prompt: PromptStyle::Auto,
            template: None,
            templates: BTreeMap::new(),
            packing: false,
            average: Average::Examples,
            max_new_tokens: 128,
        }
    }
}

impl WritingConfig {
    /// Whether a template of one's own writes prompts.
    pub fn has_templates(&self) -> bool {
        self.template.is_some() || !self.templates.is_empty()
    }

    /// The template for the prompts of a task, if there is one: its own, or that for all.
    ///
    /// # Errors
    /// [`DataError::Template`] if it is broken.
    pub fn template_of(&self, task: &str) -> Result<Option<PromptTemplate>, DataError> {
        let own = self.templates.get(task);
        let own = own.map(|source| (format!("data.writing.templates.{task}"), source));
        let of_all = self.template.as_ref();
        let of_all = of_all.map(|source| ("data.writing.template".into(), source));
        let found = own.or(of_all);
        found
            .map(|(field, source)| PromptTemplate::new(&field, source))
            .transpose()
    }

    /// The style for the model of a folder, which is not [`Auto`](PromptStyle::Auto) any more: a template
    /// of one's own writes all of a prompt, unless [`Chat`](PromptStyle::Chat) says that it is a user's
    /// message.
    ///
    /// # Errors
    /// As [`PromptStyle::resolved`].
    pub fn style(&self, folder: &Path) -> Result<PromptStyle, ChatError> {
        match self.prompt {
            PromptStyle::Auto if self.has_templates() => Ok(PromptStyle::Plain),
            style => style.resolved(folder),
        }
    }
}
