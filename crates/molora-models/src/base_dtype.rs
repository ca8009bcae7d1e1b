//! The type in which the frozen matrices of a base model are kept.

use std::fmt;
use std::str::FromStr;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use molora_kernels::BlockMatrix;
use serde::{Deserialize, Serialize};

use crate::layers::frozen;
use crate::reader::Layout;
use crate::{ModelError, TokenTable};

/// The type in which the frozen matrices of a base model are kept. What is computed, and all that is
/// trained, is f32 with each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseDtype {
    /// 4 bytes a number.
    #[default]
    F32,
    /// 2 bytes a number, with 8 bits of precision.
    Bf16,
    /// 8.5 bits a number of a linear layer and of a vocabulary's table, see [`BlockMatrix`]; other tables are bf16.
    Q8,
    /// 4.5 bits a number of a linear layer, see [`BlockMatrix`], and 8.5 of a vocabulary's table; other tables are
    /// bf16.
    Q4,
}

impl BaseDtype {
    /// All of them, from the largest to the smallest.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Q8, Self::Q4];

    /// Its name in options and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// Whether it is the default, f32.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses a device that has no such numbers.
    pub(crate) fn check(self, device: &Device) -> Result<(), ModelError> {
        let needed: &[DType] = match self {
            Self::F32 => &[],
            Self::Bf16 => &[DType::BF16],
            Self::Q8 | Self::Q4 => &[DType::BF16, DType::U8],
        };
        if needed.iter().all(|&dtype| device.supports_dtype(dtype)) {
            return Ok(());
        }
        let text = format!("a base in {self}: the device has no numbers of this type");
        Err(ModelError::Inconsistent(text))
    }

    /// A table of the f32 numbers of `data`, whose rows are looked up.
    pub(crate) fn table(self, data: TensorData, device: &Device) -> Tensor<2> {
        match self {
            Self::F32 => Tensor::from_data(data, device),
            Self::Bf16 | Self::Q8 | Self::Q4 => {
                let data = data.convert_dtype(DType::BF16);
                Tensor::from_data(data, (device, DType::BF16))
            }
        }
    }

    /// The table of a vocabulary of f32 numbers `[V, D]`.
    pub(crate) fn token_table(self, data: TensorData, device: &Device) -> TokenTable {
        match self {
            Self::F32 | Self::Bf16 => TokenTable::Numbers(frozen(self.table(data, device))),
            // Its errors reach every score, and 4 bits are too few for them.
            Self::Q8 | Self::Q4 => TokenTable::Blocks(BlockMatrix::new(data, 8, device)),
        }
    }

    /// The weight of a linear layer of f32 numbers that lie in the order of a file.
    pub(crate) fn weight(
        self,
        values: Vec<f32>,
        [inputs, outputs]: [usize; 2],
        layout: Layout,
        device: &Device,
    ) -> BaseWeight {
        let wanted = match self {
            Self::F32 => Layout::InOut,
            Self::Bf16 | Self::Q8 | Self::Q4 => Layout::OutIn,
        };
        let shape = |layout| match layout {
            Layout::InOut => [inputs, outputs],
            Layout::OutIn => [outputs, inputs],
        };
        let values = match layout == wanted {
            true => values,
            false => transposed(&values, shape(layout)),
        };
        let data = TensorData::new(values, shape(wanted));
        match self {
            Self::F32 => BaseWeight::Numbers(frozen(self.table(data, device))),
            Self::Bf16 => BaseWeight::Half(frozen(self.table(data, device))),
            Self::Q8 => BaseWeight::Blocks(BlockMatrix::new(data, 8, device)),
            Self::Q4 => BaseWeight::Blocks(BlockMatrix::new(data, 4, device)),
        }
    }
}

impl fmt::Display for BaseDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BaseDtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|dtype| dtype.name() == text);
        let names = Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("`{text}` is none of {names}"))
    }
}

/// The frozen weight of a linear layer of D inputs and O outputs.
#[derive(Module, Debug)]
pub enum BaseWeight {
    /// In f32, `[D, O]`.
    Numbers(Param<Tensor<2>>),
    /// In bf16, `[O, D]`: the numbers of an output side by side, as decoding reads them.
    Half(Param<Tensor<2>>),
    /// In 8 or 4 bits a number, `[O, D]`.
    Blocks(BlockMatrix),
}

impl BaseWeight {
    /// A weight `[D, O]` of f32 or bf16 that keeps the type of the tensor.
    pub fn of(weight: Tensor<2>) -> Self {
        match weight.dtype() {
            DType::BF16 => {
                let device = weight.device();
                // In memory of its own: a view would be laid out again in every product.
                let data = weight.transpose().into_data();
                Self::Half(frozen(Tensor::from_data(data, (&device, DType::BF16))))
            }
            _ => Self::Numbers(frozen(weight)),
        }
    }

    /// Inputs and outputs.
    pub fn dims(&self) -> [usize; 2] {
        let [outputs, inputs] = match self {
            Self::Numbers(weight) => return weight.dims(),
            Self::Half(weight) => weight.dims(),
            Self::Blocks(blocks) => blocks.dims(),
        };
        [inputs, outputs]
    }

    /// Its type.
    pub fn dtype(&self) -> BaseDtype {
        match self {
            Self::Numbers(_) => BaseDtype::F32,
            Self::Half(_) => BaseDtype::Bf16,
            Self::Blocks(blocks) if blocks.bits() == 8 => BaseDtype::Q8,
            Self::Blocks(_) => BaseDtype::Q4,
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Self::Numbers(weight) | Self::Half(weight) => weight.device(),
            Self::Blocks(blocks) => blocks.device(),
        }
    }

    /// Its numbers in f32, `[D, O]`: a copy, unless it is in f32.
    pub fn wide(&self) -> Tensor<2> {
        match self {
            Self::Numbers(weight) => weight.val(),
            Self::Half(weight) => wide(weight.val()).transpose(),
            Self::Blocks(blocks) => blocks.wide().transpose(),
        }
    }

    /// `x W + b`.
    pub(crate) fn times(&self, x: Tensor<3>, bias: Option<Tensor<1>>) -> Tensor<3> {
        match self {
            Self::Numbers(weight) => molora_kernels::linear(x, weight.val(), bias),
            Self::Half(weight) => molora_kernels::linear_transposed(x, weight.val(), bias),
            Self::Blocks(blocks) => molora_kernels::linear_blocks(x, blocks, bias),
        }
    }
}

/// A matrix of `[rows, columns]`, column by column.
pub(crate) fn transposed(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    // Squares that fit the fastest cache: whole columns would touch a line of memory per number.
    const SIDE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for top in (0..rows).step_by(SIDE) {
        for left in (0..columns).step_by(SIDE) {
            for column in left..columns.min(left + SIDE) {
                for row in top..rows.min(top + SIDE) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

/// A matrix in f32, whatever its type.
pub(crate) fn wide(matrix: Tensor<2>) -> Tensor<2> {
    match matrix.dtype() {
        DType::F32 => matrix,
        _ => matrix.cast(DType::F32),
    }
}

#[cfg(test)]
mod tests {
    use molora_testkit::{assert_close, device};

    use super::*;

    #[test]
    fn a_matrix_is_transposed_at_any_size() {
        for (rows, columns) in [(1, 1), (3, 50), (64, 32), (33, 65)] {
            let values: Vec<f32> = (0..rows * columns).map(|value| value as f32).collect();
            let out = transposed(&values, [rows, columns]);
            let is_moved = |(index, value): (usize, &f32)| {
                let (column, row) = (index / rows, index % rows);
                *value == (row * columns + column) as f32
            };
            assert!(out.iter().enumerate().all(is_moved));
        }
    }

    #[test]
    fn a_weight_is_the_same_in_every_type_and_from_both_layouts() {
        let (inputs, outputs) = (3, 2);
        // Whole multiples of one scale in every type but that of 8 bits, whose largest number is 127 scales.
        let by_inputs = vec![-8.0f32, 1.0, 2.0, -8.0, 3.0, 4.0];
        let by_outputs = transposed(&by_inputs, [inputs, outputs]);
        let x = Tensor::<3>::from_floats([[[1.0, -1.0, 1.0]], [[1.0, 1.0, 0.0]]], &device());
        let bias = Tensor::<1>::from_floats([0.5, -0.5], &device());
        for dtype in BaseDtype::ALL {
            let tolerance = if dtype == BaseDtype::Q8 { 1e-2 } else { 1e-6 };
            for (values, layout) in [(&by_inputs, Layout::InOut), (&by_outputs, Layout::OutIn)] {
                let weight = dtype.weight(values.clone(), [inputs, outputs], layout, &device());
                assert_eq!((weight.dims(), weight.dtype()), ([3, 2], dtype));
                let expected = [[-8.0, 1.0], [2.0, -8.0], [3.0, 4.0]];
                assert_close(weight.wide(), expected, tolerance, "numbers");
                let y = weight.times(x.clone(), Some(bias.clone()));
                let expected = [[[-6.5, 12.5]], [[-5.5, -7.5]]];
                assert_close(y, expected, tolerance, "product");
            }
        }
        let weight = Tensor::<2>::from_floats([[-8.0, 1.0], [2.0, -8.0], [3.0, 4.0]], &device());
        let half = BaseWeight::of(weight.clone().cast(burn::tensor::FloatDType::BF16));
        assert_eq!((half.dims(), half.dtype()), ([3, 2], BaseDtype::Bf16));
        assert_close(half.wide(), weight, 1e-6, "of a tensor");
    }
}
