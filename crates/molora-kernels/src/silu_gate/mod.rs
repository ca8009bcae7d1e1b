//! The gate of a SwiGLU feed-forward layer.

#[cfg(feature = "flex")]
mod backend;
#[cfg(feature = "flex")]
mod flex;
pub(crate) mod portable;

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use self::backend::SiluGateOps;

/// Computes `silu(gate) * up`, where `silu(x) = x / (1 + exp(-x))`, element by element.
///
/// # Shapes
/// `gate`, `up` and the result have one shape.
///
/// # Panics
/// If the shapes disagree.
///
/// # Source
/// Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202, eq. 5 (SwiGLU with beta 1, without
/// its matrix products).
pub fn silu_gate<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "shapes of gate and up");
    #[cfg(feature = "flex")]
    if crate::flex::supports(&gate) && crate::flex::supports(&up) {
        return Tensor::from_dispatch(Dispatch::fast_silu_gate(
            gate.into_dispatch(),
            up.into_dispatch(),
        ));
    }
    portable::silu_gate(gate, up)
}

#[cfg(test)]
pub(crate) mod tests {
    use molora_testkit::{assert_close, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Case, Oracle};

    pub(crate) const CASES: &[Case] = &[Case {
        name: "silu_gate",
        others: |shape| vec![shape],
        fast: |t| silu_gate(t[0].clone(), t[0].clone() * t[1].clone()),
        plain: Some(|t| portable::silu_gate(t[0].clone(), t[0].clone() * t[1].clone())),
        is_row_wise: true,
        tiny: Some((|x| silu_gate(Tensor::ones_like(&x) * 40.0, x), 40.0)),
    }];

    #[test]
    fn known_values() {
        let gate = Tensor::<1>::from_floats([-1.0, 0.0, 1.0, 3.0], &device());
        let up = Tensor::<1>::from_floats([1.0, 5.0, 2.0, -1.0], &device());
        let expected = [-0.268_941_43, 0.0, 1.462_117_2, -2.857_722_4];
        let out = silu_gate(gate.clone(), up.clone());
        assert_close(out, expected, 1e-6, "silu gate");
        assert_close(
            portable::silu_gate(gate, up),
            expected,
            1e-6,
            "portable silu gate",
        );
    }

    #[test]
    fn large_gates_do_not_overflow_and_nan_goes_through() {
        let gate = Tensor::<1>::from_floats([1e30, -1e4, f32::NAN, f32::INFINITY], &device());
        let up = Tensor::<1>::ones([4], &device());
        let out = silu_gate(gate, up).into_data();
        let out = out.try_to_vec::<f32>().unwrap();
        assert_eq!(out[..2], [1e30, 0.0]);
        assert!(out[2].is_nan());
        assert_eq!(out[3], f32::INFINITY);
    }

    #[test]
    #[should_panic(expected = "shapes of gate and up")]
    fn another_shape_is_refused() {
        silu_gate(
            Tensor::<1>::ones([2], &device()),
            Tensor::ones([3], &device()),
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn equals_the_portable_definition(
            rows in 1usize..40, cols in 1usize..700, tracked: [bool; 2], seed: u64,
        ) {
            let mut oracle = Oracle::new(seed);
            let gate = oracle.tensor([rows, cols], 5.0, tracked[0]);
            let up = oracle.tensor([rows, cols], 2.0, tracked[1]);
            oracle.check(
                &[gate, up],
                |t| silu_gate(t[0].matrix(), t[1].matrix()),
                |t| portable::silu_gate(t[0].matrix(), t[1].matrix()),
            );
        }
    }
}
