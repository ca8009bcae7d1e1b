//! Digests of a file and of the tensors in it, in one pass over its bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use burn::tensor::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::digest::{read_all, sha256};
use crate::base::sketch::{Sketch, Sketcher};

/// A longer header is that of no file of molora.
const MAX_HEADER: u64 = 100 << 20;
/// Bytes that are read at once; a multiple of the size of every number.
const PIECE: usize = 1 << 18;

/// The tensors of a file by their names.
pub type Tensors = BTreeMap<String, TensorRecord>;

/// What a tensor in a file was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type of its numbers, as safetensors names it.
    pub dtype: String,
    /// SHA-256 of its bytes in hexadecimal digits.
    pub sha256: String,
    /// By which another version of it is compared; none of integers, and of numbers that are not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sketch: Option<Sketch>,
}

/// The SHA-256 of a file as it stands on the disk now and, if they are asked for and it has any, what its
/// tensors are.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn file_record(path: &Path, has_tensors: bool) -> io::Result<(String, Option<Tensors>)> {
    if !has_tensors {
        return Ok((sha256(path)?, None));
    }
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = Hashed {
        file: File::open(path).map_err(named)?,
        hash: Sha256::new(),
    };
    let tensors = tensors(&mut file).map_err(named)?;
    // What follows the last tensor, or all of what is no safetensors file.
    let hash = read_all(&mut file.file, file.hash).map_err(named)?;
    Ok((format!("{:x}", hash.finalize()), tensors))
}

/// A file whose digest is made while it is read.
struct Hashed {
    file: File,
    hash: Sha256,
}

impl Hashed {
    /// Fills a buffer; false if the file ends before.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.hash.update(&buffer[..filled]);
        Ok(filled == buffer.len())
    }
}

/// The tensors of a safetensors file; none if it is not a whole one.
fn tensors(file: &mut Hashed) -> io::Result<Option<Tensors>> {
    let mut length = [0; 8];
    if !file.fill(&mut length)? || u64::from_le_bytes(length) > MAX_HEADER {
        return Ok(None);
    }
    let mut header = vec![0; u64::from_le_bytes(length) as usize];
    if !file.fill(&mut header)? {
        return Ok(None);
    }
    // The library's own reader wants the whole file in memory; its header type checks as much.
    let Ok(metadata) = serde_json::from_slice::<Metadata>(&header) else {
        return Ok(None);
    };
    let mut infos: Vec<_> = metadata.tensors().into_iter().collect();
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut found = Tensors::new();
    let mut buffer = vec![0; PIECE];
    for (name, info) in infos {
        let (begin, end) = info.data_offsets;
        let (mut rest, mut hash, mut sketcher) = (end - begin, Sha256::new(), Sketcher::default());
        while rest > 0 {
            let piece = &mut buffer[..rest.min(PIECE)];
            if !file.fill(piece)? {
                return Ok(None);
            }
            hash.update(&*piece);
            add(&mut sketcher, info.dtype, piece);
            rest -= piece.len();
        }
        let record = TensorRecord {
            shape: info.shape.clone(),
            dtype: format!("{:?}", info.dtype),
            sha256: format!("{:x}", hash.finalize()),
            sketch: sketcher.finish().filter(|_| is_float(info.dtype)),
        };
        found.insert(name, record);
    }
    Ok(Some(found))
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Adds the numbers of a piece to a sketch.
fn add(sketcher: &mut Sketcher, dtype: Dtype, piece: &[u8]) {
    let two = |bytes: &[u8]| [bytes[0], bytes[1]];
    let four = |bytes: &[u8]| [bytes[0], bytes[1], bytes[2], bytes[3]];
    match dtype {
        Dtype::F32 => each(piece, 4, sketcher, |b| {
            f64::from(f32::from_le_bytes(four(b)))
        }),
        Dtype::F16 => each(piece, 2, sketcher, |b| f16::from_le_bytes(two(b)).to_f64()),
        Dtype::BF16 => each(piece, 2, sketcher, |b| bf16::from_le_bytes(two(b)).to_f64()),
        Dtype::F64 => each(piece, 8, sketcher, |b| {
            f64::from_le_bytes(b.try_into().expect("eight bytes"))
        }),
        _ => {}
    }
}

fn each(piece: &[u8], size: usize, sketcher: &mut Sketcher, number: impl Fn(&[u8]) -> f64) {
    piece
        .chunks_exact(size)
        .for_each(|bytes| sketcher.add(number(bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{TensorView, serialize};

    fn file(values: &[f32], ids: &[u8]) -> Vec<u8> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let view =
            |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).expect("of that size");
        let tensors = [
            ("w", view(Dtype::F32, vec![values.len()], &bytes[..])),
            ("ids", view(Dtype::U8, vec![ids.len()], ids)),
        ];
        serialize(tensors, None).expect("whole")
    }

    fn record(bytes: &[u8]) -> (String, Option<Tensors>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, bytes).expect("writable");
        let found = file_record(&path, true).expect("readable");
        assert_eq!(found.0, file_record(&path, false).expect("readable").0);
        found
    }

    #[test]
    fn tensors_are_told_apart() {
        let (digest, one) = record(&file(&[1.0, 2.0, 3.0], &[1, 2]));
        let (other, two) = record(&file(&[1.0, 2.5, 3.0], &[1, 2]));
        assert_ne!(digest, other);
        let (one, two) = (one.expect("tensors"), two.expect("tensors"));
        assert_eq!(one["ids"], two["ids"]);
        assert_eq!(
            (&one["w"].shape[..], &one["w"].dtype[..]),
            (&[3][..], "F32")
        );
        let [a, b] = [&one["w"], &two["w"]].map(|tensor| tensor.sketch.expect("finite"));
        assert!((a.distance(&b) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn what_is_no_file_of_tensors_has_a_digest_alone() {
        let whole = file(&[1.0, 2.0], &[1]);
        for bytes in [
            &b""[..],
            b"not tensors",
            &whole[..whole.len() - 1],
            &whole[..20],
        ] {
            let (digest, tensors) = record(bytes);
            assert_eq!(digest, format!("{:x}", Sha256::digest(bytes)));
            assert_eq!(tensors, None);
        }
    }
}
