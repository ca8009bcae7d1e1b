//! Rotary positions: Su et al., RoFormer, arXiv:2104.09864, section 3.4.2, in the half-split layout of
//! Hugging Face's files: of the W numbers that turn, number `i` turns together with number `i + W/2`.

mod scaling;

use burn::tensor::{Int, Tensor, TensorData};

use self::scaling::Plain;
pub use self::scaling::RopeScaling;
use crate::ModelError;
use crate::checkpoint::ConfigFile;

/// How fast each pair of numbers of a head turns.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Pair `i` of W/2 turns by `theta^(-2i/W)` radians per token.
    pub theta: f64,
    /// How many numbers W at the front of a head turn; the others stay as they are. An odd W is that of
    /// the frequencies: one more number turns.
    pub width: usize,
    /// How these frequencies are changed for texts longer than those of pretraining.
    pub scaling: RopeScaling,
}

/// What a family calls the fields that old files have outside of an object, and what it has where a file
/// says nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeFields {
    /// Name of the base, and its value where no file has it.
    pub(crate) theta: (&'static str, f64),
    /// Name of the share of a head that turns, and its value where no file has it; none if the whole head
    /// does.
    pub(crate) share: Option<(&'static str, f64)>,
    /// Longest text of pretraining, where the family keeps it outside of the object.
    pub(crate) original_max_tokens: Option<usize>,
    /// Other names of LongRoPE.
    pub(crate) long_rope_names: &'static [&'static str],
}

impl Default for RopeFields {
    /// Whole heads, by a base of 10000.
    fn default() -> Self {
        Self {
            theta: ("rope_theta", 10_000.0),
            share: None,
            original_max_tokens: None,
            long_rope_names: &[],
        }
    }
}

impl Rope {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling` of files before transformers 5.
    pub(crate) fn from_config(
        file: &ConfigFile,
        head_dim: usize,
        fields: RopeFields,
    ) -> Result<Self, ModelError> {
        let (parameters, scaling) = (
            file.object("rope_parameters")?,
            file.object("rope_scaling")?,
        );
        if parameters.is_some() && scaling.is_some() {
            return Err(file.problem("rope_scaling", "is given beside rope_parameters"));
        }
        let rope = parameters.or(scaling);
        Self::from_object(rope.as_ref(), file, head_dim, fields)
    }

    /// As [`from_config`](Self::from_config) from the object of the file that is about these positions.
    pub(crate) fn from_object(
        rope: Option<&ConfigFile>,
        file: &ConfigFile,
        head_dim: usize,
        fields: RopeFields,
    ) -> Result<Self, ModelError> {
        let (theta_field, theta) = fields.theta;
        let outer_theta = file.optional_number(theta_field)?;
        let own_theta = match rope {
            Some(rope) => rope.optional_number("rope_theta")?,
            None => None,
        };
        if let (Some(rope), Some(own), Some(outer)) = (rope, own_theta, outer_theta)
            && own != outer
        {
            let text = format!("differs from {theta_field} outside of it, which has no effect");
            rope.warn("rope_theta", &text);
        }
        let theta = own_theta.or(outer_theta).unwrap_or(theta);
        let width = turned(rope, file, head_dim, fields)?;
        let plain = Plain {
            theta,
            width,
            original_max_tokens: fields.original_max_tokens,
        };
        let scaling = match rope {
            Some(rope) => RopeScaling::from_config(rope, file, plain, fields.long_rope_names)?,
            None => RopeScaling::Default,
        };
        for (rope, field) in rope.into_iter().flat_map(|rope| {
            let unread = rope.unread().into_iter();
            unread.map(move |field| (rope, field))
        }) {
            rope.warn(field, "is not used by this rope_type and has no effect");
        }
        Ok(Self {
            theta,
            width,
            scaling,
        })
    }

    fn plain(&self) -> Plain {
        Plain {
            theta: self.theta,
            width: self.width,
            original_max_tokens: None,
        }
    }

    /// Radians per token of each pair of a head, in a pass of `length` tokens.
    fn frequencies(&self, length: usize) -> Vec<f64> {
        self.scaling.frequencies(self.plain(), length)
    }

    /// What the scaling divides the frequency of each pair of a head by.
    pub(crate) fn divisors(&self) -> Vec<f32> {
        let plain = RopeScaling::Default.frequencies(self.plain(), 1);
        let pairs = plain.into_iter().zip(self.frequencies(1));
        pairs
            .map(|(plain, scaled)| (plain / scaled) as f32)
            .collect()
    }

    /// What of the length of a pass changes the frequencies: equal numbers mean equal frequencies. None if
    /// the length changes nothing.
    pub(super) fn stage(&self, length: usize) -> Option<usize> {
        self.scaling.stage(length)
    }

    /// The rotation of every token by its position `[B, T]`, in a pass of `length` tokens.
    pub(crate) fn rotation(&self, positions: Tensor<2, Int>, length: usize) -> Rotation {
        let frequencies = self.frequencies(length);
        let frequencies: Vec<f32> = frequencies.iter().map(|&f| f as f32).collect();
        let pairs = frequencies.len();
        let data = TensorData::new(frequencies, [1, 1, 1, pairs]);
        let frequencies = Tensor::<4>::from_data(data, &positions.device());
        let [batch, tokens] = positions.dims();
        let angles_bt1p = positions.float().reshape([batch, tokens, 1, 1]) * frequencies;
        let (cos, sin) = (angles_bt1p.clone().cos(), angles_bt1p.sin());
        match self.scaling.attention_factor() {
            1.0 => Rotation { cos, sin },
            factor => Rotation {
                cos: cos.mul_scalar(factor),
                sin: sin.mul_scalar(factor),
            },
        }
    }
}

/// How many numbers of a head turn.
fn turned(
    rope: Option<&ConfigFile>,
    file: &ConfigFile,
    head_dim: usize,
    fields: RopeFields,
) -> Result<usize, ModelError> {
    const SHARE: &str = "partial_rotary_factor";
    let own = match rope {
        Some(rope) => rope.optional_number(SHARE)?,
        None => None,
    };
    let (of, field, share) = match (fields.share, own, rope) {
        (None, Some(share), Some(rope)) if share != 1.0 => return Err(rope.unsupported(SHARE, "1")),
        (None, ..) => (file, "head_dim", 1.0),
        (Some(_), Some(share), Some(rope)) => (rope, SHARE, share),
        (Some((field, share)), ..) => (file, field, file.optional_number(field)?.unwrap_or(share)),
    };
    let width = (head_dim as f64 * share) as usize;
    if width == 0 || 2 * width.div_ceil(2) > head_dim {
        let text = match field {
            "head_dim" => format!("{head_dim} is odd, expected an even width for rotary positions"),
            _ => format!(
                "{share} turns {width} numbers of a head of {head_dim}, expected an even number"
            ),
        };
        return Err(of.problem(field, &text));
    }
    Ok(width)
}

/// The largest position of a pass, plus one.
pub(super) fn length(positions: &Tensor<2, Int>) -> usize {
    let largest = positions.clone().max().into_scalar::<i64>();
    largest as usize + 1
}

/// Cosines and sines, `[B, T, 1, W/2]`.
#[derive(Debug, Clone)]
pub(crate) struct Rotation {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rotation {
    /// Turns the numbers at the front of the heads `[B, T, H, W]`.
    pub(crate) fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        molora_kernels::rotary(x, self.cos.clone(), self.sin.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;
    use molora_testkit::{FORWARD, assert_close, device};

    fn rope(width: usize, scaling: RopeScaling) -> Rope {
        Rope {
            theta: 10_000.0,
            width,
            scaling,
        }
    }

    fn frequencies(scaling: RopeScaling) -> Vec<f64> {
        rope(8, scaling).frequencies(1)
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
        let rope = rope(4, RopeScaling::Default);
        let positions = Tensor::<2, Int>::from_ints([[3]], &device());
        let x = Tensor::<4>::from_floats([[[[1.0, 0.0, 0.0, 2.0]]]], &device());
        let turned = rope.rotation(positions.clone(), 4).apply(x.clone());
        let (fast, slow) = (3.0f32, 0.03f32);
        let expected = [[fast.cos(), -2.0 * slow.sin(), fast.sin(), 2.0 * slow.cos()]];
        assert_close(
            turned.clone().reshape([1, 4]),
            expected,
            FORWARD,
            "rotation",
        );
        // What is behind the numbers that turn stays.
        let rest = Tensor::full([1, 1, 1, 3], 7.0, &device());
        let longer = Tensor::cat(vec![x, rest.clone()], 3);
        let found = rope.rotation(positions, 4).apply(longer);
        assert_close(found, Tensor::cat(vec![turned, rest], 3), 0.0, "a part");
    }

    #[test]
    fn yarn_keeps_the_first_pairs_and_divides_the_last() {
        let yarn = |first, last| RopeScaling::Yarn {
            factor: 4.0,
            first,
            last,
            attention_factor: 1.25,
        };
        near(
            &frequencies(yarn(0.0, 2.0)),
            [1.0, 0.1 * 0.625, 0.01 / 4.0, 0.001 / 4.0],
        );
        near(
            &frequencies(yarn(1.0, 1.0)),
            [1.0, 0.1, 0.01 / 4.0, 0.001 / 4.0],
        );
        let positions = Tensor::<2, Int>::from_ints([[0]], &device());
        let x = Tensor::<4>::from_floats([[[[1.0, 2.0, 3.0, 4.0]]]], &device());
        let scaled = rope(4, yarn(0.0, 2.0))
            .rotation(positions, 1)
            .apply(x.clone());
        assert_close(scaled, x.mul_scalar(1.25), FORWARD, "a factor on all");
    }

    #[test]
    fn the_length_of_a_pass_changes_dynamic_and_long_ropes_alone() {
        let dynamic = rope(
            8,
            RopeScaling::Dynamic {
                factor: 2.0,
                max_tokens: 10,
            },
        );
        near(&dynamic.frequencies(10), [1.0, 0.1, 0.01, 0.001]);
        let theta = 10_000.0 * 3f64.powf(8.0 / 6.0);
        let at = [0.0, 0.25, 0.5, 0.75].map(|share| theta.powf(-share));
        near(&dynamic.frequencies(20), at);
        assert_eq!(
            [3, 10, 11].map(|length| dynamic.stage(length)),
            [Some(10), Some(10), Some(11)]
        );
        let long = rope(
            8,
            RopeScaling::LongRope {
                short: vec![1.0; 4],
                long: vec![2.0, 4.0, 5.0, 8.0],
                original_max_tokens: 10,
                attention_factor: 1.0,
            },
        );
        near(&long.frequencies(10), [1.0, 0.1, 0.01, 0.001]);
        near(&long.frequencies(11), [0.5, 0.025, 0.002, 0.000_125]);
        assert_eq!(
            [10, 11, 12].map(|length| long.stage(length)),
            [Some(0), Some(1), Some(1)]
        );
        assert_eq!(rope(8, RopeScaling::Default).stage(99), None);
    }
}
