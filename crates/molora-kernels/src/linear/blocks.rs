//! Frozen matrices of 8 or 4 bits a number.

#[cfg(feature = "flex")]
use burn::backend::Dispatch;
use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, bf16};
#[cfg(feature = "flex")]
use rayon::prelude::*;

#[cfg(feature = "flex")]
use super::backend::LinearOps;
#[cfg(feature = "flex")]
use super::flex::frozen::BlockShape;
use super::format::{BLOCK, block_bytes, encode_row, zero};
#[cfg(feature = "flex")]
use super::rows::{over_rows, supports};
#[cfg(feature = "flex")]
use crate::flex::simd::vectorised;

/// A frozen matrix `[out, in]` whose numbers are whole multiples of a scale for every 32 of a row.
///
/// The number is `scale * (code - 2^(bits - 1))` with a code of `bits` bits. Of 8 bits the number of largest
/// magnitude in a block is 127 scales, and each is off by half of the scale at most. Of 4 bits that number has code 0, and
/// each other is off by half of the scale at most, or by the whole of it at the other end of the range. With scales in bf16, 8 bits a number take 8.5 and 4
/// bits 4.5. The layout is the same on every backend, whether or not it has types of 4 bits.
#[derive(Module, Debug)]
pub struct BlockMatrix {
    /// Bytes of the blocks, `[rows, blocks * 32 * bits / 8]`; of 4 bits, the low halves of the bytes
    /// are the first 16 numbers of a block.
    codes: Param<Tensor<2, Int>>,
    /// `[rows, blocks]`
    scales: Param<Tensor<2>>,
    bits: usize,
    num_cols: usize,
}

impl BlockMatrix {
    /// The nearest matrix of `bits` bits to the f32 numbers of `data`, which is `[out, in]`, as PyTorch's
    /// `Linear` has it.
    ///
    /// # Panics
    /// If `bits` is neither 8 nor 4, or the data are no f32 matrix.
    pub fn new(data: TensorData, bits: usize, device: &Device) -> Self {
        assert!(bits == 8 || bits == 4, "{bits} bits a number");
        let [rows, num_cols] = data.shape().dims();
        let values: Vec<f32> = data.try_into_vec().expect("f32 numbers");
        let blocks = num_cols.div_ceil(BLOCK);
        let mut codes = vec![0; rows * blocks * block_bytes(bits)];
        let mut scales = vec![bf16::ZERO; rows * blocks];
        encode_rows(&values, num_cols, bits, &mut codes, &mut scales);
        let codes = TensorData::new(codes, [rows, blocks * block_bytes(bits)]);
        let codes = Tensor::from_data(codes, (device, DType::U8));
        let scales = TensorData::new(scales, [rows, blocks]);
        let scales = Tensor::from_data(scales, (device, DType::BF16));
        Self {
            codes: Param::initialized(ParamId::new(), codes),
            scales: Param::from_tensor(scales).set_require_grad(false),
            bits,
            num_cols,
        }
    }

    /// Rows and columns: outputs and inputs.
    pub fn dims(&self) -> [usize; 2] {
        [self.codes.dims()[0], self.num_cols]
    }

    /// Bits of a number beside its part of a scale.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// How many scales it has, one for every block.
    pub fn num_scales(&self) -> usize {
        self.scales.shape().num_elements()
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        self.codes.device()
    }

    /// Some rows, by their numbers `[N]`: `[N, in]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn select(&self, rows: Tensor<1, Int>) -> Self {
        let codes = self.codes.val().select(0, rows.clone());
        let scales = self.scales.val().select(0, rows);
        Self {
            codes: Param::initialized(ParamId::new(), codes),
            scales: Param::from_tensor(scales).set_require_grad(false),
            ..*self
        }
    }

    /// The numbers in f32, `[out, in]`.
    pub fn wide(&self) -> Tensor<2> {
        let [rows, cols] = self.dims();
        let scales = self.scales.val().cast(DType::F32);
        let blocks = scales.dims()[1];
        let codes = self.codes.val().cast(DType::I32).float();
        let codes = codes.reshape([rows, blocks, block_bytes(self.bits)]);
        let codes = match self.bits {
            8 => codes,
            _ => {
                let high = codes.clone().div_scalar(16.0).floor();
                Tensor::cat(vec![codes - high.clone().mul_scalar(16.0), high], 2)
            }
        };
        let numbers = codes.sub_scalar(zero(self.bits)) * scales.unsqueeze_dim::<3>(2);
        numbers
            .reshape([rows, blocks * BLOCK])
            .narrow(1, 0, cols)
            .detach()
    }
}

/// Writes the codes and scales of rows of numbers.
fn encode_rows(
    values: &[f32],
    num_cols: usize,
    bits: usize,
    codes: &mut [u8],
    scales: &mut [bf16],
) {
    let blocks = num_cols.div_ceil(BLOCK);
    if blocks == 0 {
        return;
    }
    #[cfg(feature = "flex")]
    {
        let rows = values.par_chunks(num_cols);
        let codes = codes.par_chunks_mut(blocks * block_bytes(bits));
        let targets = codes.zip(scales.par_chunks_mut(blocks));
        let rows = rows.zip(targets).with_min_len(64);
        rows.for_each(|(row, (codes, scales))| {
            vectorised(
                #[inline(always)]
                || encode_row(row, bits, codes, scales),
            );
        });
    }
    #[cfg(not(feature = "flex"))]
    {
        let codes = codes.chunks_mut(blocks * block_bytes(bits));
        let targets = codes.zip(scales.chunks_mut(blocks));
        for (row, (codes, scales)) in values.chunks(num_cols).zip(targets) {
            encode_row(row, bits, codes, scales);
        }
    }
}

/// Computes `x * matrix^T + bias` over the last axis, as [`linear_transposed`](crate::linear_transposed) does.
///
/// On a device without gradients, and for one token of each sequence on any, the fast path rounds `x` to whole
/// multiples of a scale for every 32 numbers (codes of 8 bits) where the processor multiplies bytes (AVX-512-VNNI): a
/// relative error of about `2^-8` of the largest of those numbers. A row's result does not depend on the other rows.
/// Else it rounds `x` and the gradient to bf16 where the processor multiplies bf16.
///
/// # Shapes
/// - `x`: `[..., in]`; the axis in front of the last is that of tokens, if there is one
/// - `matrix`: `[out, in]`
/// - `bias`: `[out]`
/// - returns `[..., out]`
///
/// # Panics
/// If the shapes disagree.
pub fn linear_blocks<const D: usize>(
    x: Tensor<D>,
    matrix: &BlockMatrix,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let [outputs, inputs] = matrix.dims();
    assert_eq!(x.dims()[D - 1], inputs, "widths of x and the matrix");
    if let Some(bias) = &bias {
        assert_eq!(bias.dims(), [outputs], "width of the bias");
    }
    #[cfg(feature = "flex")]
    if outputs > 0 && supports(&x, bias.as_ref()) {
        let (codes, scales) = (matrix.codes.val(), matrix.scales.val());
        let shape = BlockShape {
            bits: matrix.bits,
            num_cols: inputs,
            is_step: D < 2 || x.dims()[D - 2] == 1,
        };
        return over_rows(x, scales, bias, outputs, |x, scales, bias| {
            Dispatch::fast_block_linear(x, codes.into_dispatch(), scales, bias, shape)
        });
    }
    crate::linear_transposed(x, matrix.wide(), bias)
}

#[cfg(test)]
mod tests {
    use burn::tensor::FloatDType;
    use molora_testkit::{assert_close, autodiff_device, device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::values;

    fn matrix(bits: usize, [rows, cols]: [usize; 2], seed: u64) -> (Vec<f32>, BlockMatrix) {
        let values = values(rows * cols, seed);
        let data = TensorData::new(values.clone(), [rows, cols]);
        (values, BlockMatrix::new(data, bits, &autodiff_device()))
    }

    fn wide(matrix: &BlockMatrix) -> Vec<f32> {
        matrix.wide().into_data().try_into_vec().unwrap()
    }

    #[test]
    fn numbers_are_whole_multiples_of_their_scale() {
        // The scale is 7 / -8, so that 7 is exact and -7 is cut.
        let mut block = vec![0.0f32; 33];
        block[..5].copy_from_slice(&[7.0, 3.5, -0.875, 0.4, -7.0]);
        block[32] = 2.0;
        let matrix = BlockMatrix::new(TensorData::new(block, [1, 33]), 4, &device());
        let wide = wide(&matrix);
        assert_eq!(wide[..6], [7.0, 3.5, -0.875, 0.0, -6.125, 0.0]);
        assert_eq!(wide[32], 2.0);
        assert_eq!(matrix.dims(), [1, 33]);
    }

    #[test]
    fn of_8_bits_both_ends_are_alike() {
        let mut block = vec![0.0f32; 32];
        block[..4].copy_from_slice(&[-1.27, 1.27, 0.64, -0.01]);
        let matrix = BlockMatrix::new(TensorData::new(block, [1, 32]), 8, &device());
        let wide = wide(&matrix);
        assert_eq!(wide[0], -wide[1]);
        // The scale is rounded to bf16.
        for (found, expected) in wide.iter().zip([-1.27f32, 1.27, 0.64, -0.01]) {
            assert!(
                (found - expected).abs() <= 0.004 * 1.27,
                "{found}, expected {expected}"
            );
        }
    }

    #[test]
    fn some_rows_are_those_of_the_whole() {
        for bits in [8, 4] {
            let (_, matrix) = matrix(bits, [9, 70], 5);
            let rows = Tensor::<1, Int>::from_ints([7, 0, 7], &autodiff_device());
            let expected = matrix.wide().select(0, rows.clone());
            let found = matrix.select(rows);
            assert_eq!(found.dims(), [3, 70]);
            found
                .wide()
                .into_data()
                .assert_eq(&expected.into_data(), true);
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for bits in [8, 4] {
            let data = TensorData::new(vec![0.0f32; 70], [2, 35]);
            let matrix = BlockMatrix::new(data, bits, &device());
            assert_eq!(wide(&matrix), [0.0; 70]);
        }
    }

    #[test]
    fn the_error_is_half_of_a_scale() {
        for (bits, bound) in [(8, 0.004), (4, 0.08)] {
            let (values, matrix) = matrix(bits, [40, 96], 3);
            let error: f32 = wide(&matrix)
                .iter()
                .zip(&values)
                .map(|(a, b)| (a - b).powi(2))
                .sum();
            let size: f32 = values.iter().map(|value| value * value).sum();
            let error = (error / size).sqrt();
            assert!(error < bound && error > bound / 4.0, "{bits} bits: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn equals_f32_on_the_rounded_matrix(
            rows in 1usize..60, inputs in 1usize..150, outputs in 1usize..200, is_small: bool,
            with_bias: bool, seed: u64,
        ) {
            let (_, matrix) = matrix(if is_small { 4 } else { 8 }, [outputs, inputs], seed);
            let leaf = |shape: [usize; 2], seed| {
                let data = TensorData::new(values(shape[0] * shape[1], seed), shape);
                Tensor::<2>::from_data(data, &autodiff_device())
            };
            let x = leaf([rows, inputs], seed ^ 1).require_grad();
            let bias = with_bias.then(|| leaf([1, outputs], seed ^ 2).reshape([outputs]));
            let evaluate = |out: Tensor<2>| {
                let grads = out.clone().sin().sum().backward();
                (out, x.grad(&grads).unwrap())
            };
            let weight = matrix.wide();
            assert_eq!(weight.dtype(), FloatDType::F32.into());
            let plain = crate::portable::linear_transposed(x.clone(), weight, bias.clone());
            let (expected, to_x) = evaluate(plain);
            let (out, grad) = evaluate(linear_blocks(x.clone(), &matrix, bias));
            assert_close(out, expected, 1.5e-2, "output");
            assert_close(grad, to_x, 3e-2, "gradient of x");
        }
    }
}
