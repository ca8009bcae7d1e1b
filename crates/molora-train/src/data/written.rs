//! Records as tokens for models that generate their answers.

mod config;
mod templates;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::error::DataError;
use super::example::{Example, Target};
use super::message::{Chat, Part};
use super::prompt::{self, Piece, PromptFormat};
use super::record::{Label, Record};
use super::task::{Task, TaskMeta};
use super::tokenizer::TextTokenizer;
pub use config::{Average, Normalize, PromptStyle, ScoredTemplates, WritingConfig};
pub use templates::Templates;

/// What a model is asked for a record, and what is right.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Whether the record has a prompt; plain text has none but the tokens that begin all texts.
    pub is_asked: bool,
    /// The candidates, for tasks with choices or labels.
    pub choices: Vec<Candidate>,
    /// Number of the right candidate.
    pub right: Option<usize>,
    /// The right answer as text.
    pub output: String,
}

/// Which parts of chats a format shows.
pub(super) type Shown = BTreeMap<&'static str, bool>;

/// The tokens of a text, without the mark of its end.
struct Unended {
    ids: Vec<u32>,
    /// Which of them are targets.
    answers: Vec<bool>,
    /// Where the last piece begins.
    last: usize,
}

/// A candidate answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its tokens behind those of the prompt.
    pub ids: Vec<u32>,
    /// Its length in characters, without the gap in front of it.
    pub characters: usize,
}

impl Candidate {
    /// What its log-probability is divided by.
    pub(crate) fn length(&self, by: Normalize) -> f64 {
        match by {
            Normalize::None => 1.0,
            Normalize::Tokens => self.ids.len().max(1) as f64,
            Normalize::Characters => self.characters as f64,
        }
    }
}

/// How texts become tokens for a generative model, and its tokens texts.
#[derive(Debug)]
pub struct Writing {
    /// The model's tokenizer.
    pub tokenizer: TextTokenizer,
    /// How prompts look.
    pub format: PromptFormat,
    /// Texts are cut at this many tokens.
    pub max_length: usize,
    /// Most tokens of a generated answer.
    pub max_new_tokens: usize,
    /// What the log-probability of a candidate is divided by.
    pub normalize: Normalize,
    /// Beams of the search for a generated answer, and the power of its length; see [`WritingConfig`].
    pub beams: (usize, f64),
    /// Tokens that end an answer; the first of them is learned.
    pub end_tokens: Vec<usize>,
    /// The token that every text of an encoder-decoder starts with; `None` for a decoder.
    pub start_token: Option<usize>,
    /// Number of records that were cut since the last warning.
    cuts: AtomicUsize,
}

impl Writing {
    /// A way to write for a model with this tokenizer.
    pub fn new(
        tokenizer: TextTokenizer,
        format: PromptFormat,
        config: &WritingConfig,
        end_tokens: Vec<usize>,
        start_token: Option<usize>,
    ) -> Self {
        Self {
            tokenizer,
            format,
            max_length: config.max_length,
            max_new_tokens: config.max_new_tokens,
            normalize: config.normalize,
            beams: (config.num_beams, config.length_penalty),
            end_tokens,
            start_token,
            cuts: AtomicUsize::new(0),
        }
    }

    /// A record with its answer.
    ///
    /// # Errors
    /// If its text cannot be put together or tokenized, or has no token.
    pub fn example(
        &self,
        record: &Record,
        meta: &TaskMeta,
        task: usize,
    ) -> Result<Example, DataError> {
        if let Label::Number(number) = record.label {
            let prompt = self.prompt(record, meta, 0)?;
            return Ok(plain(prompt, task, Target::Number(number)));
        }
        let pieces = prompt::pieces(record, meta, &self.format)?;
        if self.start_token.is_some() {
            return self.pair(record, meta, &pieces, task);
        }
        self.said(record, &pieces, task)
    }

    /// Pieces of which the answers are targets.
    fn said(&self, record: &Record, pieces: &[Piece], task: usize) -> Result<Example, DataError> {
        let (ids, answers) = self.tokens(pieces, self.max_length)?;
        // The first token has nothing before it that could predict it.
        if !answers.iter().skip(1).any(|&is_answer| is_answer) {
            let id = record.id.clone();
            return Err(match pieces.iter().any(|piece| piece.is_answer) {
                true => DataError::NoTokens { id },
                false => DataError::NothingToLearn { id },
            });
        }
        Ok(plain(ids, task, Target::Answer(answers)))
    }

    /// A record as it is trained on: [`example`](Self::example) or, of a chat whose template rewrites
    /// earlier turns, one for each turn that is learned.
    ///
    /// # Errors
    /// As [`example`](Self::example).
    pub fn turns(
        &self,
        record: &Record,
        meta: &TaskMeta,
        task: usize,
    ) -> Result<Vec<Example>, DataError> {
        if self.start_token.is_some() || record.messages.is_empty() {
            return Ok(vec![self.example(record, meta, task)?]);
        }
        let turns = prompt::turns(record, meta, &self.format)?;
        let examples = turns.iter().map(|pieces| self.said(record, pieces, task));
        examples.collect()
    }

    /// Refuses chats whose text would lack calls of functions or their results, and warns of what else it
    /// would lack.
    ///
    /// # Errors
    /// [`DataError::NotShown`] with the record.
    pub(super) fn check(&self, task: &Task) -> Result<(), DataError> {
        let mut known = Shown::new();
        let mut records = [&task.train, &task.validation, &task.test]
            .into_iter()
            .flatten();
        records.try_for_each(|record| self.check_record(record, &task.meta, &mut known))
    }

    /// [`check`](Self::check) of one record of a task, of whose records `known` was found.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(super) fn check_record(
        &self,
        record: &Record,
        meta: &TaskMeta,
        known: &mut Shown,
    ) -> Result<(), DataError> {
        for part in Chat::parts(&record.messages, record.tools.as_deref()) {
            let is_first = !known.contains_key(part.name());
            let is_shown = *known
                .entry(part.name())
                .or_insert_with(|| self.format.shows(part));
            match part {
                _ if is_shown => {}
                Part::Calls | Part::Results => {
                    return Err(DataError::NotShown {
                        id: record.id.clone(),
                        part: part.name(),
                        format: self.format.name(),
                    });
                }
                _ if is_first => {
                    let (task, part, format) = (&meta.name, part.name(), self.format.name());
                    tracing::warn!("task {task}: {format} does not show {part}");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A record for an encoder-decoder: what it reads and what it writes.
    fn pair(
        &self,
        record: &Record,
        meta: &TaskMeta,
        pieces: &[Piece],
        task: usize,
    ) -> Result<Example, DataError> {
        let answer = pieces.last().filter(|piece| piece.is_answer);
        let Some(answer) = answer.map(|piece| piece.text.trim()) else {
            return Err(DataError::NothingToLearn {
                id: record.id.clone(),
            });
        };
        let mut text: Vec<u32> = self.start_token.iter().map(|&id| id as u32).collect();
        text.extend(self.tokenizer.encode_whole(answer, true)?);
        if text.len() > self.max_length {
            self.cuts.fetch_add(1, Ordering::Relaxed);
            text.truncate(self.max_length);
        }
        let source = self.prompt(record, meta, 0)?;
        if text.len() < 2 || source.is_empty() {
            return Err(DataError::NoTokens {
                id: record.id.clone(),
            });
        }
        Ok(plain(source, task, Target::Text(text)))
    }

    /// What the model is asked for a record.
    ///
    /// # Errors
    /// As [`example`](Self::example).
    pub fn question(&self, record: &Record, meta: &TaskMeta) -> Result<Question, DataError> {
        let texts = prompt::choices(record, meta);
        let (prompt, candidates) = match self.start_token {
            Some(_) => self.candidates(record, meta, &texts)?,
            None => self.asked(record, meta, &texts)?,
        };
        let choice = |(text, ids): (&String, Vec<u32>)| self.choice(record, text, ids);
        let choices = texts.iter().zip(candidates).map(choice);
        let choices: Vec<Candidate> = choices.collect::<Result<_, _>>()?;
        let longest = choices.iter().map(|choice| choice.ids.len()).max();
        let prompt = match self.start_token {
            Some(_) => prompt,
            None => self.cut_prompt(prompt, longest.unwrap_or(self.max_new_tokens)),
        };
        // A text without a prompt is asked by nothing but the token that begins all texts.
        if prompt.is_empty() && !texts.is_empty() {
            return Err(DataError::NoTokens {
                id: record.id.clone(),
            });
        }
        let is_asked = !prompt::prompt(record, meta, &self.format)?.is_empty();
        Ok(Question {
            is_asked: is_asked && !prompt.is_empty(),
            prompt,
            choices,
            right: match record.label {
                Label::Index(index) => Some(index),
                _ => None,
            },
            output: match record.messages.last() {
                Some(last) if last.tool_calls.is_some() => self.call(record, meta)?,
                _ => self.format.answer_of(&record.output).to_owned(),
            },
        })
    }

    /// The text that a model which calls functions as a record does would have written.
    fn call(&self, record: &Record, meta: &TaskMeta) -> Result<String, DataError> {
        let pieces = prompt::pieces(record, meta, &self.format)?;
        let text = pieces.last().map_or("", |piece| &piece.text);
        let ids = self.tokenizer.encode_whole(text, false)?;
        let is_end = |id: &&u32| self.end_tokens.contains(&(**id as usize));
        let said: Vec<u32> = ids.iter().take_while(|id| !is_end(id)).copied().collect();
        let text = self.tokenizer.decode(&said)?;
        Ok(self.format.answer_of(&text).trim().to_owned())
    }

    /// A candidate answer with its tokens.
    fn choice(&self, record: &Record, text: &str, ids: Vec<u32>) -> Result<Candidate, DataError> {
        if ids.is_empty() || ids.len() >= self.max_length {
            return Err(DataError::Candidate {
                id: record.id.clone(),
                text: text.into(),
                tokens: ids.len(),
                max_length: self.max_length,
            });
        }
        let characters = text.chars().count().max(1);
        Ok(Candidate { ids, characters })
    }

    /// What an encoder-decoder reads, and the tokens of the candidates.
    fn candidates(
        &self,
        record: &Record,
        meta: &TaskMeta,
        texts: &[String],
    ) -> Result<(Vec<u32>, Vec<Vec<u32>>), DataError> {
        let mut candidates = Vec::with_capacity(texts.len());
        for text in texts {
            let pieces = prompt::pieces_with_answer(record, meta, &self.format, text)?;
            let answer = pieces.last().map_or("", |piece| piece.text.trim());
            // With the mark of its end, as it is learned.
            candidates.push(self.tokenizer.encode_whole(answer, true)?);
        }
        Ok((self.prompt(record, meta, 0)?, candidates))
    }

    /// The tokens that a decoder is given, and those of the candidates behind them.
    ///
    /// Given is what the prompt alone and the whole text, as it is learned, begin with alike: a token
    /// that reaches from the prompt into an answer, such as a space with the word behind it, is the
    /// answer's, and where candidates differ in this, that of all of them. Without candidates the
    /// right answer says where the prompt ends.
    fn asked(
        &self,
        record: &Record,
        meta: &TaskMeta,
        texts: &[String],
    ) -> Result<(Vec<u32>, Vec<Vec<u32>>), DataError> {
        let right = std::slice::from_ref(&record.output);
        let answers = if texts.is_empty() { right } else { texts };
        let mut wholes = Vec::with_capacity(answers.len());
        let mut end = usize::MAX;
        for answer in answers {
            let pieces = prompt::pieces_with_answer(record, meta, &self.format, answer)?;
            let whole = self.unended(&pieces)?;
            end = end.min(whole.last);
            wholes.push(whole.ids);
        }
        let prompt = match (end, texts) {
            // A word that the answer alone ends: without the beginning of a text nothing else is left.
            (0, []) => {
                self.unended(&prompt::prompt(record, meta, &self.format)?)?
                    .ids
            }
            _ => wholes[0][..end].to_vec(),
        };
        let behind = wholes.iter().take(texts.len());
        Ok((prompt, behind.map(|ids| ids[end..].to_vec()).collect()))
    }

    /// The tokens of a record's prompt, cut at the beginning so that `room` tokens fit behind it.
    fn prompt(&self, record: &Record, meta: &TaskMeta, room: usize) -> Result<Vec<u32>, DataError> {
        let pieces = prompt::prompt(record, meta, &self.format)?;
        if self.start_token.is_some() {
            let text: String = pieces.iter().map(|piece| &piece.text[..]).collect();
            let ids = self.tokenizer.encode_whole(&text, true)?;
            return Ok(self.cut(ids, self.max_length, 0));
        }
        Ok(self.cut_prompt(self.unended(&pieces)?.ids, room))
    }

    /// Cuts a decoder's prompt at its beginning so that `room` tokens fit behind it.
    fn cut_prompt(&self, ids: Vec<u32>, room: usize) -> Vec<u32> {
        let room = room.min(self.max_length / 2);
        self.cut(ids, self.max_length - room, self.special().len())
    }

    /// Tokens with the mark of the end, cut to `limit`, and which of them are answers.
    fn tokens(&self, pieces: &[Piece], limit: usize) -> Result<(Vec<u32>, Vec<bool>), DataError> {
        let Unended {
            mut ids,
            mut answers,
            ..
        } = self.unended(pieces)?;
        let is_plain = matches!(self.format, PromptFormat::Plain);
        if let Some(&end) = self.end_tokens.first().filter(|_| is_plain) {
            ids.push(end as u32);
            answers.push(pieces.last().is_none_or(|piece| piece.is_answer));
        }
        if ids.len() > limit {
            self.cuts.fetch_add(1, Ordering::Relaxed);
            let prompt = answers.iter().take_while(|&&is_answer| !is_answer).count();
            // From the beginning of the prompt, and from the end of an answer that is too long itself.
            let from_prompt = (ids.len() - limit).min(prompt.saturating_sub(1));
            let special = self.special().len().min(from_prompt);
            ids.drain(special..special + from_prompt);
            answers.drain(special..special + from_prompt);
            ids.truncate(limit);
            answers.truncate(limit);
        }
        Ok((ids, answers))
    }

    /// Tokens of pieces that follow each other. A token that reaches over the end of a piece belongs
    /// to the later one.
    fn unended(&self, pieces: &[Piece]) -> Result<Unended, DataError> {
        let special = self.special();
        let mut answers = vec![false; special.len()];
        let (mut text, mut ids, mut last) = (String::new(), Vec::new(), special.len());
        for piece in pieces {
            text += &piece.text;
            let whole = self.tokenizer.encode_whole(&text, false)?;
            let same = ids.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            last = special.len() + same;
            answers.truncate(last);
            answers.resize(special.len() + whole.len(), piece.is_answer);
            ids = whole;
        }
        let ids = [special, &ids].concat();
        Ok(Unended { ids, answers, last })
    }

    /// The tokens that stand in front of every text; a chat template writes its own.
    fn special(&self) -> &[u32] {
        match self.format {
            PromptFormat::Plain => self.tokenizer.front(),
            PromptFormat::Chat(_) => &[],
        }
    }

    /// Cuts tokens to `limit` at their beginning, behind the first `special` of them.
    fn cut(&self, mut ids: Vec<u32>, limit: usize, special: usize) -> Vec<u32> {
        if ids.len() > limit {
            self.cuts.fetch_add(1, Ordering::Relaxed);
            ids.drain(special..special + ids.len() - limit);
        }
        ids
    }

    /// Number of texts that were cut since it was asked before.
    pub(super) fn take_cuts(&self) -> usize {
        self.cuts.swap(0, Ordering::Relaxed)
    }
}

fn plain(ids: Vec<u32>, task: usize, target: Target) -> Example {
    Example {
        type_ids: vec![0; ids.len()],
        ids,
        task,
        target,
    }
}

#[cfg(test)]
mod tests;
