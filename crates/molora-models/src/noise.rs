//! Noise on embedded tokens.

use burn::tensor::{Bool, Int, Tensor};
use molora_kernels::random::{Seed, uniform};

/// Noise that is added to the embedded tokens of a training pass: for a text of `L` tokens
/// `alpha / sqrt(L * D)` times draws from U(-1, 1). Padding gets none and counts for nothing.
///
/// Each row has draws of its own, so that they are the same however a batch is cut.
///
/// # Source
/// Jain et al., NEFTune, arXiv:2310.05914, algorithm 1. `L` is the length of the text itself, as in the
/// authors' program; implementations that take the padded length scale short texts down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddingNoise {
    /// The factor; the paper has 5, 10 and 15.
    pub alpha: f64,
    /// Key of the draws of a whole batch.
    pub seed: Seed,
    /// Number in that batch of the first row of the pass.
    pub first_row: usize,
}

impl EmbeddingNoise {
    /// The embedded tokens `[B, T, D]` with the noise. `mask` `[B, T]` is true for real tokens; `segments`
    /// `[B, T]` says which text of a packed row each token belongs to.
    pub(crate) fn add(
        &self,
        embedded: Tensor<3>,
        mask: &Tensor<2, Bool>,
        segments: Option<&Tensor<2, Int>>,
    ) -> Tensor<3> {
        let ([rows, tokens, width], device) = (embedded.dims(), embedded.device());
        let noise = (0..rows).map(|row| {
            let seed = self.seed.index((self.first_row + row) as u64);
            uniform([tokens, width], 1.0, seed, &device)
        });
        let noise = Tensor::<2>::stack::<3>(noise.collect(), 0);
        let mask = mask.clone().float().to_device(&device);
        let lengths = match segments {
            None => mask.clone().sum_dim(1),
            Some(segments) => {
                let [of_row, of_column] = [2, 1].map(|axis| segments.clone().unsqueeze_dim(axis));
                let is_same: Tensor<3> = Tensor::<3, Int>::equal(of_row, of_column).float();
                let counted = is_same * mask.clone().unsqueeze_dim(1);
                counted.sum_dim(2).squeeze_dim(2)
            }
        };
        let scale = (lengths.clamp_min(1.0) * width as f64).sqrt().recip() * mask;
        embedded + noise * (scale * self.alpha).unsqueeze_dim(2)
    }
}

#[cfg(test)]
mod tests {
    use molora_testkit::device;

    use super::*;

    const ALPHA: f64 = 5.0;

    fn noise(first_row: usize, mask: &[[bool; 4]], segments: Option<[[i32; 4]; 2]>) -> Vec<f32> {
        let noise = EmbeddingNoise {
            alpha: ALPHA,
            seed: Seed::new(3),
            first_row,
        };
        let zeros = Tensor::zeros([mask.len(), 4, 2], &device());
        let mask: Vec<bool> = mask.iter().flatten().copied().collect();
        let shape = [mask.len() / 4, 4];
        let mask = burn::tensor::TensorData::new(mask, shape);
        let segments = segments.map(|segments| Tensor::from_ints(segments, &device()));
        let mask = Tensor::<2, Bool>::from_data(mask, &device());
        let added = noise.add(zeros, &mask, segments.as_ref()).into_data();
        added.try_into_vec::<f32>().expect("f32")
    }

    const MASK: [[bool; 4]; 2] = [[true; 4], [true, true, false, false]];

    /// The draws of a row without their scale.
    fn draws(row: u64) -> Vec<f32> {
        let draws = uniform::<2>([4, 2], 1.0, Seed::new(3).index(row), &device());
        draws.into_data().try_into_vec::<f32>().expect("f32")
    }

    #[test]
    fn a_text_is_scaled_by_its_own_length_and_padding_has_none() {
        let found = noise(0, &MASK, None);
        for (place, (value, draw)) in found.iter().zip([draws(0), draws(1)].concat()).enumerate() {
            let scale = match place {
                0..8 => ALPHA / f64::sqrt(4.0 * 2.0),
                8..12 => ALPHA / f64::sqrt(2.0 * 2.0),
                _ => 0.0,
            };
            let expected = scale * f64::from(draw);
            assert!((f64::from(*value) - expected).abs() < 1e-6, "{place}");
        }
        assert!(found[..12].iter().all(|value| *value != 0.0));
    }

    #[test]
    fn a_batch_may_be_cut_anywhere() {
        let whole = noise(0, &MASK, None);
        let parts = [noise(0, &MASK[..1], None), noise(1, &MASK[1..], None)];
        assert_eq!(whole, parts.concat());
    }

    #[test]
    fn texts_of_a_packed_row_are_scaled_apart() {
        let found = noise(0, &MASK, Some([[0, 0, 0, 1], [0, 0, 0, 0]]));
        let expected =
            |place: usize, length: f64| ALPHA / (length * 2.0).sqrt() * f64::from(draws(0)[place]);
        for (place, length) in [(0, 3.0), (5, 3.0), (6, 1.0), (7, 1.0)] {
            let gap = f64::from(found[place]) - expected(place, length);
            assert!(gap.abs() < 1e-6, "{place}");
        }
        assert_eq!(found[12..], [0.0; 4]);
    }
}
