//! Reading tensors from a safetensors file, one at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::ModelError;
use crate::error::similar;

/// A safetensors header is refused above this size, in bytes: a broken length must not allocate.
const MAX_HEADER: u64 = 100 << 20;

/// Bytes that are read at once; a multiple of every size of a number.
const PIECE: usize = 1 << 20;

/// An opened safetensors file. Tensors are read on demand, so that memory holds one at a time.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    tensors: HashMap<String, TensorInfo>,
    names: Vec<String>,
    metadata: HashMap<String, String>,
    data_start: u64,
}

impl Weights {
    /// Reads the header of a file and checks that the file is as long as the header says.
    ///
    /// # Errors
    /// [`ModelError::Io`] if it cannot be read, [`ModelError::File`] if it is no safetensors file or
    /// is cut short.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io {
            path: path.into(),
            source,
        };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        if size < 8 {
            let problem = format!("{size} bytes are no safetensors file, which has at least 8");
            return Err(ModelError::file(path, problem));
        }
        file.read_exact(&mut length).map_err(io)?;
        let header_size = u64::from_le_bytes(length);
        if header_size > MAX_HEADER || header_size + 8 > size {
            let problem = format!(
                "not a whole safetensors file: the header should have {header_size} bytes, the \
                 file has {size}"
            );
            return Err(ModelError::file(path, problem));
        }
        let mut header = vec![0; header_size as usize];
        file.read_exact(&mut header).map_err(io)?;
        // The library's own reader wants the whole file in memory; its header type, which checks
        // offsets against shapes, does not.
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| ModelError::file(path, format!("not a safetensors file: {e}")))?;
        let tensors: HashMap<String, TensorInfo> = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.clone()))
            .collect();
        let expected = 8 + header_size + metadata.data_len() as u64;
        if size != expected {
            let problem = format!("the file has {size} bytes, its header says {expected}");
            return Err(ModelError::file(path, problem));
        }
        let mut names: Vec<String> = tensors.keys().cloned().collect();
        names.sort_unstable();
        Ok(Self {
            path: path.into(),
            tensors,
            names,
            metadata: metadata.metadata().clone().unwrap_or_default(),
            data_start: 8 + header_size,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The file's own text metadata.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.shape)
    }

    /// The type of a tensor's numbers, if there is one of this name.
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        Some(self.tensors.get(name)?.dtype)
    }

    /// Reads a tensor of f32, f16 or bf16 as f32.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::Shape`], [`ModelError::NotFinite`] for a NaN or
    /// an infinity, or [`ModelError::File`] for another type of numbers.
    pub fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &Device,
    ) -> Result<Tensor<D>, ModelError> {
        let values = self.values(name, &shape)?;
        Ok(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Reads the values of a tensor as f32, row by row.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let Some(info) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensor {
                path: self.path.clone(),
                name: name.into(),
                similar: similar(name, self.names.iter().map(String::as_str)),
            });
        };
        if info.shape != shape {
            return Err(ModelError::Shape {
                path: self.path.clone(),
                name: name.into(),
                found: info.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        match info.dtype {
            Dtype::F32 => self.decode(name, info, |bytes, out| {
                out.extend(numbers(bytes).map(f32::from_le_bytes));
            }),
            Dtype::BF16 => self.decode(name, info, |bytes, out| {
                out.extend(numbers(bytes).map(|two| bf16::from_le_bytes(two).to_f32()));
            }),
            Dtype::F16 => {
                let mut halves: Vec<f16> = Vec::new();
                self.decode(name, info, |bytes, out| {
                    halves.clear();
                    halves.extend(numbers(bytes).map(f16::from_le_bytes));
                    let start = out.len();
                    out.resize(start + halves.len(), 0.0);
                    // A slice at once: number by number, the processor is asked each time whether
                    // it can widen.
                    halves.convert_to_f32_slice(&mut out[start..]);
                })
            }
            other => {
                let problem = format!("tensor `{name}` holds {other:?}, expected F32, F16 or BF16");
                Err(ModelError::file(&self.path, problem))
            }
        }
    }

    /// The numbers of a tensor as f32; `widen` appends those of a piece of the file. Bytes are read
    /// in pieces, so that no second copy of a large tensor is ever in memory.
    fn decode(
        &self,
        name: &str,
        info: &TensorInfo,
        mut widen: impl FnMut(&[u8], &mut Vec<f32>),
    ) -> Result<Vec<f32>, ModelError> {
        let io = |source| ModelError::Io {
            path: self.path.clone(),
            source,
        };
        let (start, end) = info.data_offsets;
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(self.data_start + start as u64))
            .map_err(io)?;
        let mut values = Vec::with_capacity(info.shape.iter().product());
        let mut piece = vec![0; PIECE.min(end - start)];
        let mut left = end - start;
        while left > 0 {
            let bytes = &mut piece[..PIECE.min(left)];
            file.read_exact(bytes).map_err(io)?;
            let start = values.len();
            widen(bytes, &mut values);
            // Here, where the piece is still in the cache.
            check_finite(&self.path, name, &values[start..]).map_err(|error| match error {
                ModelError::NotFinite {
                    path,
                    name,
                    value,
                    index,
                } => ModelError::NotFinite {
                    path,
                    name,
                    value,
                    index: start + index,
                },
                other => other,
            })?;
            left -= bytes.len();
        }
        Ok(values)
    }
}

/// Refuses NaN and infinities among the numbers of a tensor, of the file that they are read from or
/// written to.
pub(crate) fn check_finite(path: &Path, name: &str, values: &[f32]) -> Result<(), ModelError> {
    if all_finite(values) {
        return Ok(());
    }
    let index = values.iter().position(|value| !value.is_finite());
    let index = index.unwrap_or_default();
    Err(ModelError::NotFinite {
        path: path.into(),
        name: name.into(),
        value: values[index],
        index,
    })
}

/// Whether there is no NaN and no infinity. All numbers are looked at: a loop without a way out is
/// made of vector instructions.
fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let largest = values.iter().fold(0, |largest: u32, value| {
        largest.max(value.to_bits() & EXPONENT)
    });
    largest < EXPONENT
}

/// Bytes in groups of N, the size of a number.
fn numbers<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{TensorView, serialize};

    fn write(path: &Path, dtype: Dtype, bytes: &[u8], shape: &[usize]) {
        let view = TensorView::new(dtype, shape.to_vec(), bytes).expect("a valid view");
        let file = serialize([("layer.weight", view)], None).expect("serialisable");
        std::fs::write(path, file).expect("writable");
    }

    fn message<T: std::fmt::Debug>(result: Result<T, ModelError>) -> String {
        let text = result.expect_err("must fail").to_string();
        assert!(!text.contains('\n'), "one line: {text}");
        text
    }

    #[test]
    fn half_precision_is_widened() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        let numbers = [1.5f32, -0.25, 3.0, 0.0];
        let as_f16: Vec<u8> = numbers
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        let as_bf16: Vec<u8> = numbers
            .iter()
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect();
        for (dtype, bytes) in [(Dtype::F16, as_f16), (Dtype::BF16, as_bf16)] {
            write(&path, dtype, &bytes, &[2, 2]);
            let weights = Weights::open(&path).expect("a whole file");
            assert_eq!(
                weights.values("layer.weight", &[2, 2]).expect("present"),
                numbers
            );
        }
    }

    #[test]
    fn numbers_that_are_none_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        for (value, expected) in [
            (f32::NAN, "NaN"),
            (f32::INFINITY, "inf"),
            (f32::NEG_INFINITY, "-inf"),
        ] {
            let numbers = [f32::MAX, f32::MIN_POSITIVE / 2.0, -1.0, value];
            let as_f32: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
            let as_f16 = numbers.map(|v| f16::from_f32(v.clamp(-9.0, 9.0)));
            let mut as_f16: Vec<u8> = as_f16.iter().flat_map(|v| v.to_le_bytes()).collect();
            as_f16.truncate(6);
            as_f16.extend(f16::from_f32(value).to_le_bytes());
            let as_bf16 = [0.5, 1.0, 2.0, value].map(bf16::from_f32);
            let as_bf16: Vec<u8> = as_bf16.iter().flat_map(|v| v.to_le_bytes()).collect();
            for (dtype, bytes) in [
                (Dtype::F32, as_f32),
                (Dtype::F16, as_f16),
                (Dtype::BF16, as_bf16),
            ] {
                write(&path, dtype, &bytes, &[2, 2]);
                let weights = Weights::open(&path).expect("a whole file");
                let text = message(weights.values("layer.weight", &[2, 2]));
                let expected = format!(
                    "a.safetensors: number 4 of tensor `layer.weight` is {expected}, expected finite \
                     numbers"
                );
                assert!(text.ends_with(&expected), "{text}");
            }
        }
    }

    #[test]
    fn bad_files_are_named_with_what_was_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        assert!(message(Weights::open(&path)).contains("a.safetensors"));
        write(&path, Dtype::F32, &[0; 16], &[2, 2]);
        let weights = Weights::open(&path).expect("a whole file");
        let text = message(weights.values("layer.wieght", &[2, 2]));
        assert!(
            text.contains("`layer.wieght` is missing; near names: layer.weight"),
            "{text}"
        );
        let text = message(weights.values("layer.weight", &[4, 1]));
        assert!(text.contains("has shape [2, 2], expected [4, 1]"), "{text}");
        let whole = std::fs::read(&path).expect("readable");
        for cut in [0, 5, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).expect("writable");
            assert!(message(Weights::open(&path)).contains("a.safetensors"));
        }
        write(&path, Dtype::I64, &[0; 16], &[2]);
        let weights = Weights::open(&path).expect("a whole file");
        assert!(message(weights.values("layer.weight", &[2])).contains("I64"));
    }
}
