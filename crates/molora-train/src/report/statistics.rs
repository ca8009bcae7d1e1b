//! Means over seeds, and the interval of a difference: a bootstrap over records with a draw for seeds.
//!
//! `d[s][t][i]` is 1 if a method with seed `s` gets test record `i` of task `t` right and the
//! reference with that seed does not, -1 the other way round, else 0. The gain is the mean of
//! `g[s] = 1/T sum_t 1/n_t sum_i d[s][t][i]` over the `S` seeds: the difference of the mean
//! accuracies. Two things would be others in another experiment:
//!
//! - **the records**: a resample draws `n_t` records of each task with replacement, the same for both
//!   methods and all seeds (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13);
//! - **the seeds**: drawing 2 to 5 seeds with replacement would understate how much they differ, by
//!   `(S - 1) / S` in the variance and by more in the tails. So each resample is moved by
//!   `sd(g) / sqrt(S)` times a draw of Student's t with `S - 1` degrees of freedom, which is what
//!   the mean of so few normal numbers does.
//!
//! The interval goes from the 2.5th to the 97.5th percentile of both together. With one seed it can
//! cover the records alone, and there is no verdict.

use molora_kernels::random::unit;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::data::draw::below;

/// Number of resamples of the bootstrap.
pub(crate) const RESAMPLES: usize = 2000;

/// Share of the resamples that an interval covers.
pub(crate) const CONFIDENCE: f64 = 0.95;

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
    /// Nothing: one seed says nothing about the spread over seeds.
    OneSeed,
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
            Self::OneSeed => "one seed: none",
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
    /// The gain and its interval from the differences `d[s][t][i]`.
    ///
    /// A task without records counts as no difference.
    ///
    /// # Panics
    /// If there is no seed, or one has other tasks or records than another.
    pub fn of(seeds: &[Vec<Vec<i64>>]) -> Self {
        let count = seeds.len();
        let summed = summed(seeds);
        let mean = |differences: &[Vec<i64>], sum: &mut dyn FnMut(&[i64]) -> i64| {
            let task = |records: &Vec<i64>| sum(records) as f64 / records.len().max(1) as f64;
            differences.iter().map(task).sum::<f64>() / differences.len().max(1) as f64
        };
        let mut all = |records: &[i64]| records.iter().sum();
        let by_seed = seeds.iter().map(|seed| mean(seed, &mut all)).collect();
        let deviation = Spread::of(by_seed).standard_deviation.unwrap_or(0.0);
        let error = deviation / (count as f64).sqrt();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
        let mut means: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let records = mean(&summed, &mut |records| resampled(records, &mut rng));
                let seeds = match count {
                    1 => 0.0,
                    _ => error * student(count - 1, &mut rng),
                };
                records / count as f64 + seeds
            })
            .collect();
        means.sort_by(f64::total_cmp);
        let tail = (1.0 - CONFIDENCE) / 2.0;
        let (low, high) = (quantile(&means, tail), quantile(&means, 1.0 - tail));
        let verdict = match (low, high) {
            _ if count == 1 => Verdict::OneSeed,
            (low, _) if low > 0.0 => Verdict::Gain,
            (_, high) if high < 0.0 => Verdict::Worse,
            _ => Verdict::NoGainShown,
        };
        Self {
            mean_accuracy: mean(&summed, &mut all) / count as f64,
            low,
            high,
            verdict,
        }
    }
}

/// The differences of all seeds together, by task and record.
fn summed(seeds: &[Vec<Vec<i64>>]) -> Vec<Vec<i64>> {
    let mut summed = seeds[0].clone();
    for seed in &seeds[1..] {
        assert_eq!(seed.len(), summed.len(), "as many tasks with each seed");
        for (sums, records) in summed.iter_mut().zip(seed) {
            assert_eq!(records.len(), sums.len(), "as many records with each seed");
            let pairs = sums.iter_mut().zip(records);
            pairs.for_each(|(sum, record)| *sum += record);
        }
    }
    summed
}

/// A draw of Student's t.
fn student(degrees: usize, rng: &mut Xoshiro256PlusPlus) -> f64 {
    let squares: f64 = (0..degrees).map(|_| normal(rng).powi(2)).sum();
    normal(rng) / (squares / degrees as f64).sqrt().max(1e-12)
}

/// A draw of the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut Xoshiro256PlusPlus) -> f64 {
    let (radius, angle) = (1.0 - unit(rng), unit(rng));
    (-2.0 * radius.ln()).sqrt() * (2.0 * std::f64::consts::PI * angle).cos()
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
        let gain = Gain::of(&[vec![vec![0; 10], vec![0; 3]], vec![vec![0; 10], vec![0; 3]]]);
        assert_eq!((gain.mean_accuracy, gain.low, gain.high), (0.0, 0.0, 0.0));
        assert_eq!(gain.verdict, Verdict::NoGainShown);
    }

    #[test]
    fn a_method_that_is_better_on_every_record_gains_exactly_that() {
        let better = vec![vec![1; 10], vec![1; 3]];
        let gain = Gain::of(&[better.clone(), better]);
        assert_eq!((gain.mean_accuracy, gain.low, gain.high), (1.0, 1.0, 1.0));
        assert_eq!(gain.verdict, Verdict::Gain);
        let worse = vec![vec![-1; 10]];
        let loss = Gain::of(&[worse.clone(), worse]);
        assert_eq!((loss.mean_accuracy, loss.high), (-1.0, -1.0));
        assert_eq!(loss.verdict, Verdict::Worse);
    }

    #[test]
    fn one_seed_has_no_verdict() {
        let gain = Gain::of(&[vec![vec![1; 10]]]);
        assert_eq!((gain.mean_accuracy, gain.low), (1.0, 1.0));
        assert_eq!(gain.verdict, Verdict::OneSeed);
    }

    #[test]
    fn tasks_count_the_same_however_many_records_they_have() {
        let gain = Gain::of(&[vec![vec![1; 100], vec![0; 2]]]);
        assert_eq!(gain.mean_accuracy, 0.5);
        assert_eq!((gain.low, gain.high), (0.5, 0.5));
        let gain = Gain::of(&[vec![vec![], vec![1; 4]]]);
        assert_eq!(gain.mean_accuracy, 0.5);
    }

    #[test]
    fn the_interval_of_records_is_that_of_a_binomial() {
        // 80 of 400 records change to right: 0.2, standard error sqrt(0.2 * 0.8 / 400) = 0.02.
        let records: Vec<i64> = (0..400).map(|index| i64::from(index % 5 == 0)).collect();
        let gain = Gain::of(&[vec![records]]);
        assert!((gain.mean_accuracy - 0.2).abs() < 1e-12);
        assert!((gain.low - (0.2 - 1.96 * 0.02)).abs() < 0.005, "{gain:?}");
        assert!((gain.high - (0.2 + 1.96 * 0.02)).abs() < 0.005, "{gain:?}");
    }

    #[test]
    fn the_interval_of_seeds_is_that_of_student() {
        // Gains of 0.0, 0.1 and 0.2 on so many records that these hardly matter: their mean has the
        // standard error 0.1 / sqrt(3), and t with 2 degrees of freedom the 97.5th percentile 4.303.
        let seed = |right: usize| vec![(0..40_000).map(|i| i64::from(i % 10 < right)).collect()];
        let gain = Gain::of(&[seed(0), seed(1), seed(2)]);
        let width = 4.303 * 0.1 / 3.0_f64.sqrt();
        assert!((gain.mean_accuracy - 0.1).abs() < 1e-12);
        assert!((gain.high - (0.1 + width)).abs() < 0.2 * width, "{gain:?}");
        assert!((gain.low - (0.1 - width)).abs() < 0.2 * width, "{gain:?}");
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
        let gain = Gain::of(&[vec![records.clone()], vec![records]]);
        assert!(gain.low < 0.0 && gain.mean_accuracy > 0.0 && gain.high > 0.0);
        assert_eq!(gain.verdict, Verdict::NoGainShown);
    }

    /// Made-up experiments whose true gain is known: their intervals hold it about as often as they
    /// say, whether the seeds matter or not.
    #[test]
    fn intervals_cover_the_true_gain() {
        const EXPERIMENTS: usize = 200;
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(11);
        for (seeds, between_seeds) in [(3, 0.0), (3, 0.03), (5, 0.015)] {
            let mut covered = 0;
            for _ in 0..EXPERIMENTS {
                let found = made_up(seeds, 0.02, between_seeds, &mut rng);
                covered += usize::from(found.low <= 0.02 && 0.02 <= found.high);
            }
            let share = covered as f64 / EXPERIMENTS as f64;
            // Standard error of the share at 0.95: 0.015.
            assert!((0.91..=1.0).contains(&share), "{seeds} seeds: {share}");
        }
    }

    /// A method whose chance to be right is by `gain` higher than the reference's on every record, and
    /// by a normal number more with each seed. Records differ in difficulty.
    fn made_up(seeds: usize, gain: f64, between_seeds: f64, rng: &mut Xoshiro256PlusPlus) -> Gain {
        let chances: Vec<Vec<f64>> = (0..2)
            .map(|_| (0..150).map(|_| 0.3 + 0.4 * unit(rng)).collect())
            .collect();
        let experiment: Vec<Vec<Vec<i64>>> = (0..seeds)
            .map(|_| {
                let more = gain + between_seeds * normal(rng);
                let record = |chance: &f64, rng: &mut Xoshiro256PlusPlus| {
                    let method = unit(rng) < chance + more;
                    i64::from(method) - i64::from(unit(rng) < *chance)
                };
                let task = |chances: &Vec<f64>| chances.iter().map(|c| record(c, rng)).collect();
                chances.iter().map(task).collect()
            })
            .collect();
        Gain::of(&experiment)
    }
}
