//! Comparison of tensors with a tolerance relative to the largest expected value.

use burn::tensor::{Tensor, TensorData};

/// Relative tolerance of f32 forward values, losses and merged parameters.
pub const FORWARD: f32 = 1e-5;

/// Relative tolerance of f32 gradients.
pub const GRADIENT: f32 = 1e-4;

/// Absolute floor added to every tolerance, so that an expected tensor of zeros can be met.
pub const FLOOR: f32 = 1e-7;

/// What can be compared: tensors, and nested arrays for cases small enough to write down.
pub trait Values {
    /// Shape and values, on the host.
    fn values(&self) -> TensorData;
}

impl<const D: usize> Values for Tensor<D> {
    fn values(&self) -> TensorData {
        self.to_data()
    }
}

impl Values for TensorData {
    fn values(&self) -> TensorData {
        self.clone()
    }
}

impl<T: Values> Values for &T {
    fn values(&self) -> TensorData {
        T::values(self)
    }
}

impl<const A: usize> Values for [f32; A] {
    fn values(&self) -> TensorData {
        TensorData::from(*self)
    }
}

impl<const A: usize, const B: usize> Values for [[f32; B]; A] {
    fn values(&self) -> TensorData {
        TensorData::from(*self)
    }
}

impl<const A: usize, const B: usize, const C: usize> Values for [[[f32; C]; B]; A] {
    fn values(&self) -> TensorData {
        TensorData::from(*self)
    }
}

/// Asserts `max|actual - expected| <= tolerance * max|expected| + 1e-7`.
///
/// `what` names the case and the tensor in the message. Differences are taken in f64.
///
/// # Panics
/// If the values differ by more, the shapes differ, or either side holds a value that is not
/// finite. The message names `what`, the worst index and both values.
#[track_caller]
pub fn assert_close(actual: impl Values, expected: impl Values, tolerance: f32, what: &str) {
    if let Err(fault) = compare(&actual.values(), &expected.values(), tolerance) {
        panic!("{what}: {fault}");
    }
}

/// The first non-finite value or the worst difference, if it is too large.
fn compare(actual: &TensorData, expected: &TensorData, tolerance: f32) -> Result<(), String> {
    let shape = expected.shape().as_slice();
    if actual.shape().as_slice() != shape {
        return Err(format!(
            "shape is {:?}, expected {shape:?}",
            actual.shape().as_slice()
        ));
    }
    let (actual, expected) = (to_f64(actual)?, to_f64(expected)?);
    let largest = expected
        .iter()
        .fold(0.0f64, |most, value| most.max(value.abs()));
    let allowed = f64::from(tolerance) * largest + f64::from(FLOOR);

    let mut worst = (0, 0.0);
    for (index, (a, b)) in actual.iter().zip(&expected).enumerate() {
        if !a.is_finite() || !b.is_finite() {
            let at = unravel(index, shape);
            return Err(format!("not finite at {at:?}: got {a:e}, expected {b:e}"));
        }
        if (a - b).abs() > worst.1 {
            worst = (index, (a - b).abs());
        }
    }
    if worst.1 <= allowed {
        return Ok(());
    }
    let (index, difference) = worst;
    Err(format!(
        "worst at {:?}: got {:e}, expected {:e}, difference {difference:e} exceeds {allowed:e} \
         ({tolerance:e} of the largest value {largest:e})",
        unravel(index, shape),
        actual[index],
        expected[index],
    ))
}

fn to_f64(data: &TensorData) -> Result<Vec<f64>, String> {
    data.try_to_vec_as::<f64>()
        .map_err(|error| format!("values cannot be read: {error}"))
}

/// The position along each axis of the element at `index` in row-major order.
fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut position = vec![0; shape.len()];
    for (axis, &size) in shape.iter().enumerate().rev() {
        position[axis] = index % size;
        index /= size;
    }
    position
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;

    fn fault(actual: impl Values, expected: impl Values, tolerance: f32) -> String {
        compare(&actual.values(), &expected.values(), tolerance).expect_err("values are close")
    }

    #[test]
    fn equal_values_and_values_within_the_tolerance_pass() {
        assert_close([1.0, -2.0], [1.0, -2.0], 0.0, "equal");
        // The largest value, not each value, sets the scale.
        assert_close(
            [0.0009, 100.0],
            [0.0, 100.0],
            1e-5,
            "relative to the largest",
        );
        assert_close([5e-8], [0.0], 1e-5, "floor");
    }

    #[test]
    fn the_message_names_the_worst_index_and_both_values() {
        let text = fault([[1.0, 2.0], [3.5, 4.0]], [[1.0, 2.1], [3.0, 4.0]], 1e-5);
        assert!(
            text.contains("worst at [1, 0]: got 3.5e0, expected 3e0"),
            "{text}"
        );
    }

    #[test]
    fn a_difference_above_the_tolerance_fails() {
        fault([1.0 + 3e-5], [1.0], FORWARD);
        fault([3e-7], [0.0], FORWARD);
    }

    #[test]
    fn values_that_are_not_finite_fail_on_either_side() {
        assert!(fault([f32::NAN], [1.0], 1.0).contains("not finite at [0]"));
        assert!(fault([1.0, 1.0], [1.0, f32::NAN], 1.0).contains("not finite at [1]"));
        assert!(fault([f32::INFINITY], [f32::INFINITY], 1.0).contains("not finite"));
    }

    #[test]
    fn another_shape_fails_even_with_equal_values() {
        assert!(fault([1.0, 2.0], [[1.0, 2.0]], 1.0).contains("shape is [2], expected [1, 2]"));
    }

    #[test]
    #[should_panic(expected = "case x, tensor y: worst at [0]")]
    fn tensors_and_arrays_compare_with_each_other() {
        let tensor = Tensor::<1>::from_floats([1.0, 2.0], &device());
        assert_close(&tensor, [1.0, 2.0], FORWARD, "case x, tensor y");
        assert_close([3.0, 2.0], &tensor, FORWARD, "case x, tensor y");
    }
}
