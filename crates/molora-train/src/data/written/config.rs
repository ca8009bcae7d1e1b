//! How texts are made for generative models, as a recipe defines it.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::templates::Templates;
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
    /// Templates for single tasks, by name: one, or a list of which every record that is trained on is
    /// asked by one that its name draws.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub templates: BTreeMap<String, Templates>,
    /// By which of a task's templates a record is asked that is scored.
    #[serde(skip_serializing_if = "is_default")]
    pub scored_templates: ScoredTemplates,
    /// What the log-probability of a candidate answer is divided by before candidates are compared.
    #[serde(skip_serializing_if = "is_default")]
    pub normalize: Normalize,
    /// Whether short texts of one task share a row in training; they do not see each other.
    pub packing: bool,
    /// What counts alike in the loss of a batch.
    pub average: Average,
    /// Most tokens of a generated answer in evaluation.
    pub max_new_tokens: usize,
    /// Beams of the search for a generated answer in evaluation; 1 takes the likeliest token at each step.
    #[serde(skip_serializing_if = "is_one")]
    pub num_beams: usize,
    /// The log-probability of an answer that beams have found is divided by its number of tokens to this
    /// power, as in transformers: 0 prefers short answers, 1 compares means.
    #[serde(skip_serializing_if = "is_even")]
    pub length_penalty: f64,
}

/// By which of a task's templates a record is asked that is scored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScoredTemplates {
    /// The first.
    #[default]
    First,
    /// Each of them: the score is that of all questions together.
    All,
}

/// What the log-probability of a candidate answer is divided by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Nothing: the likeliest text.
    #[default]
    None,
    /// The number of its tokens.
    Tokens,
    /// The number of its characters.
    Characters,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_one(number: &usize) -> bool {
    *number == 1
}

fn is_even(power: &f64) -> bool {
    *power == 1.0
}

impl Default for WritingConfig {
    fn default() -> Self {
        Self {
            max_length: 512,
            prompt: PromptStyle::Auto,
            template: None,
            templates: BTreeMap::new(),
            scored_templates: ScoredTemplates::First,
            normalize: Normalize::None,
            packing: false,
            average: Average::Examples,
            max_new_tokens: 128,
            num_beams: 1,
            length_penalty: 1.0,
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
        let own = own.map(|own| (format!("data.writing.templates.{task}"), own.sources()));
        let of_all = self.template.as_ref().map(std::slice::from_ref);
        let of_all = of_all.map(|source| ("data.writing.template".into(), source));
        let found = own.or(of_all);
        found
            .map(|(field, sources)| PromptTemplate::of_several(&field, sources))
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
