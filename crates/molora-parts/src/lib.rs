//! What the parts of a method are made of.
//!
//! A mixture of LoRA experts is put together from parts: banks, cores, scorers, normalisers, gates.
//! Each part lists its tensors **once**, as [`PartTensor`]s: name in files, [`ParameterKind`], and for
//! every dimension what it counts ([`Axis`]). Whatever is done with parameters goes over that list:
//! saving, loading, counting, freezing, growing, permuting experts and taking one expert out
//! ([`fill`]). Nobody else has to know which parts there are.
//!
//! The configuration of a part is a variant of its axis' enum, which [`choices!`] makes from a list
//! with a line for each part.
//!
//! ```
//! use burn::module::Param;
//! use burn::tensor::{Device, Tensor};
//! use molora_parts::{Axis, Origins, ParameterKind, PartTensor, fill};
//!
//! let device = Device::default();
//! // Keys of three experts, and of two of them in another order.
//! let mut old = Param::from_tensor(Tensor::<2>::from_data([[1.0], [2.0], [3.0]], &device));
//! let mut new = Param::from_tensor(Tensor::<2>::zeros([2, 1], &device));
//! let keys = |value, experts| {
//!     let rows = [Axis::Expert.of(experts)];
//!     PartTensor::matrix("router.keys", ParameterKind::Routers, value, &rows, &[Axis::Feature.of(1)])
//! };
//! let origins = Origins::default().with(Axis::Expert, vec![Some(2), Some(0)]);
//! fill(vec![keys(&mut new, 2)], &[keys(&mut old, 3)], &origins);
//! assert_eq!(new.val().into_data().try_to_vec::<f32>().expect("f32"), [3.0, 1.0]);
//! ```

mod choice;
mod fill;
mod kind;
mod tensor;

pub use choice::{or_flag, read};
#[doc(hidden)]
pub use choice::{schema, write};
pub use fill::{Origins, fill, new_values};
pub use kind::ParameterKind;
#[doc(hidden)]
pub use schemars;
pub use tensor::{Axis, Count, PartTensor};

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
