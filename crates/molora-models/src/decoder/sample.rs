//! Choosing the next token from its scores.

use std::collections::BTreeMap;

use molora_kernels::random::{Seed, unit};

/// How a token is drawn from `softmax(logits / temperature)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Above 0; values below 1 sharpen the distribution, values above 1 flatten it.
    pub temperature: f64,
    /// Only this many of the likeliest tokens are drawn from.
    pub top_k: Option<usize>,
    /// Then, only the fewest likeliest tokens whose probabilities sum to at least this, in `(0, 1]`
    /// (Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv:1904.09751, eq. 2).
    pub top_p: Option<f64>,
    /// Before it, only tokens whose probability is at least this share of the likeliest one's, in
    /// `[0, 1]` (Nguyen et al., Turning Up the Heat, arXiv:2407.01082, algorithm 1).
    pub min_p: Option<f64>,
}

/// Penalties on tokens that occur in the text already; the defaults change nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Taken once from the score of a token that was generated.
    pub presence: f64,
    /// Taken from the score of a token as often as it was written.
    pub frequency: f64,
    /// The score of a token of the prompt or of what was written is divided by this where it is positive,
    /// and multiplied by it elsewhere (Keskar et al., CTRL, arXiv:1909.05858, section 4.1).
    pub repetition: f64,
}

impl Default for Penalties {
    fn default() -> Self {
        Self {
            presence: 0.0,
            frequency: 0.0,
            repetition: 1.0,
        }
    }
}

impl Penalties {
    /// The first number out of its range.
    pub fn problem(&self) -> Option<String> {
        for (name, value) in [("presence", self.presence), ("frequency", self.frequency)] {
            if !(-2.0..=2.0).contains(&value) {
                return Some(format!("{name}_penalty is {value}, expected -2 to 2"));
            }
        }
        let value = self.repetition;
        let is_good = value > 0.0 && value.is_finite();
        (!is_good).then(|| format!("repetition_penalty is {value}, expected above 0"))
    }

    /// Changes the scores of the next token by the tokens of the prompt and those generated after it:
    /// repetition first, then `score - frequency * count - presence * (count > 0)` with counts of the
    /// generated tokens, as OpenAI and vLLM define them.
    pub fn apply(&self, logits: &mut [f32], prompt: &[usize], written: &[usize]) {
        if *self == Self::default() {
            return;
        }
        let mut counts = BTreeMap::new();
        for &token in prompt {
            counts.entry(token).or_insert(0);
        }
        for &token in written {
            *counts.entry(token).or_insert(0) += 1;
        }
        for (token, count) in counts {
            let Some(logit) = logits.get_mut(token) else {
                continue;
            };
            let score = f64::from(*logit);
            let score = match score > 0.0 {
                true => score / self.repetition,
                false => score * self.repetition,
            };
            let presence = if count > 0 { self.presence } else { 0.0 };
            *logit = (score - self.frequency * f64::from(count) - presence) as f32;
        }
    }
}

impl Default for Sampling {
    /// The model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
        }
    }
}

impl Sampling {
    /// The first number out of its range.
    pub fn problem(&self) -> Option<String> {
        let temperature = self.temperature;
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Some(format!("temperature is {temperature}, expected above 0"));
        }
        if self.top_k == Some(0) {
            return Some("top_k is 0, expected at least 1".into());
        }
        let top_p = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0));
        if let Some(top_p) = top_p {
            return Some(format!("top_p is {top_p}, expected above 0 and at most 1"));
        }
        let min_p = self.min_p.filter(|p| !(0.0..=1.0).contains(p));
        min_p.map(|min_p| format!("min_p is {min_p}, expected 0 to 1"))
    }

    /// Draws a token; the same seed draws the same.
    fn draw(&self, logits: &[f32], seed: Seed) -> usize {
        let mut candidates = self.candidates(logits);
        let mut left = unit(&mut seed.generator()) * candidates.total;
        let reached = candidates.count_until(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a rest of the order of 1e-16.
        let last = candidates.tokens.len() - 1;
        candidates.token(reached.unwrap_or(last))
    }

    /// The tokens to draw from with their weights.
    fn candidates<'a>(&self, logits: &'a [f32]) -> Candidates<'a> {
        let largest = f64::from(logits[greedy(logits)]);
        let weigh = |&logit: &f32| ((f64::from(logit) - largest) / self.temperature).exp();
        let weights: Vec<f64> = logits.iter().map(weigh).collect();
        let mut tokens = match self.top_k {
            Some(count) => likeliest(logits, count),
            None => (0..logits.len()).collect(),
        };
        if let Some(min_p) = self.min_p {
            // The likeliest token has weight 1.
            tokens.retain(|&token| weights[token] >= min_p);
        }
        let total = tokens.iter().map(|&token| weights[token]).sum();
        let mut candidates = Candidates {
            logits,
            weights,
            tokens,
            sorted: 0,
            total,
        };
        if let Some(top_p) = self.top_p {
            let (enough, mut sum) = (top_p * total, 0.0);
            let last = candidates.count_until(|weight| {
                sum += weight;
                sum >= enough
            });
            if let Some(last) = last {
                candidates.tokens.truncate(last + 1);
                candidates.total = sum;
            }
        }
        candidates
    }
}

/// Tokens to draw from. They are sorted as far as they are looked at: most draws end among the likeliest few, and
/// sorting a whole vocabulary takes as long as a small model's layers.
struct Candidates<'a> {
    logits: &'a [f32],
    /// Of every token of the vocabulary, 1 for the likeliest.
    weights: Vec<f64>,
    /// The first `sorted` of them are the likeliest, in order.
    tokens: Vec<usize>,
    sorted: usize,
    /// The sum of their weights.
    total: f64,
}

impl Candidates<'_> {
    /// As many as are sorted at first; later steps are larger.
    const FIRST: usize = 64;

    /// The token of a rank, from 0.
    fn token(&mut self, rank: usize) -> usize {
        while self.sorted <= rank {
            let rest = &mut self.tokens[self.sorted..];
            let count = rest.len().min(Self::FIRST.max(7 * self.sorted));
            sort_likeliest(self.logits, rest, count);
            self.sorted += count;
        }
        self.tokens[rank]
    }

    /// The first rank at which weights, likeliest first, are enough; none if they never are.
    fn count_until(&mut self, mut is_enough: impl FnMut(f64) -> bool) -> Option<usize> {
        (0..self.tokens.len()).find(|&rank| {
            let token = self.token(rank);
            is_enough(self.weights[token])
        })
    }
}

/// The next token by its scores, none of which may be NaN: drawn with a seed, which always draws the same, or
/// without a sampling the one of the largest score, the first of several.
///
/// # Panics
/// If there are no scores.
pub fn choose(logits: &[f32], sampling: Option<&Sampling>, seed: Seed) -> usize {
    match sampling {
        Some(sampling) => sampling.draw(logits, seed),
        None => greedy(logits),
    }
}

/// `log(sum(exp(logits)))`: what is taken from a score to get its token's log-probability.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let largest = f64::from(largest);
    let sum: f64 = logits
        .iter()
        .map(|&score| (f64::from(score) - largest).exp())
        .sum();
    largest + sum.ln()
}

/// The tokens of the largest scores, the largest first; of equal ones the smaller number.
pub fn likeliest(logits: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let count = count.min(order.len());
    sort_likeliest(logits, &mut order, count);
    order.truncate(count);
    order
}

/// Brings the `count` tokens of the largest scores to the front, in order.
fn sort_likeliest(logits: &[f32], tokens: &mut [usize], count: usize) {
    let by_score = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count, by_score);
    }
    tokens[..count].sort_unstable_by(by_score);
}

/// The token of the largest score, the first of several.
fn greedy(logits: &[f32]) -> usize {
    let better = |best: usize, token: usize| match logits[token] > logits[best] {
        true => token,
        false => best,
    };
    (0..logits.len()).fold(0, better)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 1/2, 1/4, 1/8, 1/8.
    fn logits() -> [f32; 4] {
        [0.125f32, 0.5, 0.125, 0.25].map(f32::ln)
    }

    fn tokens(sampling: Sampling) -> Vec<usize> {
        let logits = logits();
        let mut candidates = sampling.candidates(&logits);
        let count = candidates.tokens.len();
        (0..count).map(|rank| candidates.token(rank)).collect()
    }

    #[test]
    fn top_k_and_top_p_keep_the_likeliest() {
        let all = Sampling::default();
        assert_eq!(tokens(all), [1, 3, 0, 2]);
        let top_k = Some(3);
        assert_eq!(tokens(Sampling { top_k, ..all }), [1, 3, 0]);
        let top_p = |p| {
            tokens(Sampling {
                top_p: Some(p),
                ..all
            })
        };
        assert_eq!(top_p(0.01), [1]);
        assert_eq!(top_p(0.7), [1, 3]);
        assert_eq!(top_p(0.8), [1, 3, 0]);
        assert_eq!(top_p(1.0), [1, 3, 0, 2]);
    }

    #[test]
    fn min_p_keeps_what_is_not_much_less_likely_than_the_best() {
        let min_p = |p, top_p| {
            tokens(Sampling {
                min_p: Some(p),
                top_p,
                ..Sampling::default()
            })
        };
        assert_eq!(min_p(0.0, None), [1, 3, 0, 2]);
        assert_eq!(min_p(0.3, None), [1, 3]);
        assert_eq!(min_p(1.0, None), [1]);
        // Of 1/2 and 1/4 the first is 2/3.
        assert_eq!(min_p(0.3, Some(0.6)), [1]);
    }

    #[test]
    fn a_vocabulary_is_sorted_as_far_as_it_is_read() {
        let mut generator = Seed::new(4).generator();
        let logits: Vec<f32> = (0..5000)
            .map(|_| (unit(&mut generator) * 20.0) as f32)
            .collect();
        for sampling in [
            Sampling::default(),
            Sampling {
                top_p: Some(0.999),
                min_p: Some(1e-4),
                ..Sampling::default()
            },
            Sampling {
                temperature: 50.0,
                top_k: Some(3000),
                ..Sampling::default()
            },
        ] {
            let mut candidates = sampling.candidates(&logits);
            let count = candidates.tokens.len();
            assert!(count > 300, "{sampling:?} leaves {count}");
            let ranked: Vec<usize> = (0..count).map(|rank| candidates.token(rank)).collect();
            assert_eq!(ranked, likeliest(&logits, count), "{sampling:?}");
            for index in 0..50 {
                let seed = Seed::new(5).index(index);
                let mut left = unit(&mut seed.generator()) * candidates.total;
                let expected = ranked.iter().copied().find(|&token| {
                    left -= candidates.weights[token];
                    left < 0.0
                });
                assert_eq!(Some(sampling.draw(&logits, seed)), expected, "{sampling:?}");
            }
        }
    }

    #[test]
    fn penalties_are_those_of_openai_and_ctrl() {
        let mut logits = [2.0, -2.0, 1.0, 1.0];
        Penalties::default().apply(&mut logits, &[0], &[1]);
        assert_eq!(logits, [2.0, -2.0, 1.0, 1.0]);
        let penalties = Penalties {
            presence: 0.5,
            frequency: 0.25,
            repetition: 2.0,
        };
        // A number that is no token changes nothing.
        penalties.apply(&mut logits, &[0, 9], &[1, 2, 2]);
        assert_eq!(logits, [1.0, -4.75, -0.5, 1.0]);
        let bad = |penalties: Penalties| penalties.problem().unwrap_or_default();
        let good = Penalties::default();
        assert_eq!(good.problem(), None);
        let presence = 3.0;
        let found = bad(Penalties { presence, ..good });
        assert_eq!(found, "presence_penalty is 3, expected -2 to 2");
        let repetition = 0.0;
        let found = bad(Penalties { repetition, ..good });
        assert_eq!(found, "repetition_penalty is 0, expected above 0");
    }

    #[test]
    fn probabilities_of_scores_sum_to_one() {
        let logits = [1e3, 1e3 - 1.0, 3.0];
        let sum: f64 = logits
            .iter()
            .map(|&x| (f64::from(x) - log_sum_exp(&logits)).exp())
            .sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        assert_eq!(likeliest(&[0.0, 2.0, 1.0, 2.0], 3), [1, 3, 2]);
        assert_eq!(likeliest(&[0.0], 3), [0]);
    }

    #[test]
    fn draws_have_their_frequencies_and_repeat() {
        let count = |temperature: f64| {
            let sampling = Sampling {
                temperature,
                ..Default::default()
            };
            let draw = |index| sampling.draw(&logits(), Seed::new(1).index(index));
            (0..4000).filter(|&index| draw(index) == 1).count() as f64 / 4000.0
        };
        assert!((count(1.0) - 0.5).abs() < 0.03);
        // Squares of the probabilities: 1/4 of 11/32.
        assert!((count(0.5) - 8.0 / 11.0).abs() < 0.03);
        assert_eq!(count(1.0), count(1.0));
        assert_eq!(count(1e-3), 1.0);
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(greedy(&[0.0, 2.0, 1.0, 2.0]), 1);
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let good = Sampling::default();
        let problem = |sampling: Sampling| sampling.problem().unwrap_or_default();
        assert_eq!(good.problem(), None);
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(
                problem(Sampling {
                    temperature,
                    ..good
                })
                .starts_with("temperature is")
            );
        }
        let top_k = Some(0);
        assert!(problem(Sampling { top_k, ..good }).starts_with("top_k is 0"));
        let top_p = Some(1.5);
        assert!(problem(Sampling { top_p, ..good }).starts_with("top_p is 1.5"));
        let min_p = Some(-0.5);
        assert!(problem(Sampling { min_p, ..good }).starts_with("min_p is -0.5"));
    }
}
