//! Language models that write: a model as it is, or a run.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use molora_adapters::task_selector;
use molora_kernels::random::Seed;
use molora_models::{
    Backbone, DecoderInput, Finish, ForwardContext, GenerateError, GenerateOptions, Generated,
    Sampling,
};
use molora_routing::Guidance;

use crate::base::{DeviceSpec, base_model, chat_stop_tokens, stop_tokens};
use crate::data::{ChatTemplate, Message, PromptStyle, Split, TextTokenizer};
use crate::error::{RunProblem, TrainError};
use crate::guide::{Clusters, Guide, Instructions, TextEncoder, clusters_of};
use crate::run::{open_without_data, task_number};

/// A language model with its tokenizer and chat template.
#[derive(Debug)]
pub struct Writer {
    backbone: Backbone,
    mixture: Mixture,
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    stop_tokens: Vec<usize>,
    /// Those that end an answer to a message of a chat.
    chat_stop_tokens: Vec<usize>,
    is_chat: bool,
    device: Device,
    folder: PathBuf,
}

/// What the routers of a run read beside the text; nothing of a model as it is.
#[derive(Debug, Default)]
struct Mixture {
    num_tasks: usize,
    task: Option<usize>,
    instructions: Option<(Instructions, Option<TextEncoder>)>,
    clusters: Option<(Clusters, TextEncoder)>,
}

/// How texts are continued.
#[derive(Debug, Clone)]
pub struct WriteOptions {
    /// Whether a prompt is a user's message, which the model's chat template frames.
    pub is_chat: bool,
    /// Most new tokens of a prompt.
    pub max_new_tokens: usize,
    /// How tokens are drawn; the likeliest is taken where absent.
    pub sampling: Option<Sampling>,
    /// Seed of all draws.
    pub seed: u64,
    /// Prompts in one pass.
    pub batch: usize,
}

/// What was written after a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The text.
    pub text: String,
    /// Its number of tokens.
    pub tokens: usize,
    /// Why it ended.
    pub finish: Finish,
}

impl Writer {
    /// Loads a language model by the name of its folder, or by one that [`base_model::find`] knows.
    ///
    /// # Errors
    /// A model that writes no text; whatever reading the model, its tokenizer or its chat template
    /// gives.
    pub fn open(name: &str, device: &Device) -> Result<Self, TrainError> {
        let folder = base_model::find(name, &mut base_model::silent)?.folder;
        let device = device.clone().inner();
        let backbone = Backbone::from_folder(&folder, &device)?;
        Self::of(backbone, Mixture::default(), folder, device)
    }

    /// Loads a finished run. With a `task` gates and routers know that the texts are of this one.
    ///
    /// # Errors
    /// A run that is not finished, a base model that writes no text, a task that the run has not;
    /// whatever reading the run gives.
    pub fn of_run(
        run: &Path,
        task: Option<&str>,
        device: Option<DeviceSpec>,
    ) -> Result<Self, TrainError> {
        let opened = open_without_data(run, device)?;
        let task = task.map(|name| task_number(run, &opened, name));
        let device = opened.loaded.device.clone();
        let style = opened.config.recipe.data.writing.prompt;
        let mut mixture = Mixture {
            num_tasks: opened.config.tasks.len(),
            task: task.transpose()?,
            instructions: None,
            clusters: None,
        };
        if let Some(instructions) = opened.instructions {
            // The query is the task's instruction, or else the prompt.
            let encoder = match mixture.task {
                Some(_) => None,
                None => Some(instructions.text_encoder(&device)?),
            };
            mixture.instructions = Some((instructions, encoder));
        }
        if let Some(clusters) = opened.clusters {
            let encoder = clusters.text_encoder(&device)?;
            mixture.clusters = Some((clusters, encoder));
        }
        let mut writer = Self::of(opened.model.backbone, mixture, opened.loaded.folder, device)?;
        writer.is_chat &= style == PromptStyle::Chat;
        Ok(writer)
    }

    fn of(
        backbone: Backbone,
        mixture: Mixture,
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
            template,
            stop_tokens,
            chat_stop_tokens,
            backbone,
            device,
            folder,
        })
    }

    /// Whether prompts are framed by the chat template: if that is wanted, and by default if there is
    /// one and, in a run, the tasks were asked by it.
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

    /// The likeliest answer to a request, in at most `max_new_tokens` tokens. A model without a chat
    /// template goes on with the text of the request.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn answer(&self, request: &str, max_new_tokens: usize) -> Result<String, TrainError> {
        let options = WriteOptions {
            is_chat: self.chats(None)?,
            max_new_tokens,
            sampling: None,
            seed: 0,
            batch: 1,
        };
        let mut written = self.write(&[request.to_owned()], &options)?;
        Ok(written.remove(0).text)
    }

    /// Continues texts, several in one pass. What is drawn for a prompt does not depend on the size
    /// of the batches.
    ///
    /// # Errors
    /// A prompt that is empty or longer than the model's context, a template that fails on it, or
    /// numbers of the sampling out of range.
    pub fn write(
        &self,
        prompts: &[String],
        options: &WriteOptions,
    ) -> Result<Vec<Written>, TrainError> {
        let tokens = prompts.iter().enumerate();
        let tokens = tokens.map(|(row, prompt)| self.tokens(row, prompt, options.is_chat));
        let tokens: Vec<(Vec<usize>, usize)> = tokens.collect::<Result<_, _>>()?;
        let (tokens, left_out): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
        let mut written = Vec::with_capacity(prompts.len());
        for first in (0..prompts.len()).step_by(options.batch.max(1)) {
            let rows = first..prompts.len().min(first + options.batch.max(1));
            let found = self.pass(
                &prompts[rows.clone()],
                &tokens[rows.clone()],
                first,
                options,
            )?;
            for (row, left_out) in found.into_iter().zip(&left_out[rows]) {
                let new: Vec<u32> = row.tokens.iter().map(|&token| token as u32).collect();
                written.push(Written {
                    text: without_space(self.tokenizer.decode(&new)?, *left_out),
                    tokens: new.len(),
                    finish: row.finish,
                });
            }
        }
        Ok(written)
    }

    /// The tokens of a prompt, of which there are some and not too many, and the bytes of white space
    /// at its end that are left to the answer.
    fn tokens(
        &self,
        row: usize,
        prompt: &str,
        is_chat: bool,
    ) -> Result<(Vec<usize>, usize), TrainError> {
        if prompt.trim().is_empty() {
            return Err(GenerateError::EmptyPrompt { row }.into());
        }
        let template = self.template.as_ref().filter(|_| is_chat);
        let reads = matches!(self.backbone, Backbone::EncoderDecoder(_));
        let (ids, left_out) = match template {
            Some(template) => {
                let text = template.render(&[Message::user(prompt)], true)?;
                match reads {
                    true => (self.tokenizer.encode_whole(&text, false)?, 0),
                    false => self.tokenizer.encode_prompt(&text, false)?,
                }
            }
            // What an encoder reads has an end, what a decoder goes on with has none.
            None if reads => (self.tokenizer.encode_whole(prompt, true)?, 0),
            None => self.tokenizer.encode_prompt(prompt, true)?,
        };
        match self.backbone.max_tokens() {
            Some(max_tokens) if ids.len() > max_tokens => Err(GenerateError::PromptTooLong {
                row,
                tokens: ids.len(),
                max_tokens,
            }
            .into()),
            _ if ids.is_empty() => Err(GenerateError::EmptyPrompt { row }.into()),
            _ => Ok((ids.into_iter().map(|id| id as usize).collect(), left_out)),
        }
    }

    /// Continues one batch, whose first prompt has the number `first`.
    fn pass(
        &self,
        prompts: &[String],
        tokens: &[Vec<usize>],
        first: usize,
        options: &WriteOptions,
    ) -> Result<Vec<Generated>, TrainError> {
        let input = DecoderInput::from_sequences(tokens, &self.device);
        let context = self.context(prompts, input.mask.clone().float())?;
        let options = GenerateOptions {
            max_new_tokens: options.max_new_tokens,
            stop_tokens: match options.is_chat {
                true => self.chat_stop_tokens.clone(),
                false => self.stop_tokens.clone(),
            },
            sampling: options.sampling,
            seed: Seed::new(options.seed),
            first_row: first,
            ..GenerateOptions::default()
        };
        Ok(match &self.backbone {
            Backbone::Decoder(model) => model.generate(&input, &options, &context)?,
            Backbone::EncoderDecoder(model) => model.generate(&input, &options, &context)?,
            Backbone::Encoder(_) => unreachable!("refused when the writer was made"),
        })
    }

    fn context(&self, prompts: &[String], mask: Tensor<2>) -> Result<ForwardContext, TrainError> {
        let mut context = ForwardContext::new(mask);
        let Mixture {
            num_tasks,
            task,
            instructions,
            clusters,
        } = &self.mixture;
        if *num_tasks > 0 {
            let tasks = vec![*task; prompts.len()];
            context.tasks = Some(task_selector(&tasks, *num_tasks, &self.device)?);
        }
        if let Some((instructions, encoder)) = instructions {
            let encoder = encoder.as_ref();
            context.guidance = self.guidance(prompts, *task, instructions, encoder)?;
        }
        if let Some((clusters, encoder)) = clusters {
            let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
            let places = clusters.of_texts(&prompts, encoder)?;
            let places: Vec<_> = places.iter().collect();
            context.guidance = clusters_of(&places, clusters.clusters, &self.device);
        }
        Ok(context)
    }

    /// The experts' scores by what the prompts are about.
    fn guidance(
        &self,
        prompts: &[String],
        task: Option<usize>,
        instructions: &Instructions,
        encoder: Option<&TextEncoder>,
    ) -> Result<Guidance, TrainError> {
        let rows: Vec<usize> = (0..prompts.len()).collect();
        let queries = match (task, encoder) {
            (Some(task), _) => vec![instructions.experts[task].vector.clone(); prompts.len()],
            (None, Some(encoder)) => {
                let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
                encoder.embed(&texts)?
            }
            (None, None) => return Ok(Guidance::default()),
        };
        let scores = instructions.scores(&queries, &self.device);
        Ok(Guide::ByTask(scores).of(&rows, &[], Split::Test, &self.device))
    }
}

/// A text without the white space at its beginning, of at most so many bytes, that stands in the prompt.
fn without_space(text: String, most: usize) -> String {
    let space = text.len() - text.trim_start().len();
    text[space.min(most)..].to_owned()
}
