//! The type in which the frozen matrices of a base model are kept.

use std::fmt;
use std::str::FromStr;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use molora_kernels::BlockMatrix;
use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::layers::frozen;

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
    /// 8.5 bits a number of a linear layer, see [`BlockMatrix`]; tables are bf16.
    Q8,
    /// 4.5 bits a number of a linear layer, see [`BlockMatrix`]; tables are bf16.
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

    /// The weight of a linear layer of the f32 numbers of `data`.
    pub(crate) fn weight(self, data: TensorData, device: &Device) -> BaseWeight {
        let bits = match self {
            Self::F32 | Self::Bf16 => return BaseWeight::of(self.table(data, device)),
            Self::Q8 => 8,
            Self::Q4 => 4,
        };
        BaseWeight::Blocks(BlockMatrix::new(data, bits, device))
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

/// The frozen weight of a linear layer, `[D, O]`.
#[derive(Module, Debug)]
pub enum BaseWeight {
    /// In f32 or bf16.
    Numbers(Param<Tensor<2>>),
    /// In 8 or 4 bits a number.
    Blocks(BlockMatrix),
}

impl BaseWeight {
    /// A weight that keeps the type of the tensor.
    pub fn of(weight: Tensor<2>) -> Self {
        Self::Numbers(frozen(weight))
    }

    /// Inputs and outputs.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Numbers(weight) => weight.dims(),
            Self::Blocks(blocks) => blocks.dims(),
        }
    }

    /// Its type.
    pub fn dtype(&self) -> BaseDtype {
        match self {
            Self::Numbers(weight) if weight.dtype() == DType::F32 => BaseDtype::F32,
            Self::Numbers(_) => BaseDtype::Bf16,
            Self::Blocks(blocks) if blocks.bits() == 8 => BaseDtype::Q8,
            Self::Blocks(_) => BaseDtype::Q4,
        }
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        match self {
            Self::Numbers(weight) => weight.device(),
            Self::Blocks(blocks) => blocks.device(),
        }
    }

    /// Its numbers in f32: a copy, unless it is in f32.
    pub fn wide(&self) -> Tensor<2> {
        match self {
            Self::Numbers(weight) => wide(weight.val()),
            Self::Blocks(blocks) => blocks.wide(),
        }
    }

    /// `x W + b`.
    pub(crate) fn times(&self, x: Tensor<3>, bias: Option<Tensor<1>>) -> Tensor<3> {
        match self {
            Self::Numbers(weight) => molora_kernels::linear(x, weight.val(), bias),
            Self::Blocks(blocks) => molora_kernels::linear_blocks(x, blocks, bias),
        }
    }
}

/// A matrix in f32, whatever its type.
pub(crate) fn wide(matrix: Tensor<2>) -> Tensor<2> {
    match matrix.dtype() {
        DType::F32 => matrix,
        _ => matrix.cast(DType::F32),
    }
}
