//! Language models that write: a model as it is, or a run.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use molora_adapters::task_selector;
use molora_kernels::random::Seed;
use molora_models::{
    Backbone, BaseDtype, DecoderInput, Finish, ForwardContext, GenerateError, GenerateOptions,
    Generated, Sampling,
};
use molora_routing::Guidance;

use super::Prompt;
use super::asked::{asks, check_parts};
use crate::base::{AdapterFolder, DeviceSpec, base_model, chat_stop_tokens, stop_tokens};
use crate::data::{
    ChatTemplate, Message, PromptStyle, PromptTemplate, Split, TaskMeta, TextTokenizer,
};
use crate::error::{RunProblem, TrainError};
use crate::guide::{Clusters, Guide, Instructions, TextEncoder, clusters_of};
use crate::run::{open_as, task_number};

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
    /// What wrote the prompts of a run's task, if that was a template of its own.
    asks: Option<(PromptTemplate, TaskMeta)>,
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
    /// Whether a text is a user's message, which the model's chat template frames.
    pub is_chat: bool,
    /// Whether a run's own template, if it has one, makes a prompt of a text.
    pub is_asked: bool,
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
    /// Loads a language model by the name of its folder, or by one that [`base_model::find`] knows, its
    /// matrices in the given type.
    ///
    /// # Errors
    /// A model that writes no text; whatever reading the model, its tokenizer or its chat template
    /// gives.
    pub fn open(name: &str, base_dtype: BaseDtype, device: &Device) -> Result<Self, TrainError> {
        let folder = base_model::find(name, &mut base_model::silent)?.folder;
        let device = device.clone().inner();
        let backbone = Backbone::from_folder_as(&folder, base_dtype, &device)?;
        Self::of(backbone, Mixture::default(), folder, device)
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
        let device = device.clone().inner();
        let backbone = adapter.open(base_dtype, &device)?;
        Self::of(
            backbone,
            Mixture::default(),
            adapter.base.folder.clone(),
            device,
        )
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
        let opened = open_as(run, base_dtype, device)?;
        let task = task.map(|name| task_number(run, &opened, name));
        let task = task.transpose()?;
        let device = opened.loaded.device.clone();
        let style = opened.config.recipe.data.writing.prompt;
        let asks = asks(run, &opened, task)?;
        let mut mixture = Mixture {
            num_tasks: opened.config.tasks.len(),
            task,
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
        writer.asks = asks;
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
            asks: None,
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
            is_asked: false,
            system: None,
            stop: Vec::new(),
            max_new_tokens,
            sampling: None,
            seed: 0,
            batch: 1,
        };
        let prompt = Prompt::Text(request.to_owned());
        let mut written = self.write(&[prompt], &options)?;
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

    /// The tokens of a prompt, of which there are some and not too many, and the bytes of white space
    /// at its end that are left to the answer.
    fn tokens(
        &self,
        row: usize,
        prompt: &Prompt,
        options: &WriteOptions,
    ) -> Result<(Vec<usize>, usize), TrainError> {
        let asked = match (prompt, &self.asks) {
            (Prompt::Text(text), Some((template, meta))) if options.is_asked => {
                Some(template.prompt_of(text, row + 1, meta)?)
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
            // What an encoder reads has an end, what a decoder goes on with has none.
            None if reads => (self.tokenizer.encode_whole(prompt, true)?, 0),
            None => {
                let (ids, left_out) = self.tokenizer.encode_prompt(prompt, true)?;
                // Answers were learned behind a space.
                let has_gap = asked.is_some() && !prompt.ends_with(char::is_whitespace);
                (ids, left_out + usize::from(has_gap))
            }
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
        prompts: &[Prompt],
        tokens: &[Vec<usize>],
        (first, left_out): (usize, &[usize]),
        options: &WriteOptions,
        watch: &mut Option<TextWatcher<'_>>,
    ) -> Result<Vec<Generated>, TrainError> {
        let input = DecoderInput::from_sequences(tokens, &self.device);
        let context = self.context(prompts, input.mask.clone().float())?;
        let is_chat = options.is_chat || prompts.iter().any(|p| matches!(p, Prompt::Chat(_)));
        let stop = &options.stop;
        let options = GenerateOptions {
            max_new_tokens: options.max_new_tokens,
            stop_tokens: match is_chat {
                true => self.chat_stop_tokens.clone(),
                false => self.stop_tokens.clone(),
            },
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

    /// The text of tokens behind a prompt that lacks so many bytes of white space at its end.
    fn text(&self, tokens: &[usize], left_out: usize) -> Result<String, TrainError> {
        let tokens: Vec<u32> = tokens.iter().map(|&token| token as u32).collect();
        Ok(without_space(self.tokenizer.decode(&tokens)?, left_out))
    }

    fn context(&self, prompts: &[Prompt], mask: Tensor<2>) -> Result<ForwardContext, TrainError> {
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
            let prompts: Vec<&str> = prompts.iter().map(Prompt::text).collect();
            let places = clusters.of_texts(&prompts, encoder)?;
            let places: Vec<_> = places.iter().collect();
            context.guidance = clusters_of(&places, clusters.clusters, &self.device);
        }
        Ok(context)
    }

    /// The experts' scores by what the prompts are about.
    fn guidance(
        &self,
        prompts: &[Prompt],
        task: Option<usize>,
        instructions: &Instructions,
        encoder: Option<&TextEncoder>,
    ) -> Result<Guidance, TrainError> {
        let rows: Vec<usize> = (0..prompts.len()).collect();
        let queries = match (task, encoder) {
            (Some(task), _) => vec![instructions.experts[task].vector.clone(); prompts.len()],
            (None, Some(encoder)) => {
                let texts: Vec<&str> = prompts.iter().map(Prompt::text).collect();
                encoder.embed(&texts)?
            }
            (None, None) => return Ok(Guidance::default()),
        };
        let scores = instructions.scores(&queries, &self.device);
        Ok(Guide::ByTask(scores).of(&rows, &[], Split::Test, &self.device))
    }
}

/// Where the first of some texts begins in a text.
fn stop_at(text: &str, stop: &[String]) -> Option<usize> {
    stop.iter().filter_map(|stop| text.find(&stop[..])).min()
}

/// A text without the white space at its beginning, of at most so many bytes, that stands in the prompt.
fn without_space(text: String, most: usize) -> String {
    let space = text.len() - text.trim_start().len();
    text[space.min(most)..].to_owned()
}
