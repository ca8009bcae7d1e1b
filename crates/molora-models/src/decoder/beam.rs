//! Beam search: the likeliest texts, of which several are kept at every step.
//!
//! A finished text is scored as transformers scores it: `log p / n^penalty`, where `n` counts its new tokens
//! and the stop token (Wu et al. 2016, arXiv:1609.08144, equation 14 divides by `((5 + n) / 6)^penalty`). With 0
//! that is the likeliest text, which short ones tend to be; with 1 the mean over tokens.

use burn::tensor::{Bool, Int, Tensor, TensorData};

use super::generate::{check_prompts, with_mask};
use super::{Decoder, DecoderInput, Finish, GenerateError, Generated, last_real, log_sum_exp};
use crate::ForwardContext;
use crate::encoder_decoder::T5;

/// How beams search.
#[derive(Debug, Clone, PartialEq)]
pub struct BeamOptions {
    /// Number K of texts that are kept for each prompt.
    pub num_beams: usize,
    /// A finished text's log-probability is divided by its number of tokens to this power.
    pub length_penalty: f64,
    /// Most new tokens of a text.
    pub max_new_tokens: usize,
    /// Tokens that end a text; they are not part of the result.
    pub stop_tokens: Vec<usize>,
}

impl Decoder {
    /// The best text that beams find behind each prompt. Of equal scores the earlier beam and the lower token
    /// win, so that the same weights give the same texts.
    ///
    /// `prompts` and `context` have [`num_beams`](BeamOptions::num_beams) equal rows for each prompt, one
    /// after the other.
    ///
    /// # Errors
    /// As [`Decoder::generate`].
    ///
    /// # Panics
    /// If the number of rows is no multiple of that of beams, or the prompts are packed.
    pub fn beam_search(
        &self,
        prompts: &DecoderInput,
        options: &BeamOptions,
        context: &ForwardContext,
    ) -> Result<Vec<Generated>, GenerateError> {
        check_prompts(prompts, self.vocab_size(), self.max_tokens())?;
        let mut cache = self.cache();
        let input = prompts.with_plain_padding();
        let lengths = real_tokens(&input.mask);
        let step = |input: &DecoderInput, kept: Option<&[usize]>| {
            if let Some(rows) = kept {
                cache.select(rows);
            }
            let context = with_mask(context, &input.mask);
            let hidden = self.forward_cached(input, &mut cache, &context).hidden;
            self.logits(last_real(hidden, &input.mask))
        };
        let room = lengths.iter().map(|length| self.max_tokens() + 1 - length);
        search(input, &room.collect::<Vec<_>>(), options, step)
    }
}

impl T5 {
    /// As [`Decoder::beam_search`], for what each source asks.
    ///
    /// # Errors
    /// As [`T5::generate`].
    ///
    /// # Panics
    /// If the number of rows is no multiple of that of beams.
    pub fn beam_search(
        &self,
        sources: &DecoderInput,
        options: &BeamOptions,
        context: &ForwardContext,
    ) -> Result<Vec<Generated>, GenerateError> {
        let max_tokens = self.max_tokens().unwrap_or(usize::MAX);
        let rows = check_prompts(sources, self.vocab_size(), max_tokens)?.len();
        let encoded = self.encode(&sources.with_plain_padding(), context);
        let mut cache = self.cache();
        // Rows of one prompt read the same source, so that only what was written changes places.
        let step = |input: &DecoderInput, kept: Option<&[usize]>| {
            if let Some(rows) = kept {
                cache.select(rows);
            }
            let forced = self.forced_token(cache.num_tokens(), options.max_new_tokens);
            let output = self.decode_cached(input, &encoded, &mut cache, context);
            self.next_scores(output, forced)
        };
        let start = vec![self.start_token(); rows];
        let input = one_token(&start, &vec![true; rows], &sources.ids.device());
        search(input, &vec![max_tokens; rows], options, step)
    }
}

/// A text that is being written.
#[derive(Debug, Clone)]
struct Beam {
    tokens: Vec<usize>,
    log_p: f64,
}

/// A text at its end.
#[derive(Debug, Clone)]
struct Finished {
    generated: Generated,
    score: f64,
}

/// The texts of one prompt.
struct Prompt {
    beams: Vec<Beam>,
    /// The best so far, at most as many as beams, the best first.
    finished: Vec<Finished>,
    /// Most tokens that fit behind the prompt.
    room: usize,
    is_done: bool,
}

/// Searches behind prompts, whose tokens are `input`, by the scores `[B, 1, V]` of `step`, which is told the
/// rows that are kept, in their new order, before it reads their next tokens.
fn search(
    mut input: DecoderInput,
    room: &[usize],
    options: &BeamOptions,
    mut step: impl FnMut(&DecoderInput, Option<&[usize]>) -> Tensor<3>,
) -> Result<Vec<Generated>, GenerateError> {
    let beams = options.num_beams;
    assert!(
        beams > 0 && room.len().is_multiple_of(beams),
        "{} rows for {beams} beams",
        room.len()
    );
    let device = input.ids.device();
    let mut prompts: Vec<Prompt> = room
        .chunks(beams)
        .map(|room| Prompt::new(room[0]))
        .collect();
    let mut kept: Option<Vec<usize>> = None;
    for written in 0..options.max_new_tokens {
        for prompt in &mut prompts {
            prompt.end_full(written, options);
        }
        if prompts.iter().all(|prompt| prompt.is_done) {
            break;
        }
        let logits = step(&input, kept.as_deref());
        let vocabulary = logits.dims()[2];
        let logits = logits.into_data().convert::<f32>().try_into_vec::<f32>();
        let logits = logits.expect("just converted");
        let (mut rows, mut tokens, mut is_read) = (Vec::new(), Vec::new(), Vec::new());
        for (number, prompt) in prompts.iter_mut().enumerate() {
            let first = number * beams;
            let scores: Vec<&[f32]> = logits.chunks(vocabulary).skip(first).take(beams).collect();
            let next = match prompt.is_done {
                true => Vec::new(),
                false => prompt.advance(&scores, first, options)?,
            };
            for place in 0..beams {
                // Beams that are not there are padding that no other row sees.
                let (parent, token) = next.get(place).copied().unwrap_or((0, 0));
                rows.push(first + parent);
                tokens.push(token);
                is_read.push(place < next.len());
            }
        }
        input = one_token(&tokens, &is_read, &device);
        kept = Some(rows);
    }
    let best = prompts.into_iter().map(|prompt| prompt.best(options));
    Ok(best.collect())
}

impl Prompt {
    fn new(room: usize) -> Self {
        let start = Beam {
            tokens: Vec::new(),
            log_p: 0.0,
        };
        Self {
            beams: vec![start],
            finished: Vec::new(),
            room,
            is_done: false,
        }
    }

    /// Ends a prompt behind which no other token fits.
    fn end_full(&mut self, written: usize, options: &BeamOptions) {
        if !self.is_done && written >= self.room {
            self.finish_all(Finish::ContextEnd, options);
        }
    }

    /// Chooses the beams of the next step: the number of the beam that each continues, and its token.
    fn advance(
        &mut self,
        scores: &[&[f32]],
        first_row: usize,
        options: &BeamOptions,
    ) -> Result<Vec<(usize, usize)>, GenerateError> {
        let mut candidates = Vec::new();
        for (number, (beam, scores)) in self.beams.iter().zip(scores).enumerate() {
            if !scores.iter().all(|score| score.is_finite()) {
                return Err(GenerateError::NotFinite {
                    row: (first_row + number) / options.num_beams,
                    step: beam.tokens.len(),
                });
            }
            let all = log_sum_exp(scores);
            let log_p = |score: &f32| beam.log_p + f64::from(*score) - all;
            let of_beam = scores.iter().enumerate();
            candidates.extend(of_beam.map(|(token, score)| (log_p(score), number, token)));
        }
        // Enough that as many as beams go on, however many end.
        let wanted = (1 + options.stop_tokens.len()) * options.num_beams;
        let order = |a: &(f64, usize, usize), b: &(f64, usize, usize)| {
            b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2)))
        };
        if wanted < candidates.len() {
            candidates.select_nth_unstable_by(wanted, order);
            candidates.truncate(wanted);
        }
        candidates.sort_by(order);
        let (mut beams, mut next) = (Vec::new(), Vec::new());
        for (place, (log_p, number, token)) in candidates.into_iter().enumerate() {
            let parent = &self.beams[number];
            if options.stop_tokens.contains(&token) {
                if place < options.num_beams {
                    let length = parent.tokens.len() + 1;
                    let score = score(log_p, length, options);
                    let tokens = parent.tokens.clone();
                    let finish = Finish::StopToken;
                    let generated = Generated { tokens, finish };
                    keep(&mut self.finished, Finished { generated, score }, options);
                }
                continue;
            }
            if beams.len() < options.num_beams {
                let tokens = [&parent.tokens[..], &[token]].concat();
                beams.push(Beam { tokens, log_p });
                next.push((number, token));
            }
        }
        self.beams = beams;
        self.is_done = self.beams.is_empty() || self.cannot_improve(options);
        Ok(next)
    }

    /// Whether as many texts as beams have ended, of which the worst is better than the best that goes on would be
    /// if it ended now.
    fn cannot_improve(&self, options: &BeamOptions) -> bool {
        let Some(worst) = self.finished.get(options.num_beams - 1) else {
            return false;
        };
        let best = self.beams.iter().map(|beam| beam.log_p);
        let best = best.fold(f64::NEG_INFINITY, f64::max);
        let length = self.beams.first().map_or(1, |beam| beam.tokens.len());
        worst.score >= score(best, length, options)
    }

    fn finish_all(&mut self, finish: Finish, options: &BeamOptions) {
        for beam in std::mem::take(&mut self.beams) {
            let score = score(beam.log_p, beam.tokens.len(), options);
            let tokens = beam.tokens;
            let generated = Generated { tokens, finish };
            keep(&mut self.finished, Finished { generated, score }, options);
        }
        self.is_done = true;
    }

    /// The best text; those that were not at their end count as they are.
    fn best(mut self, options: &BeamOptions) -> Generated {
        if !self.is_done {
            self.finish_all(Finish::MaxNewTokens, options);
        }
        let best = self.finished.into_iter().next();
        best.expect("a beam at least").generated
    }
}

/// `log p / n^penalty`; of an empty text, `log p`.
fn score(log_p: f64, length: usize, options: &BeamOptions) -> f64 {
    log_p / (length.max(1) as f64).powf(options.length_penalty)
}

/// Puts a text among the best ones, behind those that are as good.
fn keep(finished: &mut Vec<Finished>, new: Finished, options: &BeamOptions) {
    let place = finished.iter().take_while(|old| old.score >= new.score);
    let place = place.count();
    finished.insert(place, new);
    finished.truncate(options.num_beams);
}

/// Number of real tokens of every row.
fn real_tokens(mask: &Tensor<2, Bool>) -> Vec<usize> {
    let width = mask.dims()[1].max(1);
    let values = mask.to_data().convert::<bool>().try_into_vec::<bool>();
    let values = values.expect("just converted");
    let real = |row: &[bool]| row.iter().filter(|is_real| **is_real).count();
    values.chunks(width).map(real).collect()
}

/// Rows of one token each; padding where it is not read.
fn one_token(tokens: &[usize], is_read: &[bool], device: &burn::tensor::Device) -> DecoderInput {
    let shape = [tokens.len(), 1];
    let ids: Vec<i64> = tokens.iter().map(|&token| token as i64).collect();
    DecoderInput {
        ids: Tensor::<2, Int>::from_data(TensorData::new(ids, shape), device),
        mask: Tensor::from_data(TensorData::new(is_read.to_vec(), shape), device),
        segments: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn options(num_beams: usize, length_penalty: f64) -> BeamOptions {
        BeamOptions {
            num_beams,
            length_penalty,
            max_new_tokens: 3,
            stop_tokens: vec![0],
        }
    }

    /// Texts of a chain: the probabilities of the next token depend on the last one alone, which is 1 at
    /// first. Token 0 ends a text.
    fn found(options: &BeamOptions, prompts: usize) -> Vec<Generated> {
        let chain: [[f32; 4]; 4] = [
            [0.25, 0.25, 0.25, 0.25],
            [0.01, 0.01, 0.5, 0.48],
            [0.3, 0.3, 0.2, 0.2],
            [0.9, 0.04, 0.03, 0.03],
        ];
        let device = Device::default();
        let rows = prompts * options.num_beams;
        let input = one_token(&vec![1; rows], &vec![true; rows], &device);
        let step = |input: &DecoderInput, _: Option<&[usize]>| {
            let ids = input.ids.to_data().convert::<i64>();
            let ids = ids.try_into_vec::<i64>().expect("just converted");
            let scores = ids.iter().flat_map(|&id| chain[id as usize].map(f32::ln));
            let scores = TensorData::new(scores.collect::<Vec<f32>>(), [rows, 1, 4]);
            Tensor::<3>::from_data(scores, &device)
        };
        search(input, &vec![usize::MAX; rows], options, step).expect("finite")
    }

    /// Greedy takes 2 (0.5) and then ends at once or not (0.3 each); two beams see that 3 (0.48) ends with
    /// 0.9.
    #[test]
    fn beams_find_what_greedy_misses() {
        let greedy = found(&options(1, 0.0), 1).remove(0);
        assert_eq!(greedy.tokens.first(), Some(&2));
        let two = found(&options(2, 0.0), 2);
        for best in &two {
            assert_eq!(
                (&best.tokens[..], best.finish),
                (&[3][..], Finish::StopToken)
            );
        }
    }

    /// By hand: [3] has log(0.48 * 0.9) = -0.839 of 2 tokens; [] has log(0.01) of 1.
    #[test]
    fn scores_are_divided_by_the_length() {
        let log_p = (0.48_f64 * 0.9).ln();
        assert!((score(log_p, 2, &options(1, 1.0)) - log_p / 2.0).abs() < 1e-12);
        assert_eq!(score(log_p, 2, &options(1, 0.0)), log_p);
        assert!((score(log_p, 4, &options(1, 0.5)) - log_p / 2.0).abs() < 1e-12);
    }

    #[test]
    fn a_text_without_an_end_stays_as_long_as_it_may_be() {
        let mut options = options(2, 1.0);
        options.stop_tokens.clear();
        let best = found(&options, 1).remove(0);
        assert_eq!((best.tokens.len(), best.finish), (3, Finish::MaxNewTokens));
        options.max_new_tokens = 0;
        assert_eq!(found(&options, 1)[0].tokens, [] as [usize; 0]);
    }

    fn golden(model: &str) -> std::path::PathBuf {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        golden.join(model)
    }

    /// The prompts, each as often as there are beams.
    fn repeated(prompts: &[&[usize]], beams: usize, device: &Device) -> DecoderInput {
        let rows = prompts
            .iter()
            .flat_map(|prompt| vec![prompt.to_vec(); beams]);
        DecoderInput::from_sequences(&rows.collect::<Vec<_>>(), device)
    }

    /// What transformers 5.24 writes with `num_beams` and `length_penalty`, the prompts one by one.
    #[test]
    fn a_decoder_writes_what_transformers_writes() {
        let device = Device::default();
        let model = Decoder::from_folder(&golden("llama"), &device).expect("a model");
        let many = vec![2, 10, 17, 25, 40, 50, 60, 70];
        let long: [&[usize]; 2] = [&[31, 9, 57, 9, 57, 57], &[31, 9, 48, 31, 40, 44]];
        let cases: [(Vec<usize>, usize, f64, [&[usize]; 2]); 5] = [
            (vec![2], 3, 0.0, long),
            (vec![2], 4, 2.0, [long[0], &[31, 31, 40, 55, 52, 14]]),
            (many.clone(), 3, 0.0, [long[0], &[27]]),
            (many.clone(), 3, 1.0, [long[0], &[31, 9, 48, 31]]),
            (many, 4, 2.0, [long[0], &[31, 9, 48, 31, 9]]),
        ];
        for (stop_tokens, num_beams, length_penalty, expected) in cases {
            let options = BeamOptions {
                num_beams,
                length_penalty,
                max_new_tokens: 6,
                stop_tokens,
            };
            let prompts = repeated(&[&[1, 5, 9, 33, 7], &[1, 80, 12]], num_beams, &device);
            let context = ForwardContext::new(prompts.mask.clone().float());
            let found = model.beam_search(&prompts, &options, &context);
            let found: Vec<Vec<usize>> = found
                .expect("valid prompts")
                .into_iter()
                .map(|best| best.tokens)
                .collect();
            assert_eq!(found, expected, "{options:?}");
        }
    }

    /// As [`a_decoder_writes_what_transformers_writes`].
    #[test]
    fn an_encoder_decoder_writes_what_transformers_writes() {
        let device = Device::default();
        let model = T5::from_folder(&golden("t5"), &device).expect("a model");
        for length_penalty in [0.0, 1.0] {
            let options = BeamOptions {
                num_beams: 3,
                length_penalty,
                max_new_tokens: 6,
                stop_tokens: vec![1, 10, 17, 25, 40],
            };
            let sources = repeated(&[&[5, 9, 33, 1], &[8, 12, 1]], 3, &device);
            let context = ForwardContext::new(sources.mask.clone().float());
            let found = model.beam_search(&sources, &options, &context);
            let found = found.expect("valid sources");
            assert_eq!(found[0].tokens, [76; 6]);
            assert_eq!(found[1].tokens, [0, 14, 14, 14, 14, 14]);
        }
    }
}
