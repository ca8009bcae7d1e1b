//! Text generation.

use std::ops::ControlFlow;

use burn::tensor::{Bool, Int, Tensor, TensorData};
use molora_kernels::random::Seed;

use super::model::one_token;
use super::sample::{Sampling, choose as choose_token};
use super::{Decoder, DecoderInput};
use crate::ForwardContext;

/// How texts are continued.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most new tokens of a row.
    pub max_new_tokens: usize,
    /// Tokens that end a row; they are not part of the result.
    pub stop_tokens: Vec<usize>,
    /// Tokens that are never written.
    pub suppressed_tokens: Vec<usize>,
    /// How tokens are drawn; the likeliest is taken where absent.
    pub sampling: Option<Sampling>,
    /// Key of all draws. Row `r` draws its token `n` by `seed.index(first_row + r).index(n)`.
    pub seed: Seed,
    /// Number of the first row, where a batch is one of several.
    pub first_row: usize,
}

impl Default for GenerateOptions {
    /// The likeliest 64 tokens.
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            stop_tokens: Vec::new(),
            suppressed_tokens: Vec::new(),
            sampling: None,
            seed: Seed::new(0),
            first_row: 0,
        }
    }
}

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By one of the stop tokens.
    StopToken,
    /// It has as many new tokens as were requested.
    MaxNewTokens,
    /// Another token would have no position in the model.
    ContextEnd,
    /// By the one who watches it.
    Watcher,
}

/// Sees every token that is written: the row's number in the batch, and all of its tokens. A break ends
/// the row.
pub type Watcher<'a> = &'a mut dyn FnMut(usize, &[usize]) -> ControlFlow<()>;

/// The continuation of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens, without the stop token.
    pub tokens: Vec<usize>,
    /// Why there are no more.
    pub finish: Finish,
}

/// Why nothing can be generated.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GenerateError {
    /// A row without a token.
    #[error("prompt {row} is empty, expected at least one token")]
    EmptyPrompt {
        /// The row, counted from 0.
        row: usize,
    },
    /// A row that is longer than the model's context.
    #[error("prompt {row} has {tokens} tokens, expected at most {max_tokens}, the model's context")]
    PromptTooLong {
        /// The row, counted from 0.
        row: usize,
        /// Its tokens.
        tokens: usize,
        /// The model's longest sequence.
        max_tokens: usize,
    },
    /// A number that is no token of the model.
    #[error("prompt {row} has token {token}, expected 0 to {last}", last = vocab_size - 1)]
    OutsideVocabulary {
        /// The row, counted from 0.
        row: usize,
        /// The number.
        token: i64,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A number of [`Sampling`] is out of its range.
    #[error("{0}")]
    Sampling(String),
    /// Scores that no token can be chosen from.
    #[error("scores for token {step} of row {row} are not finite")]
    NotFinite {
        /// The row, counted from 0.
        row: usize,
        /// How many new tokens the row has.
        step: usize,
    },
}

/// A row while it is written.
pub(crate) struct Row {
    /// Tokens of the prompt.
    prompt: usize,
    tokens: Vec<usize>,
    finish: Option<Finish>,
}

impl Decoder {
    /// Continues every row of a padded batch of prompts, with a cache of keys and values.
    ///
    /// Padding may be on either side; a row's result does not depend on it. Everything in `context`
    /// but the mask, which is made here, applies to every step. A model under training is better
    /// given as its `valid()` copy, which tracks no gradients.
    ///
    /// # Errors
    /// An empty prompt, one that is longer than the context or has a token outside of the
    /// vocabulary, a number of the sampling out of range, or scores that are not finite.
    ///
    /// # Panics
    /// If the prompts are packed.
    pub fn generate(
        &self,
        prompts: &DecoderInput,
        options: &GenerateOptions,
        context: &ForwardContext,
    ) -> Result<Vec<Generated>, GenerateError> {
        let watch = &mut |_: usize, _: &[usize]| ControlFlow::Continue(());
        self.generate_watched(prompts, options, context, watch)
    }

    /// As [`generate`](Self::generate), with a callback that gets each token and can end a row.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    ///
    /// # Panics
    /// As [`generate`](Self::generate).
    pub fn generate_watched(
        &self,
        prompts: &DecoderInput,
        options: &GenerateOptions,
        context: &ForwardContext,
        watch: Watcher<'_>,
    ) -> Result<Vec<Generated>, GenerateError> {
        let rows = check_prompts(prompts, self.vocab_size(), self.max_tokens())?;
        let mut cache = self.cache();
        let input = prompts.with_plain_padding();
        let step = |input: &DecoderInput| {
            let context = with_mask(context, &input.mask);
            let [_, tokens] = input.ids.dims();
            one_token(tokens, &input.ids.device(), || {
                let hidden = self.forward_cached(input, &mut cache, &context).hidden;
                self.logits(last_real(hidden, &input.mask))
            })
        };
        write_on(rows, input, options, self.max_tokens(), step, watch)
    }
}

/// Continues rows, whose tokens so far are `input`, by the scores `[B, 1, V]` of `step`.
pub(crate) fn write_on(
    mut rows: Vec<Row>,
    mut input: DecoderInput,
    options: &GenerateOptions,
    max_tokens: usize,
    mut step: impl FnMut(&DecoderInput) -> Tensor<3>,
    watch: Watcher<'_>,
) -> Result<Vec<Generated>, GenerateError> {
    let problem = options.sampling.and_then(|sampling| sampling.problem());
    if let Some(problem) = problem {
        return Err(GenerateError::Sampling(problem));
    }
    end_full(&mut rows, options, max_tokens);
    while rows.iter().any(|row| row.finish.is_none()) {
        choose(&mut rows, step(&input), options, watch)?;
        end_full(&mut rows, options, max_tokens);
        input = next_input(&rows, &input);
    }
    let done = rows.into_iter().map(|row| Generated {
        tokens: row.tokens,
        finish: row.finish.expect("the loop ends when all rows have"),
    });
    Ok(done.collect())
}

/// Ends the rows that cannot get another token.
fn end_full(rows: &mut [Row], options: &GenerateOptions, max_tokens: usize) {
    for row in rows.iter_mut().filter(|row| row.finish.is_none()) {
        if row.tokens.len() >= options.max_new_tokens {
            row.finish = Some(Finish::MaxNewTokens);
        } else if row.prompt + row.tokens.len() > max_tokens {
            row.finish = Some(Finish::ContextEnd);
        }
    }
}

/// So many rows of one token.
pub(crate) fn one_token_rows(count: usize) -> Vec<Row> {
    let row = |_| Row {
        prompt: 1,
        tokens: Vec::new(),
        finish: None,
    };
    (0..count).map(row).collect()
}

/// Checks the prompts of a padded batch.
pub(crate) fn check_prompts(
    prompts: &DecoderInput,
    vocab_size: usize,
    max_tokens: usize,
) -> Result<Vec<Row>, GenerateError> {
    let width = prompts.ids.dims()[1].max(1);
    let (ids, mask) = (integers(&prompts.ids), truths(&prompts.mask));
    let is_token = |token: i64| usize::try_from(token).is_ok_and(|t| t < vocab_size);
    let check = |(row, (ids, mask)): (usize, (&[i64], &[bool]))| {
        let real = ids.iter().zip(mask).filter(|(_, is_real)| **is_real);
        if let Some((&token, _)) = real.clone().find(|(token, _)| !is_token(**token)) {
            return Err(GenerateError::OutsideVocabulary {
                row,
                token,
                vocab_size,
            });
        }
        match real.count() {
            0 => Err(GenerateError::EmptyPrompt { row }),
            tokens if tokens > max_tokens => Err(GenerateError::PromptTooLong {
                row,
                tokens,
                max_tokens,
            }),
            prompt => Ok(Row {
                prompt,
                tokens: Vec::new(),
                finish: None,
            }),
        }
    };
    let rows = ids.chunks(width).zip(mask.chunks(width));
    rows.enumerate().map(check).collect()
}

/// The context of a step; the only place where generation makes one.
pub(crate) fn with_mask(context: &ForwardContext, mask: &Tensor<2, Bool>) -> ForwardContext {
    ForwardContext {
        mask: mask.clone().float(),
        ..context.clone()
    }
}

/// The hidden state of the last real token of each row, `[B, T, D]` to `[B, 1, D]`; of a row without
/// one, that of the first token.
pub fn last_real(hidden: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<3> {
    let [batch, tokens, width] = hidden.dims();
    if tokens == 1 {
        return hidden;
    }
    let mask = truths(mask);
    let last = mask.chunks(tokens).enumerate().map(|(row, mask)| {
        let last = mask.iter().rposition(|&is_real| is_real).unwrap_or(0);
        (row * tokens + last) as i64
    });
    let last = TensorData::new(last.collect::<Vec<i64>>(), [batch]);
    let last = Tensor::<1, Int>::from_data(last, &hidden.device());
    hidden
        .reshape([batch * tokens, width])
        .select(0, last)
        .reshape([batch, 1, width])
}

/// Adds a token to every unfinished row, by the scores `[B, 1, V]`.
fn choose(
    rows: &mut [Row],
    logits: Tensor<3>,
    options: &GenerateOptions,
    watch: Watcher<'_>,
) -> Result<(), GenerateError> {
    let vocab_size = logits.dims()[2];
    let logits = logits.into_data().convert::<f32>().try_into_vec::<f32>();
    let mut logits = logits.expect("just converted");
    for (index, (row, logits)) in rows
        .iter_mut()
        .zip(logits.chunks_mut(vocab_size))
        .enumerate()
    {
        if row.finish.is_some() {
            continue;
        }
        let step = row.tokens.len();
        if !logits.iter().all(|score| score.is_finite()) {
            return Err(GenerateError::NotFinite { row: index, step });
        }
        for &token in options
            .suppressed_tokens
            .iter()
            .filter(|token| **token < vocab_size)
        {
            logits[token] = f32::NEG_INFINITY;
        }
        let seed = options.seed.index((options.first_row + index) as u64);
        let seed = seed.index(step as u64);
        let token = choose_token(logits, options.sampling.as_ref(), seed);
        match options.stop_tokens.contains(&token) {
            true => row.finish = Some(Finish::StopToken),
            false => {
                row.tokens.push(token);
                if watch(index, &row.tokens).is_break() {
                    row.finish = Some(Finish::Watcher);
                }
            }
        }
    }
    Ok(())
}

/// The newest token of every row; of rows that have ended, padding.
fn next_input(rows: &[Row], input: &DecoderInput) -> DecoderInput {
    let (device, shape) = (input.ids.device(), [rows.len(), 1]);
    let newest = |row: &Row| match (row.finish, row.tokens.last()) {
        (None, Some(&token)) => token as i64,
        _ => 0,
    };
    let ids: Vec<i64> = rows.iter().map(newest).collect();
    let mask: Vec<bool> = rows.iter().map(|row| row.finish.is_none()).collect();
    DecoderInput {
        ids: Tensor::from_data(TensorData::new(ids, shape), &device),
        mask: Tensor::from_data(TensorData::new(mask, shape), &device),
        segments: None,
    }
}

fn integers(tensor: &Tensor<2, Int>) -> Vec<i64> {
    let values = tensor.to_data().convert::<i64>().try_into_vec();
    values.expect("just converted")
}

fn truths(tensor: &Tensor<2, Bool>) -> Vec<bool> {
    let values = tensor.to_data().convert::<bool>().try_into_vec();
    values.expect("just converted")
}
