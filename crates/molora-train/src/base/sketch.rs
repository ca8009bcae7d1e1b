//! A few numbers that summarise many, for comparing values of which one side is not there.

use serde::{Deserialize, Serialize};

/// Number of sums.
const SIGNS: usize = 8;

/// Sums of values `v_i` under random signs: `s_k = sum_i sign_k(i) v_i`, the AMS sketch of Alon, Matias
/// and Szegedy (1996). For two lists of the same length the mean over `k` of `(s_k - s'_k)^2` is in
/// expectation `|v - v'|^2`, and exactly that where a single value differs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sketch([f64; SIGNS]);

impl Sketch {
    /// The sketch of values in their order; none if they are not finite.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sketcher = Sketcher::default();
        values.into_iter().for_each(|value| sketcher.add(value));
        sketcher.finish()
    }

    /// The Euclidean length of the values, estimated to a fourth or so.
    pub fn length(&self) -> f64 {
        let squares: f64 = self.0.iter().map(|sum| sum * sum).sum();
        (squares / SIGNS as f64).sqrt()
    }

    /// The Euclidean length of the difference, estimated alike; hardly any value differs by more.
    pub fn distance(&self, other: &Self) -> f64 {
        Self(std::array::from_fn(|k| self.0[k] - other.0[k])).length()
    }

    /// The largest difference of two sums as a share of the largest sum on either side.
    pub fn relative(&self, other: &Self) -> f64 {
        let largest =
            |sums: &[f64; SIGNS]| sums.iter().fold(0.0_f64, |max, sum| max.max(sum.abs()));
        let differences = std::array::from_fn(|k| self.0[k] - other.0[k]);
        match largest(&differences) {
            0.0 => 0.0,
            difference => difference / largest(&self.0).max(largest(&other.0)),
        }
    }
}

/// A sketch that is being made, value by value.
#[derive(Debug, Default)]
pub(crate) struct Sketcher {
    sums: [f64; SIGNS],
    count: u64,
}

impl Sketcher {
    pub(crate) fn add(&mut self, value: f64) {
        let signs = mix(self.count);
        self.count += 1;
        for (bit, sum) in self.sums.iter_mut().enumerate() {
            *sum += if signs >> bit & 1 == 1 { value } else { -value };
        }
    }

    /// The sketch; none if a value was not finite.
    pub(crate) fn finish(self) -> Option<Sketch> {
        let is_finite = self.sums.iter().all(|sum| sum.is_finite());
        is_finite.then_some(Sketch(self.sums))
    }
}

/// The finaliser of SplitMix64: numbers in a row become bits without a pattern.
pub(crate) fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_value_is_measured_exactly() {
        let values: Vec<f64> = (0..1000).map(|n| f64::from(n % 7) - 3.0).collect();
        let mut other = values.clone();
        other[417] += 0.25;
        let [one, two] = [values.clone(), other].map(|v| Sketch::of(v).expect("finite"));
        assert!((one.distance(&two) - 0.25).abs() < 1e-12);
        assert_eq!(one.relative(&one), 0.0);
        assert!(one.relative(&two) > 0.0);
    }

    #[test]
    fn lengths_are_about_right() {
        let values = |shift: f64| (0..4000).map(move |n| (f64::from(n) * 0.7 + shift).sin());
        let [one, two] = [0.0, 1.0].map(|shift| Sketch::of(values(shift)).expect("finite"));
        let length = |values: Vec<f64>| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let expected = length(values(0.0).collect());
        assert!(
            (one.length() / expected - 1.0).abs() < 0.5,
            "{}",
            one.length()
        );
        let expected = length(values(0.0).zip(values(1.0)).map(|(a, b)| a - b).collect());
        let found = one.distance(&two);
        assert!((found / expected - 1.0).abs() < 0.5, "{found} {expected}");
    }

    #[test]
    fn what_is_not_finite_has_none() {
        assert_eq!(Sketch::of([1.0, f64::NAN]), None);
        assert_eq!(Sketch::of([]).expect("nothing is finite").length(), 0.0);
    }
}
