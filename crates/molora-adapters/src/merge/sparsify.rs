//! Which entries of a matrix stay.

use burn::tensor::{Tensor, TensorData};
use molora_kernels::random::{Seed, dropout_mask};
use serde::{Deserialize, Serialize};

use crate::AdapterError;

/// What becomes of the entries of one matrix before it meets the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sparsify {
    /// All stay.
    #[default]
    Nothing,
    /// The largest stay, see [`keep_largest`].
    Largest {
        /// Share of the entries that stay.
        density: f64,
    },
    /// Each entry stays with a probability and is divided by it, so that the expectation does not
    /// change (DARE, arXiv:2311.03099, eq. 3 and 4, where `p` is one minus the density).
    Random {
        /// Share of the entries that stay.
        density: f64,
        /// Seed of the draw.
        seed: u64,
    },
}

impl Sparsify {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`AdapterError::Share`] for a density outside of 0 to 1, [`AdapterError::NotPositive`] for one
    /// of 0 by which entries would be divided.
    pub fn validate(self) -> Result<(), AdapterError> {
        let field = "density";
        let (Self::Largest { density } | Self::Random { density, .. }) = self else {
            return Ok(());
        };
        let value = density;
        if !(0.0..=1.0).contains(&density) {
            return Err(AdapterError::Share { field, value });
        }
        match self {
            Self::Random { .. } if density == 0.0 => {
                Err(AdapterError::NotPositive { field, value })
            }
            _ => Ok(()),
        }
    }

    /// A matrix with the entries that stay. `name` and `index` key the draw: the matrix and the
    /// model that it is of.
    pub(super) fn apply(self, matrix: &Tensor<2>, name: &str, index: usize) -> Tensor<2> {
        match self {
            Self::Nothing => matrix.clone(),
            Self::Largest { density } => keep_largest(matrix, density),
            Self::Random { density, seed } => {
                let seed = Seed::new(seed).child(name).index(index as u64);
                let mask = dropout_mask(matrix.dims(), 1.0 - density, seed, &matrix.device());
                matrix.clone() * mask
            }
        }
    }
}

/// A matrix with its largest entries alone, `density` times their number rounded down; of equal ones
/// the first stay (PEFT's `magnitude_prune`, and TIES' trimming, arXiv:2306.01708, section 3).
pub fn keep_largest(matrix: &Tensor<2>, density: f64) -> Tensor<2> {
    let mut values = host(matrix);
    let kept = ((density * values.len() as f64) as usize).min(values.len());
    if kept < values.len() {
        let mut order: Vec<usize> = (0..values.len()).collect();
        let size = |index: usize| values[index].abs();
        order.select_nth_unstable_by(kept, |&one, &two| {
            size(two).total_cmp(&size(one)).then(one.cmp(&two))
        });
        for &index in &order[kept..] {
            values[index] = 0.0;
        }
    }
    of(values, matrix)
}

/// The entries of a matrix where `keep` is 1, divided by the share `density` of ones (DARE).
///
/// # Panics
/// If the shapes differ.
pub fn rescaled(matrix: &Tensor<2>, keep: Tensor<2>, density: f64) -> Tensor<2> {
    (matrix.clone() * keep).div_scalar(density)
}

/// The entries whose size is above a quantile of all sizes, between two of them by linear
/// interpolation (E-WEMoE, arXiv:2410.21804, section 4.2).
pub fn above_quantile(matrix: &Tensor<2>, quantile: f64) -> Tensor<2> {
    let mut values = host(matrix);
    let mut sizes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    sizes.sort_by(f32::total_cmp);
    let Some(last) = sizes.len().checked_sub(1) else {
        return matrix.clone();
    };
    let place = quantile.clamp(0.0, 1.0) * last as f64;
    let (low, share) = (place as usize, place.fract());
    let [below, above] = [low, (low + 1).min(last)].map(|index| f64::from(sizes[index]));
    let limit = below + share * (above - below);
    for value in &mut values {
        if f64::from(value.abs()) <= limit {
            *value = 0.0;
        }
    }
    of(values, matrix)
}

fn host(matrix: &Tensor<2>) -> Vec<f32> {
    let values = matrix.clone().into_data().try_into_vec();
    values.expect("parameters are f32")
}

fn of(values: Vec<f32>, like: &Tensor<2>) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, like.dims()), &like.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close, device};

    fn row(values: [f32; 5]) -> Tensor<2> {
        Tensor::from_data([values], &device())
    }

    #[test]
    fn the_largest_stay_and_of_equal_ones_the_first() {
        let matrix = row([1.0, -2.0, 2.0, 0.5, -2.0]);
        for (density, expected) in [
            (0.0, [0.0; 5]),
            (0.5, [0.0, -2.0, 2.0, 0.0, 0.0]),
            (0.6, [0.0, -2.0, 2.0, 0.0, -2.0]),
            (0.79, [0.0, -2.0, 2.0, 0.0, -2.0]),
            (1.0, [1.0, -2.0, 2.0, 0.5, -2.0]),
        ] {
            assert_close(keep_largest(&matrix, density), [expected], 0.0, "kept");
        }
    }

    #[test]
    fn a_quantile_lies_between_two_entries_and_is_not_kept() {
        let matrix = row([1.0, -2.0, 3.0, -4.0, 5.0]);
        // 0.9 of the way from the first to the last: 4.6.
        let kept = above_quantile(&matrix, 0.9);
        assert_close(kept, [[0.0, 0.0, 0.0, 0.0, 5.0]], 0.0, "0.9");
        let kept = above_quantile(&matrix, 0.5);
        assert_close(kept, [[0.0, 0.0, 0.0, -4.0, 5.0]], 0.0, "0.5");
    }

    #[test]
    fn a_random_draw_is_that_of_its_keys_and_has_the_right_mean() {
        let matrix = Tensor::<2>::ones([100, 100], &device());
        let rule = Sparsify::Random {
            density: 0.25,
            seed: 3,
        };
        let drawn = rule.apply(&matrix, "a", 0);
        assert_close(rule.apply(&matrix, "a", 0), drawn.clone(), 0.0, "again");
        for (name, index) in [("b", 0), ("a", 1)] {
            let gap = (rule.apply(&matrix, name, index) - drawn.clone()).abs();
            assert!(gap.max().into_scalar::<f32>() > 1.0, "{name} {index}");
        }
        assert_close(drawn.clone().max(), [4.0], FORWARD, "rescaled");
        let mean: f32 = drawn.mean().into_scalar();
        // Five deviations of the mean of 10,000 draws.
        assert!((mean - 1.0).abs() < 5.0 * 0.0174, "{mean}");
    }

    #[test]
    fn densities_out_of_range_are_refused() {
        let text = |sparsify: Sparsify| sparsify.validate().expect_err("refused").to_string();
        assert_eq!(
            text(Sparsify::Largest { density: 1.5 }),
            "density is 1.5, expected a number from 0 to 1"
        );
        assert_eq!(
            text(Sparsify::Random {
                density: 0.0,
                seed: 0
            }),
            "density is 0, expected a finite number above 0"
        );
        assert!(Sparsify::Largest { density: f64::NAN }.validate().is_err());
    }
}
