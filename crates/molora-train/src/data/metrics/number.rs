//! Metrics of numbers against numbers.

use super::ratio;

/// Pearson's correlation: the covariance over the product of the standard deviations.
///
/// 0 where it is undefined: fewer than two pairs, all numbers of one side equal, or a number that
/// is not finite.
///
/// # Panics
/// If the two differ in length.
pub(crate) fn pearson(predictions: &[f64], targets: &[f64]) -> f64 {
    assert_eq!(
        predictions.len(),
        targets.len(),
        "one prediction for each target"
    );
    let (a, b) = (centred(predictions), centred(targets));
    let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
    let correlation = ratio(dot(&a, &b), dot(&a, &a).sqrt() * dot(&b, &b).sqrt());
    match correlation.is_finite() {
        true => correlation.clamp(-1.0, 1.0),
        false => 0.0,
    }
}

/// Spearman's rank correlation: [`pearson`] of the ranks, where equal numbers share the mean of
/// their ranks.
///
/// 0 where it is undefined, as there.
///
/// # Panics
/// If the two differ in length.
pub(crate) fn spearman(predictions: &[f64], targets: &[f64]) -> f64 {
    let is_finite = predictions
        .iter()
        .chain(targets)
        .all(|number| number.is_finite());
    assert_eq!(
        predictions.len(),
        targets.len(),
        "one prediction for each target"
    );
    match is_finite {
        true => pearson(&ranks(predictions), &ranks(targets)),
        false => 0.0,
    }
}

/// Root of the mean squared error, in the targets' unit; lower is better, 0 for no pairs.
///
/// # Panics
/// If the two differ in length.
pub(crate) fn rmse(predictions: &[f64], targets: &[f64]) -> f64 {
    assert_eq!(
        predictions.len(),
        targets.len(),
        "one prediction for each target"
    );
    let pairs = predictions.iter().zip(targets);
    let sum: f64 = pairs
        .map(|(prediction, target)| (prediction - target).powi(2))
        .sum();
    ratio(sum, targets.len() as f64).sqrt()
}

/// Numbers minus their mean. Equal numbers become exact zeros, whatever the mean's rounding.
fn centred(numbers: &[f64]) -> Vec<f64> {
    let first = numbers.first().copied().unwrap_or(0.0);
    let shifted: Vec<f64> = numbers.iter().map(|number| number - first).collect();
    let mean = ratio(shifted.iter().sum(), numbers.len() as f64);
    shifted.into_iter().map(|number| number - mean).collect()
}

/// Ranks from 1; equal numbers get the mean of their ranks.
fn ranks(numbers: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|&a, &b| numbers[a].total_cmp(&numbers[b]));
    let mut ranks = vec![0.0; numbers.len()];
    let mut start = 0;
    for group in order.chunk_by(|&a, &b| numbers[a] == numbers[b]) {
        let rank = start as f64 + (group.len() + 1) as f64 / 2.0;
        group.iter().for_each(|&index| ranks[index] = rank);
        start += group.len();
    }
    ranks
}
