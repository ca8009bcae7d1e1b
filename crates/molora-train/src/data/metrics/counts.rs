//! Metrics of class indices, from the margins of their confusion matrix.
//!
//! The zero cases follow scikit-learn: macro-F1 averages over the classes that stand in the
//! predictions or the targets, an F1 without any true positive is 0, and a Matthews correlation
//! that is undefined (all predictions or all targets of one class) is 0.

use super::ratio;

/// What all metrics need of the confusion matrix: its diagonal and its margins.
pub(super) struct Counts {
    pub(super) total: usize,
    hits: Vec<usize>,
    predicted: Vec<usize>,
    actual: Vec<usize>,
}

impl Counts {
    pub(super) fn new(predictions: &[usize], targets: &[usize], num_classes: usize) -> Self {
        assert_eq!(
            predictions.len(),
            targets.len(),
            "one prediction for each target"
        );
        let zeros = || vec![0; num_classes];
        let (mut hits, mut predicted, mut actual) = (zeros(), zeros(), zeros());
        for (&prediction, &target) in predictions.iter().zip(targets) {
            predicted[prediction] += 1;
            actual[target] += 1;
            hits[target] += usize::from(prediction == target);
        }
        Self {
            total: targets.len(),
            hits,
            predicted,
            actual,
        }
    }

    pub(super) fn hits(&self) -> usize {
        self.hits.iter().sum()
    }

    /// `2 TP / (2 TP + FP + FN)`: the denominator is what was predicted plus what was there.
    pub(super) fn f1(&self, class: usize) -> f64 {
        let seen = self.predicted[class] + self.actual[class];
        ratio(2.0 * self.hits[class] as f64, seen as f64)
    }

    pub(super) fn macro_f1(&self) -> f64 {
        let present: Vec<usize> = (0..self.actual.len())
            .filter(|&class| self.predicted[class] + self.actual[class] > 0)
            .collect();
        let sum: f64 = present.iter().map(|&class| self.f1(class)).sum();
        ratio(sum, present.len() as f64)
    }

    /// `(c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))` with `c` hits among
    /// `s` records, `p_k` predicted and `t_k` actual counts.
    pub(super) fn matthews(&self) -> f64 {
        let dot = |a: &[usize], b: &[usize]| -> f64 {
            a.iter().zip(b).map(|(&x, &y)| x as f64 * y as f64).sum()
        };
        let total = self.total as f64;
        let covariance = self.hits() as f64 * total - dot(&self.predicted, &self.actual);
        let spread_predicted = total * total - dot(&self.predicted, &self.predicted);
        let spread_actual = total * total - dot(&self.actual, &self.actual);
        ratio(covariance, (spread_predicted * spread_actual).sqrt())
    }
}
