//! Rotary positions: Su et al., RoFormer, arXiv:2104.09864, section 3.4.2, in the half-split layout of
//! Hugging Face's files: number `i` of a head turns together with number `i + W/2`.

use std::f64::consts::TAU;

use burn::tensor::{Int, Tensor, TensorData};

use crate::ModelError;
use crate::checkpoint::ConfigFile;

/// How fast each pair of numbers of a head turns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Pair `i` of W/2 turns by `theta^(-2i/W)` radians per token.
    pub theta: f64,
    /// How these frequencies are changed for texts longer than those of pretraining.
    pub scaling: RopeScaling,
}

/// A change of the frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Slow ones are divided by `factor`, fast ones are kept, those between are interpolated: Llama
    /// 3.1 (Grattafiori et al., arXiv:2407.21783, section 3.4.2) as in its published code.
    Llama3 {
        /// The divisor of slow frequencies.
        factor: f64,
        /// Frequencies that turn at most this often in `original_max_tokens` are slow.
        low_freq_factor: f64,
        /// Frequencies that turn at least this often in `original_max_tokens` are fast.
        high_freq_factor: f64,
        /// Longest text of pretraining, in tokens.
        original_max_tokens: usize,
    },
}

impl Rope {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling` of files before transformers 5.
    pub(crate) fn from_config(file: &ConfigFile) -> Result<Self, ModelError> {
        let theta = file.optional_number("rope_theta")?;
        let (parameters, scaling) = (
            file.object("rope_parameters")?,
            file.object("rope_scaling")?,
        );
        if parameters.is_some() && scaling.is_some() {
            return Err(file.problem("rope_scaling", "is given beside rope_parameters"));
        }
        let Some(rope) = parameters.or(scaling) else {
            return Ok(Self {
                theta: theta.unwrap_or(10_000.0),
                scaling: RopeScaling::Default,
            });
        };
        let own_theta = rope.optional_number("rope_theta")?;
        if own_theta
            .zip(theta)
            .is_some_and(|(own, outer)| own != outer)
        {
            rope.warn(
                "rope_theta",
                "differs from rope_theta outside of it, which has no effect",
            );
        }
        let theta = own_theta.or(theta);
        let scaling = RopeScaling::from_config(&rope, file)?;
        if rope
            .optional_number("partial_rotary_factor")?
            .unwrap_or(1.0)
            != 1.0
        {
            return Err(rope.unsupported("partial_rotary_factor", "1"));
        }
        for field in rope.unread() {
            rope.warn(field, "is not used by this rope_type and has no effect");
        }
        Ok(Self {
            theta: theta.unwrap_or(10_000.0),
            scaling,
        })
    }

    /// Radians per token of each pair of a head.
    fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let pairs = (0..head_dim).step_by(2);
        let plain = pairs.map(|i| self.theta.powf(-(i as f64) / head_dim as f64));
        plain
            .map(|frequency| self.scaling.apply(frequency))
            .collect()
    }

    /// What the scaling divides the frequency of each pair of a head by.
    pub(crate) fn divisors(&self, head_dim: usize) -> Vec<f32> {
        let plain = Self {
            scaling: RopeScaling::Default,
            ..*self
        };
        let pairs = plain
            .frequencies(head_dim)
            .into_iter()
            .zip(self.frequencies(head_dim));
        pairs
            .map(|(plain, scaled)| (plain / scaled) as f32)
            .collect()
    }

    /// The rotation of every token by its position `[B, T]`.
    pub(crate) fn rotation(&self, positions: Tensor<2, Int>, head_dim: usize) -> Rotation {
        let frequencies: Vec<f32> = self
            .frequencies(head_dim)
            .iter()
            .map(|&f| f as f32)
            .collect();
        let data = TensorData::new(frequencies, [1, 1, 1, head_dim / 2]);
        let frequencies = Tensor::<4>::from_data(data, &positions.device());
        let [batch, tokens] = positions.dims();
        let angles_bt1p = positions.float().reshape([batch, tokens, 1, 1]) * frequencies;
        Rotation {
            cos: angles_bt1p.clone().cos(),
            sin: angles_bt1p.sin(),
        }
    }
}

impl RopeScaling {
    fn from_config(rope: &ConfigFile, file: &ConfigFile) -> Result<Self, ModelError> {
        // `type` is the older name; files that were saved again hold both.
        let (new, old) = (rope.text("rope_type")?, rope.text("type")?);
        if let (Some(new), Some(old)) = (new, old)
            && new != old
        {
            let text = format!("is \"{new}\", but type beside it is \"{old}\"");
            return Err(rope.problem("rope_type", &text));
        }
        let field = if new.is_some() { "rope_type" } else { "type" };
        match rope.text(field)?.unwrap_or("default") {
            "default" => Ok(Self::Default),
            "linear" => Ok(Self::Linear {
                factor: rope.number("factor")?,
            }),
            "llama3" => Self::llama3(rope, file),
            _ => Err(rope.unsupported(field, "default, linear or llama3")),
        }
    }

    fn llama3(rope: &ConfigFile, file: &ConfigFile) -> Result<Self, ModelError> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let original = match rope.optional_size(ORIGINAL)? {
            Some(tokens) => tokens,
            None => file.size(ORIGINAL)?,
        };
        let (low, high) = (
            rope.number("low_freq_factor")?,
            rope.number("high_freq_factor")?,
        );
        if low >= high {
            let expected = format!("more than low_freq_factor {low}");
            return Err(rope.unsupported("high_freq_factor", &expected));
        }
        Ok(Self::Llama3 {
            factor: rope.number("factor")?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_tokens: original,
        })
    }

    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_tokens: original,
            } => {
                let turns = original as f64 * frequency / TAU;
                let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - share) * frequency / factor + share * frequency
            }
        }
    }
}

/// Cosines and sines, `[B, T, 1, W/2]`.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotation {
    /// Turns the heads `[B, T, H, W]`.
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let (first, second) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let turned = [
            first.clone() * cos.clone() - second.clone() * sin.clone(),
            second * cos + first * sin,
        ];
        Tensor::cat(turned.into(), 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close, device};

    fn frequencies(scaling: RopeScaling) -> Vec<f64> {
        let theta = 10_000.0;
        Rope { theta, scaling }.frequencies(8)
    }

    fn near(actual: &[f64], expected: [f64; 4]) {
        for (a, b) in actual.iter().zip(expected) {
            assert!((a - b).abs() < 1e-12, "{actual:?}, expected {expected:?}");
        }
    }

    #[test]
    fn frequencies_fall_geometrically() {
        near(&frequencies(RopeScaling::Default), [1.0, 0.1, 0.01, 0.001]);
        let linear = RopeScaling::Linear { factor: 4.0 };
        near(&frequencies(linear), [0.25, 0.025, 0.0025, 0.00025]);
    }

    #[test]
    fn llama3_keeps_fast_divides_slow_and_interpolates_between() {
        // In 100 * tau tokens the four frequencies turn 100, 10, 1 and 0.1 times.
        let at = |low_freq_factor, high_freq_factor| {
            frequencies(RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor,
                high_freq_factor,
                original_max_tokens: 628,
            })
        };
        near(&at(2.0, 5.0), [1.0, 0.1, 0.01 / 8.0, 0.001 / 8.0]);
        let turns = 628.0 * 0.1 / TAU;
        let share = (turns - 5.0) / 15.0;
        let between = 0.1 * (share + (1.0 - share) / 8.0);
        near(&at(5.0, 20.0), [1.0, between, 0.01 / 8.0, 0.001 / 8.0]);
    }

    #[test]
    fn a_rotation_turns_each_pair_by_its_angle() {
        let rope = Rope {
            theta: 10_000.0,
            scaling: RopeScaling::Default,
        };
        let positions = Tensor::<2, Int>::from_ints([[3]], &device());
        let x = Tensor::<4>::from_floats([[[[1.0, 0.0, 0.0, 2.0]]]], &device());
        let turned = rope.rotation(positions, 4).apply(x);
        let (fast, slow) = (3.0f32, 0.03f32);
        let expected = [[fast.cos(), -2.0 * slow.sin(), fast.sin(), 2.0 * slow.cos()]];
        assert_close(turned.reshape([1, 4]), expected, FORWARD, "rotation");
    }
}
