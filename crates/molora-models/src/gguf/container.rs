//! The container, version 3: a header, named values, descriptions of tensors, and their numbers.
//!
//! ```text
//! "GGUF", u32 version, u64 tensors, u64 values
//! of each value:   text key, u32 type, value
//! of each tensor:  text name, u32 dimensions, u64 sizes from the fastest one, u32 type, u64 offset
//! numbers of the tensors, each from a multiple of 32 bytes behind all of that
//! ```
//!
//! All is little-endian; a text is a u64 of bytes and UTF-8. The format is that of ggml's `docs/gguf.md`.

use std::io::{self, Write};
use std::path::Path;

use safetensors::Dtype;

use crate::ModelError;
use crate::checkpoint::narrowed;

const MAGIC: &[u8] = b"GGUF";
const VERSION: u32 = 3;

/// Numbers of a tensor begin at multiples of this, in bytes.
const ALIGNMENT: usize = 32;

/// A value of the header.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Integer(u32),
    Number(f32),
    Text(String),
    Integers(Vec<i32>),
    Numbers(Vec<f32>),
    Texts(Vec<String>),
}

impl Value {
    /// The number of its type in files; that of a list is that of its members.
    fn code(&self) -> u32 {
        match self {
            Self::Integer(_) => 4,
            Self::Integers(_) => 5,
            Self::Number(_) | Self::Numbers(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) | Self::Texts(_) => 8,
        }
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        const LIST: u32 = 9;
        let code = self.code().to_le_bytes();
        let mut list = |count: usize| {
            bytes.extend(LIST.to_le_bytes());
            bytes.extend(code);
            bytes.extend((count as u64).to_le_bytes());
        };
        match self {
            Self::Integers(all) => {
                list(all.len());
                bytes.extend(all.iter().flat_map(|one| one.to_le_bytes()));
            }
            Self::Numbers(all) => {
                list(all.len());
                bytes.extend(all.iter().flat_map(|one| one.to_le_bytes()));
            }
            Self::Texts(all) => {
                list(all.len());
                all.iter().for_each(|one| put_text(one, bytes));
            }
            Self::Bool(one) => {
                bytes.extend(code);
                bytes.push(u8::from(*one));
            }
            Self::Integer(one) => {
                bytes.extend(code);
                bytes.extend(one.to_le_bytes());
            }
            Self::Number(one) => {
                bytes.extend(code);
                bytes.extend(one.to_le_bytes());
            }
            Self::Text(one) => {
                bytes.extend(code);
                put_text(one, bytes);
            }
        }
    }
}

/// A tensor whose numbers are made when they are written, so that memory holds one at a time.
pub(super) struct Tensor<'a> {
    pub(super) name: String,
    /// Sizes from the slowest dimension to the fastest, as in safetensors.
    pub(super) shape: Vec<usize>,
    /// F32, F16 or BF16.
    pub(super) dtype: Dtype,
    /// In the order of the shape.
    pub(super) values: Box<dyn Fn() -> Vec<f32> + 'a>,
}

impl Tensor<'_> {
    fn num_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Numbers of types in files.
fn type_code(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F16 => 1,
        Dtype::BF16 => 30,
        _ => 0,
    }
}

/// Writes a file; `source` is what errors name of which the tensors are.
///
/// # Errors
/// [`ModelError::Io`] if it cannot be written; a number that its type cannot hold.
pub(super) fn write(
    path: &Path,
    source: &Path,
    values: &[(String, Value)],
    tensors: &[Tensor<'_>],
) -> Result<(), ModelError> {
    let io = |error: io::Error| ModelError::Io {
        path: path.into(),
        source: error,
    };
    let mut file = io::BufWriter::new(std::fs::File::create(path).map_err(io)?);
    file.write_all(&header(values, tensors)).map_err(io)?;
    for tensor in tensors {
        let mut bytes = narrowed(source, &tensor.name, (tensor.values)(), tensor.dtype)?;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        file.write_all(&bytes).map_err(io)?;
    }
    file.flush().map_err(io)
}

/// All in front of the numbers.
fn header(values: &[(String, Value)], tensors: &[Tensor<'_>]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((values.len() as u64).to_le_bytes());
    for (key, value) in values {
        put_text(key, &mut bytes);
        value.put(&mut bytes);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&tensor.name, &mut bytes);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        for &size in tensor.shape.iter().rev() {
            bytes.extend((size as u64).to_le_bytes());
        }
        bytes.extend(type_code(tensor.dtype).to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += tensor.num_bytes().next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

fn put_text(text: &str, bytes: &mut Vec<u8>) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small file, byte by byte as the format says.
    #[test]
    fn a_file_is_laid_out_as_the_format_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.gguf");
        let values = [
            ("k".to_owned(), Value::Integer(7)),
            ("t".to_owned(), Value::Texts(vec!["ab".into()])),
        ];
        let tensor = |name: &str, dtype| Tensor {
            name: name.into(),
            shape: vec![2, 3],
            dtype,
            values: Box::new(|| vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        };
        let tensors = [tensor("h", Dtype::F16), tensor("f", Dtype::F32)];
        write(&path, &path, &values, &tensors).expect("written");
        let bytes = std::fs::read(&path).expect("readable");
        let mut expected = b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        expected.extend(b"\x01\0\0\0\0\0\0\0k\x04\0\0\0\x07\0\0\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0t\x09\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0");
        expected.extend(b"\x02\0\0\0\0\0\0\0ab");
        for (name, code, offset) in [(b'h', 1, 0), (b'f', 0, 32)] {
            expected.extend([1, 0, 0, 0, 0, 0, 0, 0, name, 2, 0, 0, 0]);
            expected.extend([3u64, 2].iter().flat_map(|size| size.to_le_bytes()));
            expected.extend(u32::to_le_bytes(code));
            expected.extend(u64::to_le_bytes(offset));
        }
        let start = expected.len().next_multiple_of(32);
        assert_eq!(bytes[..expected.len()], expected);
        assert!(bytes[expected.len()..start].iter().all(|byte| *byte == 0));
        // 12 bytes and padding, 24 bytes and padding.
        assert_eq!(bytes.len(), start + 64);
        assert_eq!(
            bytes[start..start + 4],
            [0, 0x3c, 0, 0x40],
            "1 and 2 in f16"
        );
        assert_eq!(bytes[start + 32..start + 36], 1f32.to_le_bytes());
    }
}
