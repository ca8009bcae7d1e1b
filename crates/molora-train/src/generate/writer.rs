//! Generative language models: a model as it is, or a run.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use molora_kernels::random::Seed;
use molora_models::{
    Backbone, DecoderInput, Finish, ForwardContext, GenerateError, GenerateOptions, Generated,
    Sampling,
};

mod open;

use super::Prompt;
use super::mixture::Mixture;
use super::templates::{RunTemplates, check_parts};
use crate::data::{ChatTemplate, Message, TextTokenizer};
use crate::error::{RunProblem, TrainError};
use crate::run::ReadBase;

/// A language model with its tokenizer and chat template.
#[derive(Debug)]
pub struct Writer {
    pub(super) backbone: Backbone,
    /// Of a run; a model as it is has none.
    pub(super) mixture: Option<Mixture>,
    pub(super) tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    stop_tokens: Vec<usize>,
    /// Those that end an answer to a message of a chat.
    chat_stop_tokens: Vec<usize>,
    is_chat: bool,
    /// What wrote the prompts of a run's task, if that was a template of its own.
    templates: Option<RunTemplates>,
    pub(super) device: Device,
    folder: PathBuf,
    /// The base model, for runs on it to share.
    pub(super) read: Option<ReadBase>,
}

/// How texts are continued.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Whether a text is a user's message, which the model's chat template frames.
    pub is_chat: bool,
    /// Whether a run's own template, if it has one, makes a prompt of a text.
    pub uses_template: bool,
    /// Says how the model is to behave, in front of all prompts that the chat template frames and that do
    /// not begin with such a message themselves.
    pub system: Option<String>,
    /// Texts that end what is written; they are not part of it.
    pub stop: Vec<String>,
    /// Most new tokens of a prompt.
    pub max_new_tokens: usize,
    /// How tokens are drawn; the likeliest is taken where absent.
    pub sampling: Option<Sampling>,
    /// Seed of all draws.
    pub seed: u64,
    /// Prompts in one pass.
    pub batch: usize,
}

/// Sees the text behind a prompt, by its number, whenever it has grown. A break ends the text.
pub type TextWatcher<'a> = &'a mut dyn FnMut(usize, &str) -> ControlFlow<()>;

/// What was written after a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The text.
    pub text: String,
    /// Its number of tokens; those of a text that has ended it are counted.
    pub tokens: usize,
    /// Why it ended.
    pub finish: Finish,
}

impl Writer {
    /// Whether prompts use the chat template: if that is requested, and by default if there is
    /// one and, in a run, the tasks were prompted by it.
    ///
    /// # Errors
    /// If it is wanted and there is none.
    pub fn chats(&self, wanted: Option<bool>) -> Result<bool, TrainError> {
        let has_template = self.template.is_some();
        if wanted == Some(true) && !has_template {
            return Err(TrainError::run(&self.folder, RunProblem::NoChatTemplate));
        }
        Ok(wanted.unwrap_or(self.is_chat))
    }

    /// Whether templates of its own wrote the prompts that the run was trained on.
    pub fn has_own_templates(&self) -> bool {
        self.templates.is_some()
    }

    /// Names of the run's tasks; none of a model as it is.
    pub fn tasks(&self) -> &[String] {
        self.mixture.as_ref().map_or(&[], |mixture| &mixture.tasks)
    }

    /// Whether it makes a difference which of the run's tasks a text is of.
    pub fn reads_tasks(&self) -> bool {
        let reads = |mixture: &Mixture| mixture.reads_tasks;
        self.mixture.as_ref().is_some_and(reads)
    }

    /// Names, or numbers, of the experts that can answer alone.
    pub fn experts(&self) -> &[String] {
        let experts = self.mixture.as_ref().map(|mixture| &mixture.experts);
        experts
            .and_then(|found| found.as_deref().ok())
            .unwrap_or(&[])
    }

    /// Tells gates and routers that texts are of this task, or of none that is known.
    ///
    /// # Errors
    /// A task that the run has not, or a model that is no run.
    pub fn set_task(&mut self, name: Option<&str>) -> Result<(), TrainError> {
        self.mixture_mut()?.set_task(name)
    }

    /// Gives one expert the weight 1 and all others 0, whatever routers decide; with `None` they decide
    /// again. Gates, and a general expert, act as before.
    ///
    /// # Errors
    /// An expert that the run has not, a run whose routers choose no whole experts, or a model that is no
    /// run.
    pub fn set_expert(&mut self, name: Option<&str>) -> Result<(), TrainError> {
        self.mixture_mut()?.set_expert(name)
    }

    fn mixture_mut(&mut self) -> Result<&mut Mixture, TrainError> {
        let none = || TrainError::run(&self.folder, RunProblem::NothingToChoose);
        self.mixture.as_mut().ok_or_else(none)
    }

    /// Most tokens of a prompt with its answer; `None` where there is no limit.
    pub fn max_tokens(&self) -> Option<usize> {
        self.backbone.max_tokens()
    }

    /// Number of tokens of a prompt.
    ///
    /// # Errors
    /// As [`write`](Self::write), but for a prompt that is too long.
    pub fn count_tokens(
        &self,
        prompt: &Prompt,
        options: &WriteOptions,
    ) -> Result<usize, TrainError> {
        Ok(self.encode(0, prompt, options)?.0.len())
    }

    /// The likeliest answer to a request, in at most `max_new_tokens` tokens with what is thought before it. A
    /// model without a chat template continues the text of the request.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn answer(&self, request: &str, max_new_tokens: usize) -> Result<String, TrainError> {
        let options = WriteOptions {
            is_chat: self.chats(None)?,
            uses_template: false,
            system: None,
            stop: Vec::new(),
            max_new_tokens,
            sampling: None,
            seed: 0,
            batch: 1,
        };
        let prompt = Prompt::Text(request.to_owned());
        let mut written = self.write(&[prompt], &options)?;
        let text = written.remove(0).text;
        let template = self.template.as_ref();
        Ok(template
            .map_or(&text[..], |template| template.answer_of(&text))
            .to_owned())
    }

    /// Continues texts, several in one pass. What is drawn for a prompt does not depend on the size
    /// of the batches.
    ///
    /// # Errors
    /// A prompt that is empty or longer than the model's context, a template that fails on it, or
    /// numbers of the sampling out of range.
    pub fn write(
        &self,
        prompts: &[Prompt],
        options: &WriteOptions,
    ) -> Result<Vec<Written>, TrainError> {
        self.write_watched(prompts, options, None)
    }

    /// As [`write`](Self::write); `watch` sees the text of each prompt, by its number, whenever it has
    /// grown, and can end it.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_watched(
        &self,
        prompts: &[Prompt],
        options: &WriteOptions,
        mut watch: Option<TextWatcher<'_>>,
    ) -> Result<Vec<Written>, TrainError> {
        let tokens = prompts.iter().enumerate();
        let tokens = tokens.map(|(row, prompt)| self.tokens(row, prompt, options));
        let tokens: Vec<(Vec<usize>, usize)> = tokens.collect::<Result<_, _>>()?;
        let (tokens, left_out): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
        let mut written = Vec::with_capacity(prompts.len());
        for first in (0..prompts.len()).step_by(options.batch.max(1)) {
            let rows = first..prompts.len().min(first + options.batch.max(1));
            let found = self.pass(
                &prompts[rows.clone()],
                &tokens[rows.clone()],
                (first, &left_out[rows.clone()]),
                options,
                &mut watch,
            )?;
            for (row, left_out) in found.into_iter().zip(&left_out[rows]) {
                let text = self.text(&row.tokens, *left_out)?;
                let end = stop_at(&text, &options.stop).unwrap_or(text.len());
                written.push(Written {
                    text: text[..end].to_owned(),
                    tokens: row.tokens.len(),
                    finish: row.finish,
                });
            }
        }
        Ok(written)
    }

    /// As [`encode`](Self::encode), of a prompt that is not too long.
    pub(super) fn tokens(
        &self,
        row: usize,
        prompt: &Prompt,
        options: &WriteOptions,
    ) -> Result<(Vec<usize>, usize), TrainError> {
        let found = self.encode(row, prompt, options)?;
        let tokens = found.0.len();
        match self.backbone.max_tokens() {
            Some(max_tokens) if tokens > max_tokens => Err(GenerateError::PromptTooLong {
                row,
                tokens,
                max_tokens,
            }
            .into()),
            _ => Ok(found),
        }
    }

    /// The tokens of a prompt, of which there is at least one, and the bytes of white space at its end that
    /// are left to the answer.
    fn encode(
        &self,
        row: usize,
        prompt: &Prompt,
        options: &WriteOptions,
    ) -> Result<(Vec<usize>, usize), TrainError> {
        let asked = match (prompt, &self.templates) {
            (Prompt::Text(text), Some(templates)) if options.uses_template => {
                let task = self.mixture.as_ref().and_then(|mixture| mixture.task);
                templates.prompt_of(text, row + 1, task)?
            }
            _ => None,
        };
        let tools = match prompt {
            Prompt::Chat(chat) => chat.tools.as_deref(),
            Prompt::Text(_) => None,
        };
        let (prompt, messages) = match (prompt, asked.as_ref()) {
            (Prompt::Text(text), asked) => {
                let text = asked.unwrap_or(text);
                (
                    &text[..],
                    options.is_chat.then(|| vec![Message::user(text)]),
                )
            }
            (Prompt::Chat(chat), _) => (prompt.text(), Some(chat.messages.clone())),
        };
        if prompt.trim().is_empty() {
            return Err(GenerateError::EmptyPrompt { row }.into());
        }
        let reads = matches!(self.backbone, Backbone::EncoderDecoder(_));
        let (ids, left_out) = match messages {
            Some(mut messages) => {
                let has_system = messages.first().is_some_and(|first| first.role == "system");
                if let (Some(system), false) = (&options.system, has_system) {
                    messages.insert(0, Message::system(system));
                }
                let Some(template) = &self.template else {
                    return Err(TrainError::run(&self.folder, RunProblem::NoChatTemplate));
                };
                check_parts(template, row, &messages, tools)?;
                let text = template.render_with(&messages, tools, true)?;
                match reads {
                    true => (self.tokenizer.encode_whole(&text, false)?, 0),
                    false => self.tokenizer.encode_prompt(&text, false)?,
                }
            }
            // What an encoder reads has an end, what a decoder continues has none.
            None if reads => (self.tokenizer.encode_whole(prompt, true)?, 0),
            None => {
                let (ids, left_out) = self.tokenizer.encode_prompt(prompt, true)?;
                // Answers were learned behind a space.
                let has_gap = asked.is_some() && !prompt.ends_with(char::is_whitespace);
                (ids, left_out + usize::from(has_gap))
            }
        };
        match ids.is_empty() {
            true => Err(GenerateError::EmptyPrompt { row }.into()),
            false => Ok((ids.into_iter().map(|id| id as usize).collect(), left_out)),
        }
    }

    /// Continues one batch, whose first prompt has the number `first`.
    fn pass(
        &self,
        prompts: &[Prompt],
        tokens: &[Vec<usize>],
        (first, left_out): (usize, &[usize]),
        options: &WriteOptions,
        watch: &mut Option<TextWatcher<'_>>,
    ) -> Result<Vec<Generated>, TrainError> {
        let input = DecoderInput::from_sequences(tokens, &self.device);
        let mut context = ForwardContext::new(input.mask.clone().float());
        if let Some(mixture) = &self.mixture {
            mixture.guide(prompts, &mut context)?;
        }
        let is_chat = options.is_chat || prompts.iter().any(|p| matches!(p, Prompt::Chat(_)));
        let stop = &options.stop;
        let options = GenerateOptions {
            max_new_tokens: options.max_new_tokens,
            stop_tokens: self.ends(is_chat).to_vec(),
            sampling: options.sampling,
            seed: Seed::new(options.seed),
            first_row: first,
            ..GenerateOptions::default()
        };
        // Texts that are no texts end nothing, and are said when the whole is decoded.
        let see = &mut |row: usize, tokens: &[usize]| {
            if stop.is_empty() && watch.is_none() {
                return ControlFlow::Continue(());
            }
            let text = self.text(tokens, left_out[row]).unwrap_or_default();
            let end = stop_at(&text, stop);
            if let Some(watch) = watch {
                watch(first + row, &text[..end.unwrap_or(text.len())])?;
            }
            match end {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            }
        };
        Ok(match &self.backbone {
            Backbone::Decoder(model) => model.generate_watched(&input, &options, &context, see)?,
            Backbone::EncoderDecoder(model) => {
                model.generate_watched(&input, &options, &context, see)?
            }
            Backbone::Encoder(_) => unreachable!("refused when the writer was made"),
        })
    }

    /// Tokens that end an answer, to a message of a chat or to a text.
    pub(super) fn ends(&self, is_chat: bool) -> &[usize] {
        match is_chat {
            true => &self.chat_stop_tokens,
            false => &self.stop_tokens,
        }
    }

    /// Folder of the base model.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The text of tokens behind a prompt that lacks so many bytes of white space at its end.
    pub(super) fn text(&self, tokens: &[usize], left_out: usize) -> Result<String, TrainError> {
        let tokens: Vec<u32> = tokens.iter().map(|&token| token as u32).collect();
        Ok(without_space(self.tokenizer.decode(&tokens)?, left_out))
    }
}

/// Where the first of some texts begins in a text.
pub(super) fn stop_at(text: &str, stop: &[String]) -> Option<usize> {
    stop.iter().filter_map(|stop| text.find(&stop[..])).min()
}

/// A text without the white space at its beginning, of at most so many bytes, that stands in the prompt.
fn without_space(text: String, most: usize) -> String {
    let space = text.len() - text.trim_start().len();
    text[space.min(most)..].to_owned()
}
