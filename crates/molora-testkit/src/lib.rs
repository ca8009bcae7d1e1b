//! Golden vectors, tolerances and devices for the tests of molora.
//!
//! A *golden case* is a folder with an `expected.safetensors` (inputs, parameters, outputs and
//! gradients of a reference implementation) and whatever files the case needs beside it, such as
//! `case.json`, `config.json` or `model.safetensors`. A test walks over all cases of its kind and
//! compares each tensor by [`assert_close`]:
//!
//! ```no_run
//! use std::path::Path;
//! use molora_testkit::{FORWARD, device, golden};
//!
//! let bundled = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
//! let cases = golden::cases(bundled, golden::MOLORA_GOLDEN);
//! for case in golden::of_kind(cases, "doubling", |case| case.tensors().has("doubled")) {
//!     let tensors = case.tensors();
//!     let doubled = tensors.tensor::<2>("x", &device()) * 2.0;
//!     tensors.assert_close("doubled", &doubled, FORWARD);
//! }
//! ```
//!
//! This crate is a dev-dependency only; everything here panics with a clear text on a fault.

mod close;
mod device;
pub mod golden;

pub use close::{FLOOR, FORWARD, GRADIENT, Values, assert_close};
pub use device::{autodiff_device, device};
