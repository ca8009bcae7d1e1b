//! Down-projections: how the matrix `A` is made of parameters. One file each, and one line in the list
//! below.
//!
//! | down | low-rank code of x | trained | from |
//! |---|---|---|---|
//! | `dense` | `x A` | A | most |
//! | `factored` | `(x S) P`, S `[D, d]` shared, P `[d, S*R]` each slice's own | S, P | MALoRA |
//! | `frozen_sparse` | `x A`, A random and nearly all zeros | nothing | FlyLoRA |

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::{Axis, Count, ParameterKind, PartTensor};

use crate::AdapterError;

/// How many there are of what a down-projection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownDims {
    /// Input width D.
    pub d_input: usize,
    /// Codes that lie side by side: experts, or slices that experts share.
    pub slices: Count,
    /// Rank R of each.
    pub rank: usize,
}

impl DownDims {
    /// Width S*R of the code.
    pub fn code(self) -> usize {
        self.slices.size * self.rank
    }
}

/// The numbers of a down-projection.
pub trait DownNumbers {
    /// The down-projection with what it has beside its first matrix.
    type Down: Lower;

    /// The first matrix, `[D, code]` or what takes its place, and what follows it. `drawn` is an `A`
    /// `[D, S*R]` by the bank's start.
    fn init(
        &self,
        dims: DownDims,
        drawn: Tensor<2>,
        seed: Seed,
        device: &Device,
    ) -> (Tensor<2>, Self::Down);

    /// Whether slices have a factor of `A` in common.
    fn is_shared(&self) -> bool {
        false
    }

    /// Checks every number.
    ///
    /// # Errors
    /// The first one that is out of its range.
    fn validate(&self) -> Result<(), AdapterError> {
        Ok(())
    }

    /// Checks what depends on the input width of a site.
    ///
    /// # Errors
    /// [`AdapterError::RankTooLarge`] if a factor does not fit.
    fn validate_for(&self, _d_input: usize) -> Result<(), AdapterError> {
        Ok(())
    }
}

/// A down-projection behind its first matrix.
pub trait Lower: Module {
    /// The code `[B, T, S*R]` from the product with the first matrix.
    fn apply(&self, product: Tensor<3>) -> Tensor<3> {
        product
    }

    /// What the first matrix is for.
    fn kind(&self) -> ParameterKind {
        ParameterKind::Adapters
    }

    /// Whether the code is computed without a gradient to the input.
    fn is_detached(&self) -> bool {
        false
    }

    /// Width of a first matrix that all slices share; `None` if each slice has its own columns.
    fn shared_width(&self) -> Option<usize> {
        None
    }

    /// The same for other slices, whose values are zero.
    fn resized(&self, slices: Count) -> Self;

    /// Every tensor beside the first matrix, whose slices are counted as `slices` say.
    fn tensors(&mut self, _slices: Axis) -> Vec<PartTensor<'_>> {
        Vec::new()
    }
}

/// Makes both enums of the axis and hands every call on.
macro_rules! downs {
    ($($(#[$doc:meta])* $name:literal => $file:ident::$Variant:ident($Numbers:ident, $Down:ident)),* $(,)?) => {
        $(
            mod $file;
            pub use $file::{$Numbers, $Down};
        )*

        molora_parts::choices! {
            /// How the matrix `A` is made of parameters.
            pub enum DownConfig {
                $($(#[$doc])* $name => $Variant($Numbers),)*
            }
        }

        /// A down-projection of any kind, behind its first matrix.
        #[derive(Module, Debug)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, reason = "there is one in a site, and few sites")]
        pub enum Down {
            $(#[doc = concat!("See [`", stringify!($Down), "`].")] $Variant($Down),)*
        }

        /// The same call for whatever it is.
        macro_rules! each {
            ($of:ident, $down:expr, $part:ident => $call:expr) => {
                match $down {
                    $($of::$Variant($part) => $call,)*
                }
            };
        }

        impl DownConfig {
            /// See [`DownNumbers::init`].
            pub fn init(
                &self,
                dims: DownDims,
                drawn: Tensor<2>,
                seed: Seed,
                device: &Device,
            ) -> (Tensor<2>, Down) {
                match self {
                    $(Self::$Variant(numbers) => {
                        let (a, down) = numbers.init(dims, drawn, seed, device);
                        (a, Down::$Variant(down))
                    })*
                }
            }
        }

        impl Down {
            /// See [`Lower::resized`].
            pub(crate) fn resized(&self, slices: Count) -> Self {
                match self {
                    $(Self::$Variant(down) => Self::$Variant(down.resized(slices)),)*
                }
            }
        }
    };
}

downs! {
    "dense" => dense::Dense(DenseConfig, DenseDown),
    "factored" => factored::Factored(FactoredConfig, FactoredDown),
    "frozen_sparse" => frozen_sparse::FrozenSparse(FrozenSparseConfig, FrozenSparseDown),
}

impl Default for DownConfig {
    fn default() -> Self {
        DenseConfig.into()
    }
}

impl DownConfig {
    /// Whether `A` is one trained matrix.
    pub fn is_dense(&self) -> bool {
        *self == Self::default()
    }

    /// See [`DownNumbers::is_shared`].
    pub fn is_shared(&self) -> bool {
        each!(DownConfig, self, numbers => numbers.is_shared())
    }

    /// See [`DownNumbers::validate`].
    ///
    /// # Errors
    /// The first number that is out of its range.
    pub fn validate(&self) -> Result<(), AdapterError> {
        each!(DownConfig, self, numbers => numbers.validate())
    }

    /// See [`DownNumbers::validate_for`].
    ///
    /// # Errors
    /// [`AdapterError::RankTooLarge`] if a factor does not fit.
    pub fn validate_for(&self, d_input: usize) -> Result<(), AdapterError> {
        each!(DownConfig, self, numbers => numbers.validate_for(d_input))
    }
}

impl Down {
    /// See [`Lower::apply`].
    pub fn apply(&self, product: Tensor<3>) -> Tensor<3> {
        each!(Down, self, down => down.apply(product))
    }

    /// See [`Lower::kind`].
    pub fn kind(&self) -> ParameterKind {
        each!(Down, self, down => down.kind())
    }

    /// See [`Lower::is_detached`].
    pub fn is_detached(&self) -> bool {
        each!(Down, self, down => down.is_detached())
    }

    /// See [`Lower::shared_width`].
    pub fn shared_width(&self) -> Option<usize> {
        each!(Down, self, down => down.shared_width())
    }

    /// See [`Lower::tensors`].
    pub fn tensors(&mut self, slices: Axis) -> Vec<PartTensor<'_>> {
        each!(Down, self, down => down.tensors(slices))
    }
}
