//! Many texts at once with one model, or with several on one base: requests join and leave between tokens.
//!
//! ```text
//! submit -> waiting -> reading (its prompt, in pieces) -> rows -> out
//!           by model     one at a time                     one pass for all rows, whatever their
//!                        in a cache of its own             model, task or expert, in one cache
//! ```
//!
//! Rows are sorted by model. Models take turns with their prompts, so that one that many ask holds up no other.
//!
//! A [`step`](Engine::step) reads up to so many tokens of prompts, and then writes one token of every row.
//! So a long prompt delays the others by a bounded time, unless a router decides by the whole prompt, which
//! is then read in one pass.

mod request;
mod row;
mod waiting;

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;
use molora_models::{
    Backbone, Decoder, DecoderInput, Decoders, DecodersCache, ForwardContext, KvCache, RouteTrace,
};
use rayon::prelude::*;

use super::Writer;
use crate::error::{RunProblem, TrainError};
pub use request::{EncodedPrompt, Event, Listener, Request, TokenScore, Variant};
use row::{Row, score};
use waiting::Waiting;

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

/// What an engine has done for a model, and what it holds of its texts.
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

/// A model that writes many texts at once, or several on one base.
pub struct Engine {
    writers: Vec<Arc<Writer>>,
    options: EngineOptions,
    waiting: Waiting,
    reading: Option<Reading>,
    /// Sorted by model.
    rows: Vec<Row>,
    cache: DecodersCache,
    /// What the routers read of the rows of each model; none where rows have joined or left since it was made.
    contexts: Vec<Option<ForwardContext>>,
    steps: u64,
    states: Vec<EngineState>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Engine");
        shown
            .field("options", &self.options)
            .field("states", &self.states);
        shown.finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine for models or runs that write, all of which [can join](Writer::can_join) the first one.
    ///
    /// # Errors
    /// [`RunProblem::NotServed`] for a model that reads a text and writes another, or a mixture of which a
    /// text depends on those beside it.
    ///
    /// # Panics
    /// If there is no model.
    pub fn new(writers: Vec<Arc<Writer>>, options: EngineOptions) -> Result<Self, TrainError> {
        for writer in &writers {
            if let Some(why) = why_not_served(writer) {
                let problem = RunProblem::NotServed { why };
                return Err(TrainError::run(writer.folder(), problem));
            }
        }
        let model = writers[0].decoder();
        let options = EngineOptions {
            // Where positions depend on the longest text of a pass, every text has one of its own.
            max_rows: match model.depends_on_length() {
                true => 1,
                false => options.max_rows.max(1),
            },
            max_context: options.max_context.min(model.max_tokens()).max(1),
            piece: options.piece.max(1),
        };
        Ok(Self {
            options,
            waiting: Waiting::of(writers.len()),
            reading: None,
            rows: Vec::new(),
            cache: decoders(&writers).cache(),
            contexts: vec![None; writers.len()],
            steps: 0,
            states: vec![EngineState::default(); writers.len()],
            writers,
        })
    }

    /// How much it does at once, within what the model can.
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// Bytes that the cache may come to hold.
    pub fn most_cache_bytes(&self) -> usize {
        let tokens = self.options.max_rows * Decoder::cache_room(self.options.max_context);
        let models = self.writers.iter().map(|writer| writer.decoder());
        let most = models.map(Decoder::cache_bytes_per_token).max();
        tokens * most.unwrap_or(0)
    }

    /// What it has done for each model, and what it holds of its texts.
    pub fn states(&self) -> &[EngineState] {
        &self.states
    }

    /// Takes a request to the model of a number in, which is answered in the order of arrival as there is room. One
    /// that cannot be answered fails at once.
    ///
    /// # Panics
    /// If there is no such model.
    pub fn submit(&mut self, model: usize, request: Request, mut listener: Box<dyn Listener>) {
        match request.check(self.options.max_context) {
            Ok(()) => self.waiting.add(model, request, listener),
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
        for mut listener in self.waiting.drain() {
            let _ = listener.hear(Event::Failed(why.to_owned()));
        }
        let reading = self.reading.take().map(|reading| reading.row);
        for mut row in reading.into_iter().chain(self.rows.drain(..)) {
            row.fail(why);
        }
        self.cache = decoders(&self.writers).cache();
        self.contexts.fill(None);
        self.count();
    }

    fn count(&mut self) {
        let width = self.cache.num_tokens();
        for model in 0..self.states.len() {
            let rows = self.rows_of(model).len();
            let mut reading = self.reading.iter();
            let is_read = reading.any(|reading| reading.row.model == model);
            let state = &mut self.states[model];
            state.waiting = self.waiting.count(model);
            state.rows = rows + usize::from(is_read);
            state.cache_tokens = rows * width;
        }
    }

    /// The rows of a model.
    fn rows_of(&self, model: usize) -> Range<usize> {
        let before = |last: usize| self.rows.partition_point(|row| row.model < last);
        before(model)..before(model + 1)
    }

    /// Drops requests whose listener has gone.
    fn leave(&mut self) {
        self.waiting.leave();
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
        for (row, _) in self.rows.iter().zip(stays).filter(|(_, stays)| !**stays) {
            self.contexts[row.model] = None;
        }
        let mut stay = stays.iter();
        self.rows
            .retain(|_| *stay.next().expect("one for each row"));
        self.cache.select(&kept);
    }

    /// Reads prompts up to the tokens of a piece, while there is room for their rows.
    fn read_some(&mut self) {
        let mut left = self.options.piece;
        while left > 0 && self.rows.len() < self.options.max_rows {
            let Some(mut reading) = self.reading.take().or_else(|| self.begin()) else {
                return;
            };
            let missing = reading.row.request.asked.tokens.len() - reading.done;
            let model = self.writers[reading.row.model].decoder();
            let count = match model.reads_prompts_whole() {
                true => missing,
                false => missing.min(left),
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
            let (model, (request, mut listener)) = self.waiting.next()?;
            let writer = &self.writers[model];
            match writer.context_of(&request.asked.text, request.variant) {
                Ok(context) => {
                    return Some(Reading {
                        cache: writer.decoder().cache(),
                        row: Row::new(model, request, context, listener),
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
        let writer = &self.writers[reading.row.model];
        let (model, from) = (writer.decoder(), reading.done);
        let piece = vec![tokens[from..from + count].to_vec()];
        let input = DecoderInput::from_sequences(&piece, &writer.device);
        let context = with_mask(&reading.row.context, [1, count]);
        let hidden = model.forward_cached(&input, &mut reading.cache, &context);
        let hidden = hidden.hidden;
        reading.done += count;
        self.states[reading.row.model].prompt_tokens += count as u64;
        let Some(likeliest) = reading.row.request.prompt_scores else {
            let last = hidden.narrow(1, count - 1, 1);
            reading.next = host(model.logits(last));
            return;
        };
        // The scores behind a token are those of the next one.
        for first in (0..count).step_by(SCORED) {
            let part = SCORED.min(count - first);
            let logits = host(model.logits(hidden.clone().narrow(1, first, part)));
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
        let (model, writer) = (row.model, &self.writers[row.model]);
        if !row.read(scores, writer) {
            return;
        }
        let goes_on = row.choose(&mut next, self.options.max_context, writer);
        self.states[model].new_tokens += row.written.len() as u64;
        if goes_on {
            self.cache.join(model, cache);
            let end = self.rows_of(model).end;
            self.rows.insert(end, row);
            self.contexts[model] = None;
        }
    }

    /// Writes a token of every row.
    fn write(&mut self) {
        let groups = self.groups();
        let newest: Vec<Vec<usize>> = self.rows.iter().map(|row| vec![row.newest()]).collect();
        let models = decoders(&self.writers);
        let mut cache = std::mem::replace(&mut self.cache, models.cache());
        let input = DecoderInput::from_sequences(&newest, &self.writers[0].device);
        let (hidden, routes) = models.forward_cached(&input, &mut cache, &groups);
        let counts = groups.iter().map(|(model, _)| *model);
        let counts: Vec<_> = counts
            .map(|model| (model, self.rows_of(model).len()))
            .collect();
        let mut logits = host(models.logits(hidden, &counts));
        self.cache = cache;
        let width = logits.len() / self.rows.len();
        let (writers, max_context) = (&self.writers, self.options.max_context);
        let before: Vec<usize> = self.rows.iter().map(|row| row.written.len()).collect();
        let chosen = self.rows.par_iter_mut().zip(logits.par_chunks_mut(width));
        let stays: Vec<bool> = chosen
            .map(|(row, logits)| row.choose(logits, max_context, &writers[row.model]))
            .collect();
        for (row, before) in self.rows.iter().zip(before) {
            self.states[row.model].new_tokens += (row.written.len() - before) as u64;
        }
        let is_noted = self.steps.is_multiple_of(LOAD_STEPS);
        for ((model, context), routes) in groups.into_iter().zip(routes) {
            self.contexts[model] = Some(context);
            if is_noted {
                self.note_load(model, &routes);
            }
        }
        self.steps += 1;
        self.keep(&stays);
    }

    /// The models that have rows, with what their routers read.
    fn groups(&mut self) -> Vec<(usize, ForwardContext)> {
        let models = (0..self.writers.len()).map(|model| (model, self.rows_of(model)));
        let models: Vec<_> = models.filter(|(_, rows)| !rows.is_empty()).collect();
        let of = |(model, rows): (usize, Range<usize>)| {
            let context = self.contexts[model].take().unwrap_or_else(|| {
                let contexts = self.rows[rows.clone()].iter().map(|row| &row.context);
                let context = ForwardContext::cat(&contexts.collect::<Vec<_>>());
                with_mask(&context, [rows.len(), 1])
            });
            (model, context)
        };
        models.into_iter().map(of).collect()
    }

    /// Adds what routers gave to each expert, as the mean over sites.
    fn note_load(&mut self, model: usize, routes: &[RouteTrace]) {
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
        let sums = &mut self.states[model].expert_weights;
        sums.resize(experts, 0.0);
        let found = mean.into_data().iter::<f64>().collect::<Vec<_>>();
        for (sum, weight) in sums.iter_mut().zip(found) {
            *sum += weight;
        }
    }
}

/// Why a model cannot write many texts at once, if so.
fn why_not_served(writer: &Writer) -> Option<&'static str> {
    match &writer.backbone {
        Backbone::Decoder(model) if model.mixes_rows() => Some(
            "its routers mix experts by all texts of a pass (pool weights \"released\"), so that \
             answers would depend on other requests",
        ),
        Backbone::Decoder(_) => None,
        _ => Some("it is an encoder-decoder, and only decoders are"),
    }
}

/// The models of writers.
fn decoders(writers: &[Arc<Writer>]) -> Decoders<'_> {
    Decoders::new(writers.iter().map(|writer| writer.decoder()).collect())
}

/// A context for rows of so many real tokens.
fn with_mask(context: &ForwardContext, rows: [usize; 2]) -> ForwardContext {
    ForwardContext {
        mask: Tensor::ones(rows, &context.mask.device()),
        ..context.clone()
    }
}

/// Numbers on the host.
fn host(tensor: Tensor<3>) -> Vec<f32> {
    let values = tensor.into_data().convert::<f32>().try_into_vec::<f32>();
    values.expect("just converted")
}
