//! Certain decisions that differ from each other. HMoRA, ICLR 2025, openreview lTkHiXeuDl.

use burn::tensor::Tensor;
use molora_routing::RoutedPart;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Need, SiteView, TermNumbers};
use crate::Reduction;

/// Added to probabilities inside logarithms.
const EPSILON: f64 = 1e-9;

/// See [`divergence`]; the sum over the routers that were blended, or of the one router where none were.
/// Has no reduction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Divergence {
    /// A decision whose entropy is below this share of `ln E` is certain enough.
    pub certain: f64,
    /// A mean decision whose entropy is above this share of `ln E` is balanced enough.
    pub balanced: f64,
}

impl Default for Divergence {
    /// The numbers of the paper's code.
    fn default() -> Self {
        Self {
            certain: 0.5,
            balanced: 0.98,
        }
    }
}

impl TermNumbers for Divergence {
    fn needs(&self) -> &'static [Need] {
        &[Need::Router]
    }

    fn problem(&self) -> Option<String> {
        let shares = [("certain", self.certain), ("balanced", self.balanced)];
        let wrong = shares
            .into_iter()
            .find(|(_, share)| !(0.0..=1.0).contains(share));
        wrong.map(|(field, share)| format!("{field} is {share}, expected a number from 0 to 1"))
    }

    fn at(&self, site: &SiteView<'_>, _reduction: Reduction) -> Option<Tensor<1>> {
        let routed = site.balanced()?;
        Some(match &routed.parts[..] {
            [] => divergence(&routed.probs, &routed.counted, *self),
            parts => of_parts(parts, *self),
        })
    }
}

fn of_parts(parts: &[RoutedPart], config: Divergence) -> Tensor<1> {
    let values = parts
        .iter()
        .map(|part| divergence(&part.probs, &part.counted, config));
    Tensor::cat(values.collect(), 0).sum()
}

/// How far a router is from decisions that are each certain and together balanced:
///
/// ```text
/// L = max(0, (gb - gc) ln E - (min(H(m), gb ln E) - mean max(H(p), gc ln E))) / ln E
/// ```
///
/// `H` is the entropy, `p` a decision that counts and `m` their mean; `gc` is [`Divergence::certain`] and
/// `gb` [`Divergence::balanced`]. What is certain or balanced enough has no gradient.
///
/// # Shapes
/// - `probs`: `[B, T', E]` with more than one expert
/// - `counted`: `[B, T']`, 1 for decisions that count
/// - returns `[1]`
///
/// # Source
/// HMoRA, Liao et al., ICLR 2025, openreview lTkHiXeuDl, and its code.
pub fn divergence(probs: &Tensor<3>, counted: &Tensor<2>, config: Divergence) -> Tensor<1> {
    let [batch, decisions, experts] = probs.dims();
    let rows = batch * decisions;
    let most = (experts as f64).ln();
    let counted = counted.clone().reshape([1, rows]);
    let is_padding = counted.clone().equal_elem(0.0).reshape([rows, 1]);
    let probs = probs.clone().reshape([rows, experts]);
    let probs = probs.mask_fill(is_padding.expand([rows, experts]), 0.0);
    let count = counted.clone().sum().clamp_min(1.0).unsqueeze::<2>();
    let of_each = entropy(probs.clone()).clamp_min(config.certain * most);
    let of_each = counted.clone().matmul(of_each) / count.clone();
    let of_mean = entropy(counted.matmul(probs) / count).clamp_max(config.balanced * most);
    let target = (config.balanced - config.certain) * most;
    let missing = (of_each - of_mean).add_scalar(target);
    missing.clamp_min(0.0).div_scalar(most).reshape([1])
}

/// Entropy of every row, `[N, E]` to `[N, 1]`.
fn entropy(probs: Tensor<2>) -> Tensor<2> {
    let logs = probs.clone().add_scalar(EPSILON).log();
    (probs * logs).sum_dim(1).neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    fn of(probs: [[[f32; 2]; 2]; 1]) -> Tensor<1> {
        let device = molora_testkit::device();
        let probs = Tensor::from_data(probs, &device);
        divergence(
            &probs,
            &Tensor::ones([1, 2], &device),
            Divergence::default(),
        )
    }

    #[test]
    fn certain_and_different_decisions_lack_nothing() {
        // Both certain, together balanced.
        assert_close(of([[[1.0, 0.0], [0.0, 1.0]]]), [0.0], FORWARD, "apart");
        // Uniform: the mean has the entropy 0.98, cut, and so has each with 1: 0.48 - (0.98 - 1).
        assert_close(of([[[0.5, 0.5], [0.5, 0.5]]]), [0.5], FORWARD, "undecided");
        // All for one: entropy 0 of the mean, 0.5 of each: 0.48 + 0.5.
        assert_close(
            of([[[1.0, 0.0], [1.0, 0.0]]]),
            [0.98],
            FORWARD,
            "all for one",
        );
    }

    #[test]
    fn padding_counts_nowhere() {
        let device = molora_testkit::device();
        let probs = [[[1.0, 0.0], [0.0, 1.0], [f32::NAN, 7.0]]];
        let counted = Tensor::from_data([[1.0, 1.0, 0.0]], &device);
        let found = divergence(
            &Tensor::from_data(probs, &device),
            &counted,
            Divergence::default(),
        );
        assert_close(found, [0.0], FORWARD, "divergence");
    }

    #[test]
    fn shares_are_checked() {
        let config = Divergence {
            certain: 1.5,
            ..Divergence::default()
        };
        let problem = config.problem().expect("above 1");
        assert_eq!(problem, "certain is 1.5, expected a number from 0 to 1");
    }
}
