//! Texts that the model generates freely, and the log-probability of the right ones.

use molora_kernels::random::Seed;
use molora_models::{Backbone, BeamOptions, GenerateOptions, Generated};

use crate::TrainError;
use crate::data::Question;
use crate::data::example::Written;
use crate::model::token_losses;
use crate::report::{Predictions, TaskScore};

use super::Pass;
use super::routing::host;

impl Pass<'_> {
    /// The likeliest text for every record, compared with the right one. `answer_nll` is the mean of
    /// `-log p` over the tokens of the right answers, and `perplexity` its exponential.
    ///
    /// Texts without a prompt, or where none are asked for, are not written: the score then is
    /// `token_probability`, the geometric mean of the right tokens' probabilities.
    pub(super) fn texts(
        &mut self,
        written: &Written,
    ) -> Result<(TaskScore, Predictions), TrainError> {
        let questions = written.questions(self.split);
        let nll = self.answer_nll()?;
        let mut score = TaskScore {
            metric: "token_probability".into(),
            value: (-nll).exp(),
            n: questions.len(),
            accuracy: None,
            majority: 0.0,
            loss: Some(nll),
            also: [
                ("answer_nll".to_owned(), nll),
                ("perplexity".to_owned(), nll.exp()),
            ]
            .into(),
            tests: Default::default(),
        };
        let is_asked = questions.iter().all(|question| question.is_asked);
        if !is_asked || !self.generates || written.writing.max_new_tokens == 0 {
            (self.progress)(questions.len())?;
            return Ok((score, Predictions::Texts(Vec::new())));
        }
        let texts = self.answers(written, questions)?;
        let right: Vec<String> = questions.iter().map(|q| q.output.clone()).collect();
        let metric = &self.task.metric;
        score.metric = metric.to_string();
        score.value = metric.score_texts(&texts, &right);
        score.accuracy = Some(score.value);
        Ok((score, Predictions::Texts(texts)))
    }

    /// The mean of `-log p` over the tokens of all right answers.
    fn answer_nll(&mut self) -> Result<f64, TrainError> {
        let found = self.each_batch(&self.task.lengths(self.split), false, |pass, rows| {
            let (batch, input, context) = pass.inputs(rows)?;
            let output = pass.model.forward(&input, &context);
            let states = output.written.expect("a model that writes");
            let answers = batch.answers();
            let losses = host(token_losses(pass.model, states, &answers, 0.0));
            for (answer, &loss) in answers.iter().zip(&losses) {
                pass.check_finite(rows[answer.row], "log-probability of an answer", [loss])?;
            }
            Ok((losses, output.routes))
        })?;
        let (mut sum, mut count) = (0.0, 0);
        for (_, losses) in found {
            sum += losses.iter().sum::<f64>();
            count += losses.len();
        }
        Ok(sum / count.max(1) as f64)
    }

    /// The likeliest text behind each prompt.
    pub(super) fn answers(
        &mut self,
        written: &Written,
        questions: &[Question],
    ) -> Result<Vec<String>, TrainError> {
        let writing = &written.writing;
        let options = GenerateOptions {
            max_new_tokens: writing.max_new_tokens,
            stop_tokens: writing.end_tokens.clone(),
            suppressed_tokens: Vec::new(),
            sampling: None,
            seed: Seed::new(0),
            first_row: 0,
        };
        let mut texts = vec![String::new(); questions.len()];
        let lengths: Vec<usize> = questions.iter().map(|q| q.prompt.len()).collect();
        let found = self.each_batch(&lengths, true, |pass, rows| {
            let asked: Vec<&Question> = rows.iter().map(|&row| &questions[row]).collect();
            let mut found = Vec::new();
            for generated in pass.generate(&asked, rows, &options, writing.beams)? {
                let tokens: Vec<u32> = generated.tokens.iter().map(|&id| id as u32).collect();
                let text = writing.tokenizer.decode(&tokens)?;
                found.push(writing.format.answer_of(&text).trim().to_owned());
            }
            Ok((found, Vec::new()))
        })?;
        for (row, text) in found
            .into_iter()
            .flat_map(|(rows, found)| rows.into_iter().zip(found))
        {
            texts[row] = text;
        }
        Ok(texts)
    }

    fn generate(
        &self,
        questions: &[&Question],
        rows: &[usize],
        options: &GenerateOptions,
        beams: (usize, f64),
    ) -> Result<Vec<Generated>, TrainError> {
        let (num_beams, length_penalty) = beams;
        if num_beams > 1 {
            let options = BeamOptions {
                num_beams,
                length_penalty,
                max_new_tokens: options.max_new_tokens,
                stop_tokens: options.stop_tokens.clone(),
            };
            return self.beam_search(questions, rows, &options);
        }
        let prompts = self.prompts(questions);
        let context = self.context(&prompts, rows)?;
        Ok(match &self.model.backbone {
            Backbone::Encoder(_) => panic!("an encoder writes nothing"),
            Backbone::Decoder(model) => model.generate(&prompts, options, &context)?,
            Backbone::EncoderDecoder(model) => model.generate(&prompts, options, &context)?,
        })
    }

    /// The likeliest text behind each prompt that beams find.
    fn beam_search(
        &self,
        questions: &[&Question],
        rows: &[usize],
        options: &BeamOptions,
    ) -> Result<Vec<Generated>, TrainError> {
        let beams = options.num_beams;
        let by_beam = |count: usize| (0..count).flat_map(move |n| [n].repeat(beams));
        let asked: Vec<&Question> = by_beam(rows.len()).map(|n| questions[n]).collect();
        let rows: Vec<usize> = by_beam(rows.len()).map(|n| rows[n]).collect();
        let prompts = self.prompts(&asked);
        let context = self.context(&prompts, &rows)?;
        Ok(match &self.model.backbone {
            Backbone::Encoder(_) => panic!("an encoder writes nothing"),
            Backbone::Decoder(model) => model.beam_search(&prompts, options, &context)?,
            Backbone::EncoderDecoder(model) => model.beam_search(&prompts, options, &context)?,
        })
    }
}
