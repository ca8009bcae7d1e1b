//! Scalar functions in plain arithmetic, so that the compiler can vectorise a loop over them.
//!
//! They hold no branch, table or call. Every multiply-add is fused, so a value is the same bits on
//! every instruction set. NaN passes through. The polynomials are minimax fits (Remez exchange in
//! 40 digits) to the functions named beside them.

use std::f32::consts::LOG2_E;

/// Number of partial sums of a reduction: one AVX-512 register, and fixed so that results do not
/// depend on the instruction set.
pub(crate) const LANES: usize = 16;

/// `exp(x)`, within 2 units in the last place from the smallest denormal to infinity.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// `ln 2 = HIGH + LOW`, where `n * HIGH` is exact for every exponent `n`.
    const HIGH: f32 = 0.693_145_75;
    const LOW: f32 = (std::f64::consts::LN_2 - HIGH as f64) as f32;

    // Beyond these limits the result is 0 or infinity anyway; clamp keeps NaN.
    let x = x.clamp(-105.0, 89.0);
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LOW, n.mul_add(-HIGH, x));

    // (exp(r) - 1 - r) / r^2
    let p = 0.000_198_578_65_f32
        .mul_add(r, 0.001_393_377_7)
        .mul_add(r, 0.008_333_361)
        .mul_add(r, 0.041_666_463)
        .mul_add(r, 0.166_666_67)
        .mul_add(r, 0.5);
    let fraction = (r * r).mul_add(p, r) + 1.0;

    // 2^n in two factors, because n reaches beyond the exponents of normal numbers.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    fraction * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `2^n` for `-126 <= n <= 127`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// The standard normal distribution at `x`: `(P(X <= x), density)`.
///
/// Both have a small *relative* error in the tails, where `1 + erf` has none of its digits left.
#[inline(always)]
pub(crate) fn normal(x: f32) -> (f32, f32) {
    const HALF_SQRT_2_OVER_PI: f32 = 0.398_942_3;
    /// Beyond it the tail is less than half of the smallest denormal.
    const END: f32 = 14.5;
    const K: f32 = 3.0;

    // `min` would turn NaN into END.
    let a = x.abs();
    let a = if a > END { END } else { a };
    // exp(-a^2 / 2), with the rounding error of a^2 put back.
    let square = a * a;
    let error = a.mul_add(a, -square);
    let gauss = exp(-0.5 * square);
    let gauss = (gauss * -0.5).mul_add(error, gauss);

    // P(X <= -a) / exp(-a^2 / 2) as a polynomial in v = (K - a) / (K + a), which maps
    // [0, infinity) to (-1, 1].
    let v = (K - a) / (K + a);
    let ratio = (-5.316_044_6e-5_f32)
        .mul_add(v, 1.150_138_2e-4)
        .mul_add(v, 3.390_109_3e-4)
        .mul_add(v, -9.832_886e-4)
        .mul_add(v, -2.904_386_7e-3)
        .mul_add(v, 6.131_942_4e-3)
        .mul_add(v, 4.621_326e-2)
        .mul_add(v, 1.232_250_4e-1)
        .mul_add(v, 2.064_026_1e-1)
        .mul_add(v, 1.215_139_5e-1);
    let tail = ratio * gauss;
    let below = if x > 0.0 { 1.0 - tail } else { tail };
    (below, gauss * HALF_SQRT_2_OVER_PI)
}

/// The logistic function `P = 1 / (1 + exp(-x))` and its slope `P * (1 - P)`.
///
/// Both keep a small *relative* error in the tails.
#[inline(always)]
pub(crate) fn logistic(x: f32) -> (f32, f32) {
    let t = exp(-x.abs());
    let larger = 1.0 / (1.0 + t);
    let smaller = t * larger;
    (if x > 0.0 { larger } else { smaller }, smaller * larger)
}

/// The hyperbolic tangent and its slope `1 - tanh(x)^2`.
///
/// Both keep a small *relative* error, near zero and in the tails.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> (f32, f32) {
    /// Below it the polynomial is taken.
    const NEAR: f32 = 0.6;

    let a = x.abs();
    let t = exp(-2.0 * a);
    let larger = 1.0 / (1.0 + t);
    let far = ((1.0 - t) * larger).copysign(x);
    // (tanh(x) - x) / x^3
    let square = x * x;
    let p = (-0.005_895_16_f32)
        .mul_add(square, 0.020_795_97)
        .mul_add(square, -0.053_783_83)
        .mul_add(square, 0.133_319_24)
        .mul_add(square, -0.333_333);
    let near = (x * square).mul_add(p, x);
    let value = if a < NEAR { near } else { far };
    (value, 4.0 * t * larger * larger)
}

/// Sum of `map(left[i], right[i])` by [`LANES`] partial sums, in an order that depends on the
/// length only.
#[inline(always)]
pub(crate) fn sum(left: &[f32], right: &[f32], map: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    for (lane, (&a, &b)) in left_rest.iter().zip(right_rest).enumerate() {
        lanes[lane] = map(a, b);
    }
    for (a, b) in left.iter().zip(right) {
        for lane in 0..LANES {
            lanes[lane] += map(a[lane], b[lane]);
        }
    }
    join(lanes, |a, b| a + b)
}

/// Sum of the products of two rows, in an order that depends on the length only. Faster than [`sum`] for short rows.
#[inline(always)]
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (left, left_rest) = left.as_chunks::<LANES>();
    let (right, right_rest) = right.as_chunks::<LANES>();
    for (a, b) in left.iter().zip(right) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    // Written out, so that it stays in registers.
    let eight: [f32; 8] = std::array::from_fn(|lane| lanes[lane] + lanes[lane + 8]);
    let four: [f32; 4] = std::array::from_fn(|lane| eight[lane] + eight[lane + 4]);
    let total = (four[0] + four[2]) + (four[1] + four[3]);
    let rest = left_rest.iter().zip(right_rest);
    rest.fold(total, |total, (&a, &b)| a.mul_add(b, total))
}

/// Folds the lanes pairwise.
#[inline(always)]
pub(crate) fn join(mut lanes: [f32; LANES], step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = step(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance of `actual` from `expected` in units of the last place of `expected`.
    fn ulps(actual: f32, expected: f64) -> f64 {
        let rounded = expected as f32;
        let spacing = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
        (f64::from(actual) - expected).abs() / spacing.abs()
    }

    /// `P(X <= x)` in f64 by the continued fraction of the tail, or the series near zero.
    fn normal_f64(x: f64) -> f64 {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        if x > 3.0 {
            return 1.0 - normal_f64(-x);
        }
        if x < -3.0 {
            let a = -x;
            let fraction = (1..400).rev().fold(a, |below, k| a + f64::from(k) / below);
            return density / fraction;
        }
        let (mut term, mut total) = (x, x);
        for k in 1..200 {
            term *= x * x / f64::from(2 * k + 1);
            total += term;
        }
        0.5 + density * total
    }

    #[test]
    fn dot_is_the_sum_of_products_at_any_length() {
        for len in 0..70 {
            let left: Vec<f32> = (0..len).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
            let right: Vec<f32> = (0..len).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
            // Whole numbers, exact in any order.
            let expected: f32 = left.iter().zip(&right).map(|(a, b)| a * b).sum();
            assert_eq!(dot(&left, &right), expected, "{len}");
        }
    }

    #[test]
    fn exp_is_within_two_ulps_over_the_whole_range() {
        let worst = (0..2_000_000)
            .map(|i| -104.0 + 192.7 * i as f32 / 2e6)
            .map(|x| ulps(exp(x), f64::from(x).exp()))
            .fold(0.0, f64::max);
        assert!(worst < 2.0, "{worst} ulps");
    }

    #[test]
    fn exp_passes_the_ends_and_nan() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-104.5), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn normal_has_a_small_relative_error_into_the_far_tail() {
        for i in 0..200_000 {
            let x = -13.0 + 26.0 * i as f32 / 2e5;
            let (below, density) = normal(x);
            let wide = f64::from(x);
            let expected = normal_f64(wide);
            let error = (f64::from(below) / expected - 1.0).abs();
            assert!(
                error < 1e-6,
                "P(X <= {x}) = {below:e}, expected {expected:e}"
            );
            let expected = (-0.5 * wide * wide).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let error = (f64::from(density) / expected - 1.0).abs();
            assert!(
                error < 1e-6,
                "density({x}) = {density:e}, expected {expected:e}"
            );
        }
    }

    #[test]
    fn normal_passes_the_ends_and_nan() {
        assert_eq!(normal(f32::INFINITY), (1.0, 0.0));
        assert_eq!(normal(f32::NEG_INFINITY), (0.0, 0.0));
        assert!(normal(f32::NAN).0.is_nan() && normal(f32::NAN).1.is_nan());
    }

    #[test]
    fn logistic_has_a_small_relative_error_into_the_far_tail() {
        for i in 0..200_000 {
            let x = -80.0 + 160.0 * i as f32 / 2e5;
            let wide = (
                1.0 / (1.0 + (-f64::from(x)).exp()),
                1.0 / (1.0 + f64::from(x).exp()),
            );
            let (p, slope) = logistic(x);
            for (actual, expected) in [(p, wide.0), (slope, wide.0 * wide.1)] {
                let error = (f64::from(actual) / expected - 1.0).abs();
                assert!(error < 1e-6, "{actual:e} at {x}, expected {expected:e}");
            }
        }
        assert_eq!(logistic(f32::INFINITY), (1.0, 0.0));
        assert_eq!(logistic(f32::NEG_INFINITY), (0.0, 0.0));
        assert!(logistic(f32::NAN).0.is_nan() && logistic(f32::NAN).1.is_nan());
    }

    #[test]
    fn tanh_has_a_small_relative_error_near_zero_and_into_the_far_tail() {
        for i in 1..400_000 {
            let x = 1e-4 * (20.0 * f64::from(i) / 4e5).exp2() as f32;
            for x in [x, -x] {
                let wide = f64::from(x);
                let (value, slope) = tanh(x);
                for (actual, expected) in [(value, wide.tanh()), (slope, wide.cosh().powi(-2))] {
                    if expected.abs() > 1e-37 {
                        let error = (f64::from(actual) / expected - 1.0).abs();
                        assert!(error < 1e-6, "{actual:e} at {x}, expected {expected:e}");
                    }
                }
            }
        }
        assert_eq!(tanh(0.0), (0.0, 1.0));
        assert_eq!(tanh(1e-40).0, 1e-40);
        assert_eq!(tanh(f32::INFINITY), (1.0, 0.0));
        assert_eq!(tanh(f32::NEG_INFINITY), (-1.0, 0.0));
        assert!(tanh(f32::NAN).0.is_nan() && tanh(f32::NAN).1.is_nan());
    }

    #[test]
    fn sum_takes_every_element_once_at_any_length() {
        for len in 0..70 {
            let row: Vec<f32> = (1..=len).map(|i| i as f32).collect();
            assert_eq!(sum(&row, &row, |a, _| a), (len * (len + 1) / 2) as f32);
        }
    }
}
