//! Cores: what happens to the low-rank code between `A` and `B`. One file each, and one line in the
//! list below.
//!
//! | core | code that `B` reads | from |
//! |---|---|---|
//! | `none` | `x A` | most |
//! | `scale` | `sigma o x A`, sigma `[R]` | SAMoRA |
//! | `output_gate` | `sigmoid(100 beta) x A`, one beta for a site | MoR1E |
//! | `relu` | `relu(x A)`, and a factor for each expert | mtLoRA beside a block, AdaptFormer |
//! | `task` | `Lambda_t (x A)`, Lambda `[R, R]` or a diagonal for each task | MTL-LoRA |

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::{Axis, Count, PartTensor};

/// How many there are of what a core is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreDims {
    /// Down-projections, whose codes lie side by side: experts, or slices that experts share.
    pub slices: Count,
    /// Number of experts E.
    pub experts: usize,
    /// Rank R of each.
    pub rank: usize,
    /// Number of tasks.
    pub tasks: usize,
}

/// The numbers of a core.
pub trait CoreNumbers {
    /// The core with its parameters.
    type Core: Transforming;

    /// A fresh core that changes nothing.
    fn init(&self, dims: CoreDims, seed: Seed, device: &Device) -> Self::Core;

    /// Whether the core depends on which task a row belongs to.
    fn reads_tasks(&self) -> bool {
        false
    }

    /// Whether the code is linear in `x A`, so that a LoRA may hold an expert.
    fn is_linear(&self) -> bool {
        true
    }
}

/// A core with its parameters.
pub trait Transforming: Module {
    /// The low-rank code `[B, T, S*R]` that `B` reads, from `x A` of the same shape.
    ///
    /// `tasks` are the rows `[B, tasks]` of [`task_selector`](crate::task_selector); without them every
    /// row is of an unknown task.
    fn apply(&self, low: Tensor<3>, _tasks: Option<&Tensor<2>>) -> Tensor<3> {
        low
    }

    /// The same core for other slices and so many experts, whose values are zero.
    fn resized(&self, slices: Count, experts: usize) -> Self;

    /// Whether the code is linear in `x A`.
    fn is_linear(&self) -> bool {
        true
    }

    /// A factor on the weight of each expert, `[E]`.
    fn expert_scale(&self) -> Option<Tensor<1>> {
        None
    }

    /// Whether the core depends on which task a row belongs to.
    fn reads_tasks(&self) -> bool {
        false
    }

    /// Whether it has numbers that all slices share, so that experts of several banks, each with its own,
    /// cannot stand side by side.
    fn is_common(&self) -> bool {
        false
    }

    /// A factor for each coordinate of the code, `[S*R]`, which the mixture multiplies by after
    /// [`apply`](Self::apply) as a part of its own products.
    fn scale(&self) -> Option<Tensor<1>> {
        None
    }

    /// Every tensor, whose slices are counted as `slices` say.
    fn tensors(&mut self, _slices: Axis) -> Vec<PartTensor<'_>> {
        Vec::new()
    }
}

/// Makes both enums of the axis and hands every call on.
macro_rules! cores {
    ($($(#[$doc:meta])* $name:literal => $file:ident::$Variant:ident($Numbers:ident, $Core:ident)),* $(,)?) => {
        $(
            mod $file;
            pub use $file::{$Numbers, $Core};
        )*

        molora_parts::choices! {
            /// What happens to the low-rank code.
            pub enum CoreConfig {
                $($(#[$doc])* $name => $Variant($Numbers),)*
            }
        }

        /// A core of any kind.
        #[derive(Module, Debug)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, reason = "there is one in a site, and few sites")]
        pub enum Core {
            $(#[doc = concat!("See [`", stringify!($Core), "`].")] $Variant($Core),)*
        }

        impl CoreConfig {
            /// A fresh core that changes nothing.
            pub fn init(&self, dims: CoreDims, seed: Seed, device: &Device) -> Core {
                match self {
                    $(Self::$Variant(numbers) => Core::$Variant(numbers.init(dims, seed, device)),)*
                }
            }

            /// Whether the core depends on which task a row belongs to.
            pub fn reads_tasks(&self) -> bool {
                match self {
                    $(Self::$Variant(numbers) => numbers.reads_tasks(),)*
                }
            }

            /// See [`CoreNumbers::is_linear`].
            pub fn is_linear(&self) -> bool {
                match self {
                    $(Self::$Variant(numbers) => numbers.is_linear(),)*
                }
            }
        }

        impl Core {
            /// The name of its choice in files.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$Variant(_) => $name,)*
                }
            }

            /// See [`Transforming::resized`].
            pub fn resized(&self, slices: Count, experts: usize) -> Self {
                match self {
                    $(Self::$Variant(core) => Self::$Variant(core.resized(slices, experts)),)*
                }
            }

            /// See [`Transforming::is_linear`].
            pub fn is_linear(&self) -> bool {
                match self {
                    $(Self::$Variant(core) => core.is_linear(),)*
                }
            }

            /// See [`Transforming::expert_scale`].
            pub fn expert_scale(&self) -> Option<Tensor<1>> {
                match self {
                    $(Self::$Variant(core) => core.expert_scale(),)*
                }
            }

            /// See [`Transforming::apply`].
            pub fn apply(&self, low: Tensor<3>, tasks: Option<&Tensor<2>>) -> Tensor<3> {
                match self {
                    $(Self::$Variant(core) => core.apply(low, tasks),)*
                }
            }

            /// See [`Transforming::reads_tasks`].
            pub fn reads_tasks(&self) -> bool {
                match self {
                    $(Self::$Variant(core) => core.reads_tasks(),)*
                }
            }

            /// See [`Transforming::is_common`].
            pub fn is_common(&self) -> bool {
                match self {
                    $(Self::$Variant(core) => core.is_common(),)*
                }
            }

            /// See [`Transforming::scale`].
            pub fn scale(&self) -> Option<Tensor<1>> {
                match self {
                    $(Self::$Variant(core) => core.scale(),)*
                }
            }

            /// See [`Transforming::tensors`].
            pub fn tensors(&mut self, slices: Axis) -> Vec<PartTensor<'_>> {
                match self {
                    $(Self::$Variant(core) => core.tensors(slices),)*
                }
            }
        }
    };
}

cores! {
    "none" => none::None(NoCoreConfig, NoCore),
    "scale" => scale::Scale(ScaleConfig, ScaleCore),
    "relu" => relu::Relu(ReluConfig, ReluCore),
    "task" => task::Task(TaskConfig, TaskCore),
    "output_gate" => output_gate::OutputGate(OutputGateConfig, OutputGateCore),
}

impl Default for CoreConfig {
    fn default() -> Self {
        NoCoreConfig.into()
    }
}

impl CoreConfig {
    /// Whether the code stays as it is.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
