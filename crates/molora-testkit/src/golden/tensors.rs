//! The named tensors of one safetensors file, kept on the host until asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};

use crate::close::{Values, assert_close};

/// Tensors by name. Every accessor panics with the file and the names that exist if its tensor is
/// missing or of another type.
#[derive(Debug, Clone)]
pub struct Tensors {
    path: PathBuf,
    by_name: BTreeMap<String, TensorData>,
}

impl Tensors {
    /// Reads a safetensors file.
    ///
    /// # Panics
    /// If the file cannot be read, or a tensor has a type that burn has no values for.
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file =
            SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let by_name = file.tensors().into_iter().map(|(name, view)| {
            let Some(dtype) = dtype_of(view.dtype()) else {
                panic!(
                    "{}: tensor {name} has type {:?}",
                    path.display(),
                    view.dtype()
                );
            };
            let shape = view.shape().to_vec();
            let data = TensorData::from_bytes_vec(view.data().to_vec(), shape, dtype);
            (name, data)
        });
        Self {
            path: path.to_path_buf(),
            by_name: by_name.collect(),
        }
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The shape of the tensor `name`.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.data(name).shape().as_slice().to_vec()
    }

    /// Shape and values of the tensor `name`, on the host.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn data(&self, name: &str) -> &TensorData {
        self.by_name.get(name).unwrap_or_else(|| {
            let names: Vec<_> = self.names().collect();
            panic!(
                "{}: no tensor {name}; there are {}",
                self.path.display(),
                names.join(", ")
            )
        })
    }

    /// The tensor `name` as floats with `D` axes.
    ///
    /// # Panics
    /// Also if its number of axes is not `D`.
    #[track_caller]
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        Tensor::from_data(self.with_axes::<D>(name).convert::<f32>(), device)
    }

    /// The tensor `name` as integers with `D` axes.
    ///
    /// # Panics
    /// Also if its number of axes is not `D`.
    #[track_caller]
    pub fn int_tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        Tensor::from_data(self.with_axes::<D>(name), device)
    }

    /// The tensor `name` as truth values with `D` axes: true where it is not zero.
    ///
    /// # Panics
    /// Also if its number of axes is not `D`.
    #[track_caller]
    pub fn bool_tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Bool> {
        let shape = self.with_axes::<D>(name).shape().clone();
        Tensor::from_data(TensorData::new(self.bools(name), shape), device)
    }

    /// The values of the tensor `name` as floats, in row-major order.
    #[track_caller]
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.values(name)
    }

    /// The values of the integer tensor `name`, in row-major order.
    #[track_caller]
    pub fn ints(&self, name: &str) -> Vec<i64> {
        self.values(name)
    }

    /// The values of the tensor `name` as truth values, in row-major order: true if not zero.
    #[track_caller]
    pub fn bools(&self, name: &str) -> Vec<bool> {
        self.ints(name)
            .into_iter()
            .map(|value| value != 0)
            .collect()
    }

    /// Asserts that `actual` equals the tensor `name` within `tolerance`, as [`assert_close`] does.
    ///
    /// # Panics
    /// Also if it does not; the message names the file.
    #[track_caller]
    pub fn assert_close(&self, name: &str, actual: impl Values, tolerance: f32) {
        let what = format!("{}: {name}", self.path.display());
        assert_close(actual, self.data(name), tolerance, &what);
    }

    #[track_caller]
    fn values<E: burn::tensor::Element>(&self, name: &str) -> Vec<E> {
        let values = self.data(name).try_to_vec_as::<E>();
        values.unwrap_or_else(|e| panic!("{}: tensor {name}: {e}", self.path.display()))
    }

    #[track_caller]
    fn with_axes<const D: usize>(&self, name: &str) -> TensorData {
        let data = self.data(name);
        let shape = data.shape().as_slice();
        let path = self.path.display();
        assert!(
            shape.len() == D,
            "{path}: tensor {name} has shape {shape:?}, expected {D} axes"
        );
        data.clone()
    }
}

fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I8 => DType::I8,
        // Safetensors stores a truth value as one byte, 0 or 1.
        Dtype::U8 | Dtype::BOOL => DType::U8,
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{FORWARD, device};
    use safetensors::tensor::{TensorView, serialize_to_file};

    /// Writes `expected.safetensors` with a float, an integer and a mask tensor into `dir`.
    pub(crate) fn write_expected(dir: &Path) {
        let x: Vec<u8> = [1.0f32, -2.0, 0.5, 4.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let ids: Vec<u8> = [7i64, -1].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view =
            |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let tensors = [
            ("x", view(Dtype::F32, &[2, 2], &x)),
            ("ids", view(Dtype::I64, &[2], &ids)),
            ("mask", view(Dtype::U8, &[1, 3], &[1, 0, 1])),
        ];
        serialize_to_file(tensors, None, &dir.join("expected.safetensors")).unwrap();
    }

    fn written() -> Tensors {
        let dir = tempfile::TempDir::new().unwrap();
        write_expected(dir.path());
        Tensors::read(&dir.path().join("expected.safetensors"))
    }

    #[test]
    fn values_keep_their_shape_and_type() {
        let tensors = written();
        assert_eq!(tensors.names().collect::<Vec<_>>(), ["ids", "mask", "x"]);
        assert_eq!(tensors.shape("mask"), [1, 3]);
        assert_eq!(tensors.ints("ids"), [7, -1]);
        assert_eq!(tensors.bools("mask"), [true, false, true]);
        assert_eq!(tensors.floats("x"), [1.0, -2.0, 0.5, 4.0]);
        let ids = tensors
            .int_tensor::<1>("ids", &device())
            .to_data_as::<i64>();
        assert_eq!(ids.try_to_vec::<i64>().unwrap(), [7, -1]);
        let mask = tensors.bool_tensor::<2>("mask", &device()).to_data();
        assert_eq!(mask.iter::<bool>().collect::<Vec<_>>(), [true, false, true]);
    }

    #[test]
    fn a_tensor_equals_its_file() {
        let tensors = written();
        tensors.assert_close("x", tensors.tensor::<2>("x", &device()), FORWARD);
    }

    #[test]
    #[should_panic(expected = "expected.safetensors: x: worst at [1, 1]: got 8e0, expected 4e0")]
    fn another_tensor_does_not_equal_the_file() {
        let tensors = written();
        tensors.assert_close("x", tensors.tensor::<2>("x", &device()) * 2.0, FORWARD);
    }

    #[test]
    #[should_panic(expected = "expected.safetensors: no tensor y; there are ids, mask, x")]
    fn a_missing_tensor_is_named_with_those_that_exist() {
        written().ints("y");
    }

    #[test]
    #[should_panic(expected = "tensor x has shape [2, 2], expected 3 axes")]
    fn another_number_of_axes_is_refused() {
        written().tensor::<3>("x", &device());
    }
}
