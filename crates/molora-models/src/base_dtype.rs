//! The type in which the frozen matrices of a base model are kept.

use std::fmt;
use std::str::FromStr;

use crate::ModelError;
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

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
}

impl BaseDtype {
    const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Its name in options and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Whether it is the default, f32.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses a device that has no such type.
    pub(crate) fn check(self, device: &Device) -> Result<(), ModelError> {
        let has_type = match self {
            Self::F32 => true,
            Self::Bf16 => device.supports_dtype(DType::BF16),
        };
        if has_type {
            Ok(())
        } else {
            let text = format!("a base in {self}: the device has no numbers of this type");
            Err(ModelError::Inconsistent(text))
        }
    }

    /// The matrix of f32 numbers as a leaf of this type.
    pub(crate) fn matrix(self, data: TensorData, device: &Device) -> Tensor<2> {
        match self {
            Self::F32 => Tensor::from_data(data, device),
            Self::Bf16 => {
                let data = data.convert_dtype(DType::BF16);
                Tensor::from_data(data, (device, DType::BF16))
            }
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

/// A matrix in f32, whatever its type.
pub(crate) fn wide(matrix: Tensor<2>) -> Tensor<2> {
    match matrix.dtype() {
        DType::F32 => matrix,
        _ => matrix.cast(DType::F32),
    }
}
