//! Numbers of f32 in the types of files.

use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;

use crate::ModelError;

/// The bytes of numbers in F32, F16 or BF16, each rounded to the nearest of the type.
///
/// # Errors
/// [`ModelError::File`] for a number that is not finite in the type. It names `source`, as the file that is
/// written may not have its name yet.
pub(crate) fn narrowed(
    source: &Path,
    name: &str,
    mut values: Vec<f32>,
    dtype: Dtype,
) -> Result<Vec<u8>, ModelError> {
    bound(&mut values, dtype);
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        let (number, value) = (index + 1, values[index]);
        let problem = match dtype {
            Dtype::F32 => {
                format!("number {number} of tensor `{name}` is {value} once it is changed")
            }
            _ => format!(
                "number {number} of tensor `{name}` is {value} in {dtype:?} once it is changed; a type with \
                 a larger range, f32 or bf16, may hold it"
            ),
        };
        return Err(ModelError::file(source, problem));
    }
    Ok(match dtype {
        Dtype::F16 => bytes(&values, |value| f16::from_f32(value).to_le_bytes()),
        Dtype::BF16 => bytes(&values, |value| bf16::from_f32(value).to_le_bytes()),
        _ => bytes(&values, f32::to_le_bytes),
    })
}

/// Makes infinite what a type cannot hold.
fn bound(values: &mut [f32], dtype: Dtype) {
    // Half a step above the type's largest number: what is rounded up from there.
    let limit = match dtype {
        Dtype::F16 => 65_520.0,
        Dtype::BF16 => f32::from_bits(0x7f7f_8000),
        _ => return,
    };
    for value in values {
        if value.abs() >= limit {
            *value = f32::INFINITY.copysign(*value);
        }
    }
}

fn bytes<const N: usize>(values: &[f32], narrow: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| narrow(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_type_cannot_hold_is_refused() {
        let is_kept = |dtype, value: f32| narrowed("a".as_ref(), "w", vec![value], dtype).is_ok();
        for value in [65_504.0, 65_519.9, 65_520.0, 1e5, -65_520.0] {
            let expected = f16::from_f32(value).is_finite();
            assert_eq!(is_kept(Dtype::F16, value), expected, "{value}");
        }
        for bits in [0x7f7f_0000, 0x7f7f_7fff, 0x7f7f_8000, 0x7f7f_ffff] {
            let value = f32::from_bits(bits);
            let expected = bf16::from_f32(value).is_finite();
            assert_eq!(is_kept(Dtype::BF16, value), expected, "{value}");
            assert!(is_kept(Dtype::F32, value));
        }
        let error = narrowed("m/a.safetensors".as_ref(), "w", vec![0.0, 1e9], Dtype::F16);
        let text = error.expect_err("too large").to_string();
        assert!(text.starts_with("m/a.safetensors: number 2 of tensor `w` is inf in F16"));
    }
}
