//! A reader of GGUF files.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// A file in memory.
pub(super) struct Gguf {
    pub(super) values: BTreeMap<String, Value>,
    /// Shapes, the slowest dimension first, and numbers as f32.
    pub(super) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// The types of the tensors: 0 f32, 1 f16, 30 bf16.
    pub(super) types: BTreeMap<String, u32>,
}

impl Gguf {
    pub(super) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("readable");
        let mut input = Input {
            bytes: &bytes,
            at: 0,
        };
        assert_eq!(input.take(4), b"GGUF");
        assert_eq!(input.u32(), 3, "version");
        let (num_tensors, num_values) = (input.u64(), input.u64());
        let mut values = BTreeMap::new();
        for _ in 0..num_values {
            let key = input.text();
            let code = input.u32();
            let value = input.value(code);
            assert!(values.insert(key.clone(), value).is_none(), "{key} twice");
        }
        let mut listed = Vec::new();
        for _ in 0..num_tensors {
            let name = input.text();
            let mut shape: Vec<usize> = (0..input.u32()).map(|_| input.u64() as usize).collect();
            shape.reverse();
            listed.push((name, shape, input.u32(), input.u64() as usize));
        }
        let start = input.at.next_multiple_of(32);
        let (mut tensors, mut types, mut end) = (BTreeMap::new(), BTreeMap::new(), 0);
        for (name, shape, code, offset) in listed {
            assert_eq!(offset % 32, 0, "{name}");
            assert!(offset >= end, "{name} overlaps");
            let mut input = Input {
                bytes: &bytes,
                at: start + offset,
            };
            let count: usize = shape.iter().product();
            let numbers = (0..count).map(|_| match code {
                0 => f32::from_bits(input.u32()),
                1 => widened(u16::from_le_bytes(input.array())),
                30 => f32::from_bits(u32::from(u16::from_le_bytes(input.array())) << 16),
                _ => panic!("{name} has type {code}"),
            });
            let numbers: Vec<f32> = numbers.collect();
            end = input.at - start;
            types.insert(name.clone(), code);
            assert!(tensors.insert(name, (shape, numbers)).is_none(), "twice");
        }
        Self {
            values,
            tensors,
            types,
        }
    }
}

/// A number of half precision.
fn widened(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, (bits >> 10) & 31, f32::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f32.powi(-24),
        _ => (1.0 + fraction / 1024.0) * 2f32.powi(i32::from(exponent) - 15),
    };
    if sign == 1 { -size } else { size }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        self.at += count;
        &self.bytes[self.at - count..self.at]
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().expect("so many were taken")
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn text(&mut self) -> String {
        let length = self.u64() as usize;
        String::from_utf8(self.take(length).to_vec()).expect("UTF-8")
    }

    fn value(&mut self, code: u32) -> Value {
        match code {
            4 => self.u32().into(),
            5 => (self.u32() as i32).into(),
            6 => f32::from_bits(self.u32()).into(),
            7 => (self.take(1)[0] == 1).into(),
            8 => self.text().into(),
            9 => {
                let code = self.u32();
                (0..self.u64()).map(|_| self.value(code)).collect()
            }
            _ => panic!("a value of type {code}"),
        }
    }
}
