//! Candidate answers, scored by their log-probability behind the prompt.

use burn::tensor::{Int, Tensor, TensorData};
use molora_adapters::task_selector;
use molora_models::{
    Backbone, Decoder, DecoderInput, Encoded, ForwardContext, KvCache, RouteTrace, T5, TaskModel,
    last_real,
};

use crate::TrainError;
use crate::data::example::Written;
use crate::data::metrics::accuracy;
use crate::data::{AnswerToken, Normalize, Question, Split};
use crate::model::token_losses;
use crate::report::{Predictions, TaskScore};

use super::Pass;
use super::routing::host;

impl Pass<'_> {
    /// The likeliest candidate for every record, scored, by log-probabilities that are divided as the
    /// recipe says. `accuracy_per_character` and `accuracy_per_token` are those of log-probabilities
    /// divided by the candidates' lengths, `right_nll` the mean of `-log p` of the right candidates.
    pub(super) fn choices(
        &mut self,
        written: &Written,
    ) -> Result<(TaskScore, Predictions), TrainError> {
        let questions = written.questions(self.split);
        let scores = self.scores(questions)?;
        let by = |by: Normalize| -> Vec<usize> {
            let asked = questions.iter().zip(&scores);
            asked
                .map(|(question, scores)| best(&normalized(question, scores, by)))
                .collect()
        };
        let chosen = by(written.writing.normalize);
        let per_character = by(Normalize::Characters);
        let per_token = by(Normalize::Tokens);
        let right: Vec<usize> = questions.iter().filter_map(|q| q.right).collect();
        let nll = scores
            .iter()
            .zip(&right)
            .map(|(scores, &right)| -scores[right]);
        let nll = nll.sum::<f64>() / right.len().max(1) as f64;
        let most = questions.iter().map(|q| q.choices.len()).max().unwrap_or(1);
        let metric = &self.task.metric;
        let score = TaskScore {
            metric: metric.to_string(),
            value: metric.score(&chosen, &right, most),
            n: right.len(),
            accuracy: Some(accuracy(&chosen, &right)),
            majority: metric.majority_share(&right, most),
            loss: Some(nll),
            also: [
                (
                    "accuracy_per_character".to_owned(),
                    accuracy(&per_character, &right),
                ),
                (
                    "accuracy_per_token".to_owned(),
                    accuracy(&per_token, &right),
                ),
                ("right_nll".to_owned(), nll),
            ]
            .into(),
            tests: Default::default(),
        };
        Ok((score, Predictions::Classes(chosen)))
    }

    /// `log p(candidate | prompt)` of every candidate of all questions of the split.
    pub(super) fn scores(&mut self, questions: &[Question]) -> Result<Vec<Vec<f64>>, TrainError> {
        let mut scores = vec![Vec::new(); questions.len()];
        let lengths: Vec<usize> = questions.iter().map(|q| q.prompt.len()).collect();
        let found = self.each_batch(&lengths, true, |pass, rows| {
            let asked: Vec<&Question> = rows.iter().map(|&row| &questions[row]).collect();
            let (found, routes) = pass.log_probabilities(&asked, rows)?;
            for (&row, found) in rows.iter().zip(&found) {
                let numbers = found.iter().copied();
                pass.check_finite(row, "log-probability of an answer", numbers)?;
            }
            Ok((found, routes))
        })?;
        for (row, found) in found
            .into_iter()
            .flat_map(|(rows, found)| rows.into_iter().zip(found))
        {
            scores[row] = found;
        }
        Ok(scores)
    }

    /// `log p(candidate | prompt)` of every candidate of the questions of one batch, and what was decided of the prompts.
    fn log_probabilities(
        &self,
        questions: &[&Question],
        rows: &[usize],
    ) -> Result<(Vec<Vec<f64>>, Vec<RouteTrace>), TrainError> {
        let prompts = self.prompts(questions);
        let context = self.context(&prompts, rows)?;
        let mut asked = Asked::new(self.model, &prompts, context);
        let most = questions.iter().map(|q| q.choices.len()).max().unwrap_or(0);
        let mut found = vec![Vec::new(); questions.len()];
        for number in 0..most {
            let candidates: Vec<&[u32]> = questions
                .iter()
                .map(|question| question.choices.get(number).map_or(&[][..], |c| &c.ids))
                .collect();
            let scores = asked.score(&candidates);
            for ((found, question), score) in found.iter_mut().zip(questions).zip(scores) {
                if number < question.choices.len() {
                    found.push(score);
                }
            }
        }
        Ok((found, asked.routes))
    }

    /// The prompts of questions, padded on the left.
    pub(super) fn prompts(&self, questions: &[&Question]) -> DecoderInput {
        let prompts: Vec<Vec<usize>> = questions
            .iter()
            .map(|question| question.prompt.iter().map(|&id| id as usize).collect())
            .collect();
        DecoderInput::from_sequences(&prompts, self.device)
    }

    /// The context of a pass over prompts that are records `rows` of the split.
    pub(super) fn context(
        &self,
        prompts: &DecoderInput,
        rows: &[usize],
    ) -> Result<ForwardContext, TrainError> {
        let tasks = vec![self.number; rows.len()];
        let guidance = self
            .guide
            .map(|guide| guide.of(&tasks, rows, self.split, self.device));
        let tasks = vec![self.known; rows.len()];
        Ok(ForwardContext {
            tasks: Some(task_selector(&tasks, self.num_tasks, self.device)?),
            guidance: guidance.unwrap_or_default(),
            ..ForwardContext::new(prompts.mask.clone().float())
        })
    }
}

impl Written {
    /// The questions of a split.
    pub(crate) fn questions(&self, split: Split) -> &[Question] {
        let [train, validation, test] = &self.questions;
        match split {
            Split::Train => train,
            Split::Validation => validation,
            Split::Test => test,
        }
    }
}

/// Log-probabilities of a question's candidates, divided by their lengths.
pub(super) fn normalized(question: &Question, scores: &[f64], by: Normalize) -> Vec<f64> {
    let lengths = question.choices.iter().map(|choice| choice.length(by));
    scores
        .iter()
        .zip(lengths)
        .map(|(score, n)| score / n)
        .collect()
}

/// The first of the largest numbers.
fn best(scores: &[f64]) -> usize {
    let first = |best: usize, (place, score): (usize, &f64)| match *score > scores[best] {
        true => place,
        false => best,
    };
    scores.iter().enumerate().fold(0, first)
}

/// Prompts that were read once, for any number of candidates behind them.
struct Asked<'a> {
    model: &'a TaskModel,
    state: State<'a>,
    context: ForwardContext,
    routes: Vec<RouteTrace>,
}

#[allow(clippy::large_enum_variant, reason = "there is one for a batch")]
enum State<'a> {
    Decoder {
        decoder: &'a Decoder,
        cache: KvCache,
        /// States of the last tokens of the prompts, `[B, 1, D]`.
        last: Tensor<3>,
    },
    EncoderDecoder {
        model: &'a T5,
        encoded: Encoded,
    },
}

impl<'a> Asked<'a> {
    fn new(model: &'a TaskModel, prompts: &DecoderInput, context: ForwardContext) -> Self {
        let (state, routes) = match &model.backbone {
            Backbone::Encoder(_) => panic!("an encoder writes nothing"),
            Backbone::Decoder(decoder) => {
                let mut cache = decoder.cache();
                let output = decoder.forward_cached(prompts, &mut cache, &context);
                let last = last_real(output.hidden, &prompts.mask);
                let state = State::Decoder {
                    decoder,
                    cache,
                    last,
                };
                (state, output.routes)
            }
            Backbone::EncoderDecoder(t5) => {
                let encoded = t5.encode(prompts, &context);
                let routes = encoded.routes.clone();
                (State::EncoderDecoder { model: t5, encoded }, routes)
            }
        };
        Self {
            model,
            state,
            context,
            routes,
        }
    }

    /// `log p` of one candidate for each row; 0 for an empty one.
    fn score(&mut self, candidates: &[&[u32]]) -> Vec<f64> {
        let answers: Vec<AnswerToken> = candidates
            .iter()
            .enumerate()
            .flat_map(|(row, ids)| {
                ids.iter()
                    .enumerate()
                    .map(move |(place, &token)| AnswerToken {
                        row,
                        place,
                        token: token as i32,
                        weight: 1.0,
                    })
            })
            .collect();
        let mut scores = vec![0.0; candidates.len()];
        if answers.is_empty() {
            return scores;
        }
        let states = self.states(candidates);
        let losses = host(token_losses(self.model, states, &answers, 0.0));
        for (answer, loss) in answers.iter().zip(losses) {
            scores[answer.row] -= loss;
        }
        scores
    }

    /// The states that tell the tokens of candidates, `[B, S, D]`.
    fn states(&self, candidates: &[&[u32]]) -> Tensor<3> {
        let device = self.context.mask.device();
        match &self.state {
            State::Decoder {
                decoder,
                cache,
                last,
            } => {
                // The last token of a candidate tells nothing that is asked.
                let fronts = candidates.iter().map(|ids| &ids[..ids.len().max(1) - 1]);
                let fronts: Vec<&[u32]> = fronts.collect();
                let Some(input) = padded(&fronts, None, &device) else {
                    return last.clone();
                };
                let context = with_mask(&self.context, &input);
                let hidden = decoder
                    .forward_cached(&input, &mut cache.clone(), &context)
                    .hidden;
                Tensor::cat(vec![last.clone(), hidden], 1)
            }
            State::EncoderDecoder { model, encoded } => {
                let fronts = candidates.iter().map(|ids| &ids[..ids.len().max(1) - 1]);
                let fronts: Vec<&[u32]> = fronts.collect();
                let input = padded(&fronts, Some(model.start_token()), &device);
                let input = input.expect("a start token at least");
                let context = with_mask(&self.context, &input);
                model.decode(&input, encoded, &context).hidden
            }
        }
    }
}

fn with_mask(context: &ForwardContext, input: &DecoderInput) -> ForwardContext {
    ForwardContext {
        mask: input.mask.clone().float(),
        ..context.clone()
    }
}

/// Token sequences padded on the right, each behind a start token if there is one; `None` if none has
/// a token.
fn padded(
    sequences: &[&[u32]],
    start: Option<usize>,
    device: &burn::tensor::Device,
) -> Option<DecoderInput> {
    let start: Vec<u32> = start.into_iter().map(|id| id as u32).collect();
    let width = sequences.iter().map(|ids| start.len() + ids.len()).max()?;
    if width == 0 {
        return None;
    }
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for (row, sequence) in sequences.iter().enumerate() {
        ids.extend(start.iter().chain(*sequence).map(|&id| id as i32));
        mask.resize(ids.len(), true);
        ids.resize((row + 1) * width, 0);
        mask.resize((row + 1) * width, false);
    }
    let shape = [sequences.len(), width];
    Some(DecoderInput {
        ids: Tensor::<2, Int>::from_data(TensorData::new(ids, shape), device),
        mask: Tensor::from_data(TensorData::new(mask, shape), device),
        segments: None,
    })
}
