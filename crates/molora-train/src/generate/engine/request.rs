//! Requests to an engine, and its events.

use std::ops::ControlFlow;

use molora_models::{Finish, GenerateError, Penalties, Sampling};

/// Which adapter of a run writes: the mixture for texts of no known task by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The number of the task that gates and routers are told.
    pub task: Option<usize>,
    /// The number of the expert that writes alone, whatever routers decide.
    pub expert: Option<usize>,
}

/// A prompt as a model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// Its tokens, of which there is at least one.
    pub tokens: Vec<usize>,
    /// What routers read that go by a text.
    pub text: String,
    /// Bytes of white space at its end that are left to the answer.
    pub left_out: usize,
    /// Tokens that end the answer.
    pub stop_tokens: Vec<usize>,
}

/// One text that is to be written.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt.
    pub asked: EncodedPrompt,
    /// What writes.
    pub variant: Variant,
    /// Most new tokens.
    pub max_new_tokens: usize,
    /// Texts that end what is written; they are not part of it.
    pub stop: Vec<String>,
    /// How tokens are drawn; the likeliest is taken where absent.
    pub sampling: Option<Sampling>,
    /// How much less likely tokens get that stand in the text.
    pub penalties: Penalties,
    /// Seed of all draws, which depend on nothing else.
    pub seed: u64,
    /// The number of the text among several of the same prompt and seed.
    pub number: usize,
    /// Whether new tokens come with their log-probabilities, and with those of so many likeliest ones.
    pub scores: Option<usize>,
    /// The same for the tokens of the prompt.
    pub prompt_scores: Option<usize>,
}

impl Request {
    /// Refuses what no answer can be chosen by, in a model that reads so many tokens.
    ///
    /// # Errors
    /// A prompt without tokens or with more than `max_tokens`, or a number out of its range.
    pub fn check(&self, max_tokens: usize) -> Result<(), GenerateError> {
        let sampling = self.sampling.and_then(|sampling| sampling.problem());
        if let Some(problem) = sampling.or_else(|| self.penalties.problem()) {
            return Err(GenerateError::Sampling(problem));
        }
        match self.asked.tokens.len() {
            0 => Err(GenerateError::EmptyPrompt { row: 0 }),
            tokens if tokens > max_tokens => Err(GenerateError::PromptTooLong {
                row: 0,
                tokens,
                max_tokens,
            }),
            _ => Ok(()),
        }
    }
}

/// How likely a token was by the model, before penalties and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub token: usize,
    /// Its log-probability.
    pub log_probability: f64,
    /// The likeliest tokens in its place with their log-probabilities, the likeliest first.
    pub likeliest: Vec<(usize, f64)>,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt was read; with the scores of all its tokens but the first, if they were asked for.
    Read(Vec<TokenScore>),
    /// A token was written. One that ends the text is told too, and has no text.
    Token {
        /// The token.
        token: usize,
        /// What the text has grown by: nothing as long as the token ends within a character, or the text in
        /// what may become a text that ends it.
        text: String,
        /// How likely it was, if that was asked for.
        score: Option<TokenScore>,
    },
    /// The text is complete.
    End {
        /// Why.
        finish: Finish,
        /// All of it.
        text: String,
        /// What it has grown by since the last token.
        rest: String,
    },
    /// Nothing more can be written.
    Failed(String),
}

/// The one who asked.
pub trait Listener: Send {
    /// Takes an event in. A break ends the request.
    fn hear(&mut self, event: Event) -> ControlFlow<()>;

    /// Whether the listener of the answer has gone.
    fn is_gone(&self) -> bool;
}
