//! Means over seeds, and a paired bootstrap over records.
//!
//! `d[t][i]` is how many of the `S` seeds of a method get test record `i` of task `t` right, minus
//! how many of the reference's do. The gain is `1/T sum_t 1/n_t sum_i d[t][i] / S`: the difference
//! of the mean accuracies. A resample draws `n_t` records of each task with replacement, the same
//! for both methods and all seeds, since `d` holds them all. Efron and Tibshirani, An Introduction
//! to the Bootstrap (1993), chapter 13 (percentile interval).

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::data::draw::below;

/// Number of resamples of the bootstrap.
pub const RESAMPLES: usize = 2000;

/// Share of the resamples that an interval covers.
pub const CONFIDENCE: f64 = 0.95;

/// Every method is compared on the same resampled records.
const SEED: u64 = 0;

/// One number per seed and what they have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// Mean over seeds.
    pub mean: f64,
    /// Sample standard deviation over seeds (divided by `S - 1`); none with one seed.
    pub standard_deviation: Option<f64>,
    /// The value of each seed, from seed 0.
    pub values: Vec<f64>,
}

impl Spread {
    /// Mean and standard deviation; the order of the values does not matter, not even in the last
    /// bit.
    ///
    /// # Panics
    /// If there are no values.
    pub fn of(values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "there is at least one seed");
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / count;
        let squares: f64 = sorted.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_deviation = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
        Self {
            mean,
            standard_deviation,
            values,
        }
    }
}

/// What an interval says about a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval lies above zero.
    Gain,
    /// Zero lies in the interval.
    NoGainShown,
    /// The whole interval lies below zero.
    Worse,
}

impl Verdict {
    /// The verdict in words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Gain => "gain",
            Self::NoGainShown => "no gain shown",
            Self::Worse => "worse",
        }
    }
}

/// Difference of a method's mean accuracy to the reference's, as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gain {
    /// Mean over tasks and seeds.
    pub mean_accuracy: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// What the interval says.
    pub verdict: Verdict,
}

impl Gain {
    /// The gain and its interval from the differences `d[t][i]` summed over `seeds` seeds.
    ///
    /// A task without records counts as no difference.
    pub fn of(differences: &[Vec<i64>], seeds: u64) -> Self {
        let scale = 1.0 / (differences.len().max(1) as f64 * seeds as f64);
        let mean = |sums: &mut dyn FnMut(&[i64]) -> i64| {
            let task = |records: &Vec<i64>| sums(records) as f64 / records.len().max(1) as f64;
            differences.iter().map(task).sum::<f64>() * scale
        };
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let mut means: Vec<f64> = (0..RESAMPLES)
            .map(|_| mean(&mut |records| resampled(records, &mut rng)))
            .collect();
        means.sort_by(f64::total_cmp);
        let tail = (1.0 - CONFIDENCE) / 2.0;
        let (low, high) = (quantile(&means, tail), quantile(&means, 1.0 - tail));
        let verdict = match (low, high) {
            (low, _) if low > 0.0 => Verdict::Gain,
            (_, high) if high < 0.0 => Verdict::Worse,
            _ => Verdict::NoGainShown,
        };
        Self {
            mean_accuracy: mean(&mut |records| records.iter().sum()),
            low,
            high,
            verdict,
        }
    }
}

/// Sum over as many records as there are, drawn with replacement.
fn resampled(records: &[i64], rng: &mut Xoshiro256PlusPlus) -> i64 {
    let count = records.len() as u64;
    (0..count)
        .map(|_| records[below(rng, count) as usize])
        .sum()
}

/// The value below which a share of the sorted values lies, interpolated linearly.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_that_of_a_sample() {
        let spread = Spread::of(vec![0.9, 0.6, 0.6]);
        assert!((spread.mean - 0.7).abs() < 1e-12);
        // sqrt((0.04 + 0.01 + 0.01) / 2)
        let found = spread.standard_deviation.expect("three seeds");
        assert!((found - 0.03_f64.sqrt()).abs() < 1e-12);
        assert_eq!(spread.values, [0.9, 0.6, 0.6]);
        assert_eq!(Spread::of(vec![0.5]).standard_deviation, None);
        assert_eq!(Spread::of(vec![0.5; 3]).standard_deviation, Some(0.0));
    }

    #[test]
    fn the_order_of_seeds_changes_nothing() {
        let (one, other) = (
            Spread::of(vec![0.1, 0.7, 0.2]),
            Spread::of(vec![0.7, 0.2, 0.1]),
        );
        assert_eq!(one.mean.to_bits(), other.mean.to_bits());
        assert_eq!(one.standard_deviation, other.standard_deviation);
    }

    #[test]
    fn quantiles_are_interpolated() {
        let sorted = [0.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(quantile(&sorted, 0.0), 0.0);
        assert_eq!(quantile(&sorted, 0.5), 2.0);
        assert_eq!(quantile(&sorted, 0.625), 2.5);
        assert_eq!(quantile(&sorted, 1.0), 4.0);
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
    }

    #[test]
    fn equal_methods_have_an_interval_of_zero() {
        let gain = Gain::of(&[vec![0; 10], vec![0; 3]], 2);
        assert_eq!((gain.mean_accuracy, gain.low, gain.high), (0.0, 0.0, 0.0));
        assert_eq!(gain.verdict, Verdict::NoGainShown);
    }

    #[test]
    fn a_method_that_is_better_on_every_record_gains_exactly_that() {
        let gain = Gain::of(&[vec![2; 10], vec![2; 3]], 2);
        assert_eq!((gain.mean_accuracy, gain.low, gain.high), (1.0, 1.0, 1.0));
        assert_eq!(gain.verdict, Verdict::Gain);
        let loss = Gain::of(&[vec![-1; 10]], 2);
        assert_eq!((loss.mean_accuracy, loss.high), (-0.5, -0.5));
        assert_eq!(loss.verdict, Verdict::Worse);
    }

    #[test]
    fn tasks_count_the_same_however_many_records_they_have() {
        let gain = Gain::of(&[vec![1; 100], vec![0; 2]], 1);
        assert_eq!(gain.mean_accuracy, 0.5);
        assert_eq!((gain.low, gain.high), (0.5, 0.5));
        let gain = Gain::of(&[vec![], vec![1; 4]], 1);
        assert_eq!(gain.mean_accuracy, 0.5);
    }

    #[test]
    fn the_interval_is_that_of_a_binomial() {
        // 80 of 400 records change to right: 0.2, standard error sqrt(0.2 * 0.8 / 400) = 0.02.
        let records: Vec<i64> = (0..400).map(|index| i64::from(index % 5 == 0)).collect();
        let gain = Gain::of(&[records], 1);
        assert!((gain.mean_accuracy - 0.2).abs() < 1e-12);
        assert!((gain.low - (0.2 - 1.96 * 0.02)).abs() < 0.005, "{gain:?}");
        assert!((gain.high - (0.2 + 1.96 * 0.02)).abs() < 0.005, "{gain:?}");
    }

    #[test]
    fn a_difference_smaller_than_its_noise_shows_no_gain() {
        // 11 better and 9 worse of 100.
        let records: Vec<i64> = (0..100)
            .map(|index| match index {
                0..11 => 1,
                11..20 => -1,
                _ => 0,
            })
            .collect();
        let gain = Gain::of(&[records], 1);
        assert!(gain.low < 0.0 && gain.mean_accuracy > 0.0 && gain.high > 0.0);
        assert_eq!(gain.verdict, Verdict::NoGainShown);
    }
}
