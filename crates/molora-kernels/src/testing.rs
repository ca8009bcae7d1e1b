//! Comparison of a fast path with its portable definition evaluated in f64, and what an operation
//! tells of itself for the tests of all operations.

use burn::tensor::{Bool, Device, FloatDType, Tensor, TensorData};
use molora_testkit::assert_close;

use crate::random::{Seed, unit};

/// Largest difference of a forward value, relative to the largest value.
const FORWARD: f32 = 2e-6;
/// The same of a gradient.
const BACKWARD: f32 = 1e-5;

/// A function of one matrix.
pub(crate) type Map = fn(Tensor<2>) -> Tensor<2>;

/// An operation on matrices, for the tests that all operations go through (`tests.rs`).
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Shapes of the inputs beside the first, for the shape of the first.
    pub(crate) others: fn([usize; 2]) -> Vec<[usize; 2]>,
    pub(crate) fast: fn(&[Tensor<2>]) -> Tensor<2>,
    /// The definition, where numbers of every kind go the same way by it.
    pub(crate) plain: Option<fn(&[Tensor<2>]) -> Tensor<2>>,
    /// Whether it does without a matrix product, and so gives the same bits on every processor.
    pub(crate) is_row_wise: bool,
    /// The operation as a function of one of its inputs that multiplies small numbers by a factor.
    pub(crate) tiny: Option<(Map, f64)>,
}

/// `len` numbers between -1 and 1.
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut generator = Seed::new(seed).generator();
    (0..len)
        .map(|_| 2.0 * unit(&mut generator) as f32 - 1.0)
        .collect()
}

/// Compares `x * W + bias`, of the shape `[rows, inner] x [inner, cols]`, with the sums of products in f64; `number` is
/// that of `W` in a row and a column.
#[track_caller]
pub(crate) fn assert_product(
    actual: &[f32],
    x: &[f32],
    [rows, inner, cols]: [usize; 3],
    number: impl Fn(usize, usize) -> f32,
    bias: Option<&[f32]>,
    what: &str,
) {
    assert_eq!(actual.len(), rows * cols, "{what}");
    for (i, &actual) in actual.iter().enumerate() {
        let (row, col) = (i / cols, i % cols);
        let x = &x[row * inner..][..inner];
        let terms = (0..inner).map(|i| f64::from(x[i]) * f64::from(number(i, col)));
        let bias = bias.map_or(0.0, |bias| bias[col].into());
        let scale = terms.clone().map(f64::abs).sum::<f64>() + f64::abs(bias);
        let error = (f64::from(actual) - terms.sum::<f64>() - bias).abs();
        assert!(error <= 2e-6 * scale, "{what}, at {row}, {col}: {error}");
    }
}

/// A mask on another device, whose backend may store it otherwise.
pub(crate) fn moved(mask: &Tensor<2, Bool>, device: &Device) -> Tensor<2, Bool> {
    let values = mask.to_data().iter::<bool>().collect::<Vec<bool>>();
    Tensor::from_data(TensorData::new::<bool, _>(values, mask.dims()), device)
}

/// An input of an operation, and whether its gradient is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    value: Tensor<2>,
    tracked: bool,
}

impl Input {
    pub(crate) fn matrix(&self) -> Tensor<2> {
        self.value.clone()
    }

    /// The only row of a matrix.
    pub(crate) fn row(&self) -> Tensor<1> {
        self.value.clone().reshape([-1])
    }
}

/// Draws inputs and compares two definitions of an operation on them.
#[derive(Debug)]
pub(crate) struct Oracle {
    seed: u64,
    device: Device,
}

impl Oracle {
    pub(crate) fn new(seed: u64) -> Self {
        // Odd seeds compute activations again in the backward.
        let device = molora_testkit::autodiff_device();
        let device = if seed % 2 == 1 {
            device.gradient_checkpointing()
        } else {
            device
        };
        Self { seed, device }
    }

    fn draw(&mut self, len: usize) -> Vec<f32> {
        self.seed = self.seed.wrapping_add(1);
        values(len, self.seed)
    }

    /// Numbers up to `bound`, in memory row by row, or (every third draw) column by column.
    pub(crate) fn tensor(&mut self, [rows, cols]: [usize; 2], bound: f32, tracked: bool) -> Input {
        let data: Vec<f32> = self
            .draw(rows * cols)
            .iter()
            .map(|value| value * bound)
            .collect();
        let value = if self.seed.is_multiple_of(3) {
            let data = TensorData::new(data, [cols, rows]);
            Tensor::<2>::from_data(data, &self.device).transpose()
        } else {
            Tensor::from_data(TensorData::new(data, [rows, cols]), &self.device)
        };
        Input { value, tracked }
    }

    /// A mask that allows about two thirds.
    pub(crate) fn mask(&mut self, rows: usize, cols: usize) -> Tensor<2, Bool> {
        let data = self
            .draw(rows * cols)
            .iter()
            .map(|&value| value > -0.3)
            .collect();
        Tensor::from_data(TensorData::new::<bool, _>(data, [rows, cols]), &self.device)
    }

    /// Asserts that `fast` on f32 gives the output and the gradients of `exact` on f64 on the
    /// processor. What a definition holds beside the inputs it has to move to their device.
    #[track_caller]
    pub(crate) fn check(
        &mut self,
        inputs: &[Input],
        fast: impl Fn(&[Input]) -> Tensor<2>,
        exact: impl Fn(&[Input]) -> Tensor<2>,
    ) {
        // Not every backend has f64, or all functions of it.
        let home = Device::flex().autodiff();
        let wide: Vec<Input> = inputs
            .iter()
            .map(|input| Input {
                value: input.matrix().to_device(&home).cast(FloatDType::F64),
                ..input.clone()
            })
            .collect();
        let seed = self.seed;
        let (out, grads) = evaluate(inputs, seed, fast);
        let (expected, expected_grads) = evaluate(&wide, seed, exact);
        assert_close(&out, &expected, FORWARD, "output");
        for (index, (grad, expected)) in grads.iter().zip(&expected_grads).enumerate() {
            assert_eq!(
                grad.is_some(),
                expected.is_some(),
                "gradient of input {index}"
            );
            if let (Some(grad), Some(expected)) = (grad, expected) {
                // A gradient may be one sum of thousands of products that cancel: its error is that of
                // the products, which are about 1, and not of what is left.
                let largest: f64 = expected.clone().abs().max().into_scalar();
                let tolerance = BACKWARD * (1.0 / largest.clamp(1e-3, 1.0)) as f32;
                let what = format!("gradient of input {index}");
                assert_close(grad, expected, tolerance, &what);
            }
        }
    }
}

/// The output and the gradients of a random weighted sum of it.
fn evaluate(
    inputs: &[Input],
    seed: u64,
    run: impl Fn(&[Input]) -> Tensor<2>,
) -> (Tensor<2>, Vec<Option<Tensor<2>>>) {
    let leaves: Vec<Input> = inputs
        .iter()
        .map(|input| {
            let value = input.matrix().detach();
            let value = if input.tracked {
                value.require_grad()
            } else {
                value
            };
            Input { value, ..*input }
        })
        .collect();
    // One operation between the leaf and the tested one, for checkpointing to compute again.
    let shifted: Vec<Input> = leaves
        .iter()
        .map(|leaf| Input {
            value: leaf.matrix() + 0.0,
            ..*leaf
        })
        .collect();
    let out = run(&shifted);
    if !inputs.iter().any(|input| input.tracked) {
        return (out, inputs.iter().map(|_| None).collect());
    }
    let upstream = TensorData::new(values(out.shape().num_elements(), seed ^ 1), out.shape());
    let upstream = Tensor::<2>::from_data(upstream, &out.device()).cast(out.dtype());
    let grads = (out.clone() * upstream).sum().backward();
    (
        out,
        leaves.iter().map(|leaf| leaf.value.grad(&grads)).collect(),
    )
}
