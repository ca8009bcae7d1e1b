//! Choosing the next token from its scores.

use molora_kernels::random::{Seed, unit};

/// How a token is drawn from `softmax(logits / temperature)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Above 0; below 1 the likely tokens get likelier.
    pub temperature: f64,
    /// Only the so many likeliest tokens are drawn from.
    pub top_k: Option<usize>,
    /// Then, only the fewest likeliest tokens whose probabilities sum to at least this, in `(0, 1]`
    /// (Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv:1904.09751, eq. 2).
    pub top_p: Option<f64>,
}

impl Default for Sampling {
    /// The model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
        }
    }
}

impl Sampling {
    /// The first number out of its range.
    pub(super) fn problem(&self) -> Option<String> {
        let temperature = self.temperature;
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Some(format!("temperature is {temperature}, expected above 0"));
        }
        if self.top_k == Some(0) {
            return Some("top_k is 0, expected at least 1".into());
        }
        let top_p = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0));
        top_p.map(|top_p| format!("top_p is {top_p}, expected above 0 and at most 1"))
    }

    /// Draws a token; the same seed draws the same.
    pub(super) fn draw(&self, logits: &[f32], seed: Seed) -> usize {
        let candidates = self.candidates(logits);
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = unit(&mut seed.generator()) * total;
        for &(token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        // Rounding may leave a rest of the order of 1e-16.
        candidates[candidates.len() - 1].0
    }

    /// The tokens to draw from with their weights, likeliest first.
    fn candidates(&self, logits: &[f32]) -> Vec<(usize, f64)> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let by_score = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
        let kept = self.top_k.unwrap_or(usize::MAX).min(order.len());
        if kept < order.len() {
            order.select_nth_unstable_by(kept, by_score);
            order.truncate(kept);
        }
        order.sort_unstable_by(by_score);
        let largest = f64::from(logits[order[0]]);
        let weight = |token: usize| ((f64::from(logits[token]) - largest) / self.temperature).exp();
        let mut candidates: Vec<_> = order.into_iter().map(|t| (t, weight(t))).collect();
        if let Some(top_p) = self.top_p {
            let enough = top_p * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
            let mut sum = 0.0;
            let reaches = |(_, weight): &(usize, f64)| {
                sum += weight;
                sum >= enough
            };
            let last = candidates.iter().position(reaches);
            candidates.truncate(last.map_or(usize::MAX, |last| last + 1));
        }
        candidates
    }
}

/// The token of the largest score, the first of several.
pub(super) fn greedy(logits: &[f32]) -> usize {
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
        let candidates = sampling.candidates(&logits());
        candidates.into_iter().map(|(token, _)| token).collect()
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
    }
}
