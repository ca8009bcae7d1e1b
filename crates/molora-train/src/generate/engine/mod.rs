//! Many texts at once with one model: requests join and leave between tokens.
//!
//! ```text
//! submit -> waiting -> reading (its prompt, in pieces) -> rows -> out
//!                        one at a time                     one pass for all rows, whatever their
//!                        in a cache of its own             task or expert, in one cache
//! ```
//!
//! A [`step`](Engine::step) reads up to so many tokens of prompts, and then writes one token of every row.
//! So a long prompt delays the others by a bounded time, unless a router decides by the whole prompt, which
//! is then read in one pass.

mod request;
mod row;

use std::collections::VecDeque;
use std::sync::Arc;

use burn::tensor::Tensor;
use molora_models::{Backbone, Decoder, DecoderInput, ForwardContext, KvCache, RouteTrace};
use rayon::prelude::*;

use super::Writer;
use crate::error::{RunProblem, TrainError};
pub use request::{EncodedPrompt, Event, Listener, Request, TokenScore, Variant};
use row::{Row, score};

/// Experts' shares are looked at in one step of so many: they cost a wait for the device.
const LOAD_STEPS: u64 = 16;
/// Scores of so many tokens of a prompt are on the host at once.
const SCORED: usize = 64;

/// How much an engine does at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most texts that are written at once, at least 1.
    pub max_rows: usize,
    /// Most tokens of a text with its prompt; the model's context if that is less.
    pub max_context: usize,
    /// Most tokens of prompts that are read between two tokens, at least 1.
    pub piece: usize,
}

/// What an engine has done, and what it holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineState {
    /// Requests that nothing was read of yet.
    pub waiting: usize,
    /// Texts that are read or written.
    pub rows: usize,
    /// Tokens that the cache has room for, padding included.
    pub cache_tokens: usize,
    /// Tokens of prompts that were read so far.
    pub prompt_tokens: u64,
    /// Tokens that were written so far.
    pub new_tokens: u64,
    /// Sums of the weights that routers gave to each expert, as means over sites, in the steps that were
    /// looked at.
    pub expert_weights: Vec<f64>,
}

/// A prompt while it is read.
struct Reading {
    row: Row,
    cache: KvCache,
    done: usize,
    /// The scores of the next token, and those of the prompt's tokens so far.
    next: Vec<f32>,
    scores: Vec<TokenScore>,
}

/// A model that writes many texts at once.
pub struct Engine {
    writer: Arc<Writer>,
    options: EngineOptions,
    reads_whole: bool,
    waiting: VecDeque<(Request, Box<dyn Listener>)>,
    reading: Option<Reading>,
    rows: Vec<Row>,
    cache: KvCache,
    /// What the rows' routers read; none where rows have joined or left since it was made.
    context: Option<ForwardContext>,
    steps: u64,
    state: EngineState,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Engine");
        shown
            .field("options", &self.options)
            .field("state", &self.state);
        shown.finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine for a model or a run that writes.
    ///
    /// # Errors
    /// [`RunProblem::NotServed`] for a model that reads a text and writes another, or a mixture of which a
    /// text depends on those beside it.
    pub fn new(writer: Arc<Writer>, options: EngineOptions) -> Result<Self, TrainError> {
        let refuse = |why| {
            Err(TrainError::run(
                writer.folder(),
                RunProblem::NotServed { why },
            ))
        };
        let Backbone::Decoder(model) = &writer.backbone else {
            return refuse("it is an encoder-decoder, and only decoders are");
        };
        if model.mixes_rows() {
            return refuse(
                "its routers mix experts by all texts of a pass (pool weights \"released\"), so that \
                 answers would depend on other requests",
            );
        }
        let max_context = options.max_context.min(model.max_tokens()).max(1);
        Ok(Self {
            reads_whole: model.reads_prompts_whole(),
            cache: model.cache(),
            options: EngineOptions {
                // Where positions depend on the longest text of a pass, every text has one of its own.
                max_rows: match model.depends_on_length() {
                    true => 1,
                    false => options.max_rows.max(1),
                },
                max_context,
                piece: options.piece.max(1),
            },
            writer,
            waiting: VecDeque::new(),
            reading: None,
            rows: Vec::new(),
            context: None,
            steps: 0,
            state: EngineState::default(),
        })
    }

    /// How much it does at once, within what the model can.
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// Bytes that the cache may come to hold.
    pub fn most_cache_bytes(&self) -> usize {
        let tokens = self.options.max_rows * Decoder::cache_room(self.options.max_context);
        tokens * self.model().cache_bytes_per_token()
    }

    /// What it has done, and what it holds.
    pub fn state(&self) -> &EngineState {
        &self.state
    }

    /// Takes a request in, which is answered in the order of arrival as there is room. One that cannot be
    /// answered fails at once.
    pub fn submit(&mut self, request: Request, mut listener: Box<dyn Listener>) {
        match request.check(self.options.max_context) {
            Ok(()) => self.waiting.push_back((request, listener)),
            Err(error) => drop(listener.hear(Event::Failed(error.to_string()))),
        }
        self.count();
    }

    /// Reads some tokens of prompts, and writes a token of every text. Whether there is more to do.
    pub fn step(&mut self) -> bool {
        self.leave();
        self.read_some();
        if !self.rows.is_empty() {
            self.write();
        }
        self.count();
        !(self.waiting.is_empty() && self.reading.is_none() && self.rows.is_empty())
    }

    /// Ends all requests with an error.
    pub fn fail_all(&mut self, why: &str) {
        for (_, mut listener) in self.waiting.drain(..) {
            let _ = listener.hear(Event::Failed(why.to_owned()));
        }
        let reading = self.reading.take().map(|reading| reading.row);
        for mut row in reading.into_iter().chain(self.rows.drain(..)) {
            row.fail(why);
        }
        self.cache = self.model().cache();
        self.context = None;
        self.count();
    }

    fn model(&self) -> &Decoder {
        match &self.writer.backbone {
            Backbone::Decoder(model) => model,
            _ => unreachable!("refused when the engine was made"),
        }
    }

    fn count(&mut self) {
        self.state.waiting = self.waiting.len();
        self.state.rows = self.rows.len() + usize::from(self.reading.is_some());
        self.state.cache_tokens = self.cache.num_rows() * self.cache.num_tokens();
    }

    /// Drops requests whose listener has gone.
    fn leave(&mut self) {
        self.waiting.retain(|(_, listener)| !listener.is_gone());
        if self
            .reading
            .as_ref()
            .is_some_and(|reading| reading.row.is_gone())
        {
            self.reading = None;
        }
        let stays: Vec<bool> = self.rows.iter().map(|row| !row.is_gone()).collect();
        self.keep(&stays);
    }

    /// Keeps the rows that stay.
    fn keep(&mut self, stays: &[bool]) {
        if stays.iter().all(|&stays| stays) {
            return;
        }
        let kept: Vec<usize> = (0..stays.len()).filter(|&row| stays[row]).collect();
        let mut stay = stays.iter();
        self.rows
            .retain(|_| *stay.next().expect("one for each row"));
        self.cache.select(&kept);
        self.context = None;
    }

    /// Reads prompts up to the tokens of a piece, while there is room for their rows.
    fn read_some(&mut self) {
        let mut left = self.options.piece;
        while left > 0 && self.rows.len() < self.options.max_rows {
            let Some(mut reading) = self.reading.take().or_else(|| self.begin()) else {
                return;
            };
            let missing = reading.row.request.asked.tokens.len() - reading.done;
            let count = if self.reads_whole {
                missing
            } else {
                missing.min(left)
            };
            left = left.saturating_sub(count);
            self.read(&mut reading, count);
            match count == missing {
                true => self.join(reading),
                false => self.reading = Some(reading),
            }
        }
    }

    /// The next request that can be read.
    fn begin(&mut self) -> Option<Reading> {
        loop {
            let (request, mut listener) = self.waiting.pop_front()?;
            match self.writer.context_of(&request.asked.text, request.variant) {
                Ok(context) => {
                    return Some(Reading {
                        row: Row::new(request, context, listener),
                        cache: self.model().cache(),
                        done: 0,
                        next: Vec::new(),
                        scores: Vec::new(),
                    });
                }
                Err(error) => drop(listener.hear(Event::Failed(error.to_string()))),
            }
        }
    }

    /// Reads so many more tokens of a prompt.
    fn read(&mut self, reading: &mut Reading, count: usize) {
        let tokens = &reading.row.request.asked.tokens;
        let from = reading.done;
        let piece = vec![tokens[from..from + count].to_vec()];
        let (hidden, _) = self.pass(&piece, &mut reading.cache, &reading.row.context);
        reading.done += count;
        self.state.prompt_tokens += count as u64;
        let Some(likeliest) = reading.row.request.prompt_scores else {
            let last = hidden.narrow(1, count - 1, 1);
            reading.next = host(self.model().logits(last));
            return;
        };
        // The scores behind a token are those of the next one.
        for first in (0..count).step_by(SCORED) {
            let part = SCORED.min(count - first);
            let logits = host(self.model().logits(hidden.clone().narrow(1, first, part)));
            let width = logits.len() / part;
            for (index, logits) in logits.chunks(width).enumerate() {
                if let Some(&token) = tokens.get(from + first + index + 1) {
                    reading.scores.push(score(logits, token, likeliest));
                } else {
                    reading.next = logits.to_vec();
                }
            }
        }
    }

    /// Writes the first token of a prompt that was read, and lets its row join the others.
    fn join(&mut self, reading: Reading) {
        let Reading {
            mut row,
            cache,
            mut next,
            scores,
            ..
        } = reading;
        if !row.read(scores, &self.writer) {
            return;
        }
        let goes_on = row.choose(&mut next, self.options.max_context, &self.writer);
        self.state.new_tokens += row.written.len() as u64;
        if goes_on {
            self.cache.append(cache);
            self.rows.push(row);
            self.context = None;
        }
    }

    /// Writes a token of every row.
    fn write(&mut self) {
        let newest: Vec<Vec<usize>> = self.rows.iter().map(|row| vec![row.newest()]).collect();
        let context = self.context.take().unwrap_or_else(|| {
            let contexts: Vec<_> = self.rows.iter().map(|row| &row.context).collect();
            ForwardContext::cat(&contexts)
        });
        let empty = self.model().cache();
        let mut cache = std::mem::replace(&mut self.cache, empty);
        let (hidden, routes) = self.pass(&newest, &mut cache, &context);
        self.cache = cache;
        self.context = Some(context);
        let mut logits = host(self.model().logits(hidden));
        let width = logits.len() / self.rows.len();
        let (writer, max_context) = (&self.writer, self.options.max_context);
        let before: usize = self.rows.iter().map(|row| row.written.len()).sum();
        let chosen = self.rows.par_iter_mut().zip(logits.par_chunks_mut(width));
        let stays: Vec<bool> = chosen
            .map(|(row, logits)| row.choose(logits, max_context, writer))
            .collect();
        let after: usize = self.rows.iter().map(|row| row.written.len()).sum();
        self.state.new_tokens += (after - before) as u64;
        if self.steps.is_multiple_of(LOAD_STEPS) {
            self.note_load(&routes);
        }
        self.steps += 1;
        self.keep(&stays);
    }

    /// Hidden states `[B, T, D]` of new tokens, and what routers decided.
    fn pass(
        &self,
        tokens: &[Vec<usize>],
        cache: &mut KvCache,
        context: &ForwardContext,
    ) -> (Tensor<3>, Vec<RouteTrace>) {
        let input = DecoderInput::from_sequences(tokens, &self.writer.device);
        let context = ForwardContext {
            mask: input.mask.clone().float(),
            ..context.clone()
        };
        let output = self.model().forward_cached(&input, cache, &context);
        (output.hidden, output.routes)
    }

    /// Adds what routers gave to each expert, as the mean over sites.
    fn note_load(&mut self, routes: &[RouteTrace]) {
        let Some(first) = routes.first() else {
            return;
        };
        let experts = first.routed.num_experts();
        let same = routes
            .iter()
            .filter(|route| route.routed.num_experts() == experts);
        let sums: Vec<Tensor<1>> = same
            .map(|route| route.routed.sum_counted(route.routed.weights.clone()))
            .collect();
        let mean = Tensor::stack::<2>(sums, 0).mean_dim(0);
        self.state.expert_weights.resize(experts, 0.0);
        let found = mean.into_data().iter::<f64>().collect::<Vec<_>>();
        for (sum, weight) in self.state.expert_weights.iter_mut().zip(found) {
            *sum += weight;
        }
    }
}

/// Numbers on the host.
fn host(tensor: Tensor<3>) -> Vec<f32> {
    let values = tensor.into_data().convert::<f32>().try_into_vec::<f32>();
    values.expect("just converted")
}
