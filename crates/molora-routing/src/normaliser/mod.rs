//! Normalisers: logits in, weights over the experts that take part out. One file each, and one line
//! in the list below.
//!
//! | normaliser | weight of expert e | from |
//! |---|---|---|
//! | `softmax` | `exp(l_e) / sum_j exp(l_j)` over the experts that take part | nearly all |
//! | `sigmoid` | `1 / (1 + exp(-l_e))`, so that weights need not add up to 1 | PHATGOOSE's gates |
//! | `sigmoid_share` | `s_e / sum_j s_j`, s the sigmoids of those that take part | Polytropon |
//! | `cells` | a softmax over all groups, blended with given similarities by a learned share | MoR1E |
//! | `none` | 1 | FlyLoRA |
//! | `identity` | `l_e`, which may be negative | WEMoE |
//! | `sparsegen` | `max(l_e - tau, 0) / (1 - lambda)`, with a learned lambda | LD-MoLE |
//! | `probability` | `exp(l_e) / sum_j exp(l_j)` over **all** experts: what is left out is not given to the others | top-p routing, Mod-Squad, MoCLE |
//! | `threshold` | `max(p_e - theta, 0)`, renormalised, with a learned theta; p is the softmax over all experts | AdaMoLE |
//! | `softmax_twice` | softmax of the probabilities p over the experts that take part | HMoRA |

use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};
use molora_kernels::random::Seed;
use molora_parts::PartTensor;

use crate::RoutingError;

/// What a decision makes of the scores.
#[derive(Debug, Clone)]
pub struct Weighed {
    /// Weights, 0 for experts that do not take part, `[B, T', E]`.
    pub weights: Tensor<3>,
    /// Which experts take part, `[B, T', E]`; `None` if all do.
    pub selected: Option<Tensor<3, Bool>>,
    /// The number that a normaliser with parameters computed for each decision, `[B, T', 1]`: the
    /// threshold of `threshold`, the lambda of `sparsegen`.
    pub learned: Option<Tensor<3>>,
}

impl Weighed {
    /// Weights of experts of which these take part.
    pub fn new(weights: Tensor<3>, selected: Option<Tensor<3, Bool>>) -> Self {
        Self {
            weights,
            selected,
            learned: None,
        }
    }

    /// The same, with what was learned of each decision.
    pub fn with_learned(self, learned: Tensor<3>) -> Self {
        Self {
            learned: Some(learned),
            ..self
        }
    }
}

/// What a normaliser reads.
#[derive(Debug, Clone)]
pub struct Scores {
    /// What the scores were computed from, `[B, T', F]`.
    pub features: Tensor<3>,
    /// Scores divided by the temperature, plus the bias if there is one, `[B, T', E]`.
    pub logits: Tensor<3>,
    /// Softmax of the logits over all experts, `[B, T', E]`.
    pub probs: Tensor<3>,
    /// Which experts take part, `[B, T', E]`; `None` if all do.
    pub selected: Option<Tensor<3, Bool>>,
}

/// What a normaliser with parameters computes for each decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// A threshold of probabilities.
    Threshold,
    /// A sparsity below 1: the larger, the fewer experts.
    Sparsity,
}

/// The numbers of a normaliser.
pub trait NormaliserNumbers {
    /// The normaliser with its parameters, if it has any.
    type Normaliser: Normalise;

    /// A fresh normaliser for features of a width.
    fn init(&self, d_features: usize, seed: Seed, device: &Device) -> Self::Normaliser;

    /// What stands in [`Weighed::learned`], if anything does.
    fn learns(&self) -> Option<Learned> {
        None
    }

    /// Whether the scores of all groups become weights together.
    fn is_joint(&self) -> bool {
        false
    }

    /// Checks every number.
    ///
    /// # Errors
    /// The first one that is out of its range.
    fn validate(&self) -> Result<(), RoutingError> {
        Ok(())
    }
}

/// A normaliser with its parameters.
pub trait Normalise: Module {
    /// Weights of 0 for experts that do not take part, and which do: no more than before.
    fn weigh(&self, scores: Scores) -> Weighed;

    /// Whether the scores of all groups become weights together, by [`blend`](Self::blend).
    fn is_joint(&self) -> bool {
        false
    }

    /// Weights `[B, T', G*E]` from scores of that shape and, if they are known, similarities
    /// `[B, 1, G*E]` of the sequences.
    fn blend(&self, scores: Scores, _prior: Option<Tensor<3>>) -> Tensor<3> {
        scores.probs
    }

    /// Every tensor.
    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        Vec::new()
    }
}

/// Makes both enums of the axis and hands every call on.
macro_rules! normalisers {
    ($($(#[$doc:meta])* $name:literal => $file:ident::$Variant:ident($Numbers:ident, $Normaliser:ident)),* $(,)?) => {
        $(
            mod $file;
            pub use $file::{$Numbers, $Normaliser};
        )*

        molora_parts::choices! {
            /// How logits become weights.
            pub enum NormaliserConfig {
                $($(#[$doc])* $name => $Variant($Numbers),)*
            }
        }

        /// A normaliser of any kind.
        #[derive(Module, Debug)]
        #[non_exhaustive]
        #[allow(clippy::large_enum_variant, reason = "there is one in a site, and few sites")]
        pub enum Normaliser {
            $(#[doc = concat!("See [`", stringify!($Normaliser), "`].")] $Variant($Normaliser),)*
        }

        impl NormaliserConfig {
            /// A fresh normaliser for features of a width.
            pub fn init(&self, d_features: usize, seed: Seed, device: &Device) -> Normaliser {
                match self {
                    $(Self::$Variant(numbers) => Normaliser::$Variant(numbers.init(d_features, seed, device)),)*
                }
            }

            /// See [`NormaliserNumbers::learns`].
            pub fn learns(&self) -> Option<Learned> {
                match self {
                    $(Self::$Variant(numbers) => numbers.learns(),)*
                }
            }

            /// See [`NormaliserNumbers::is_joint`].
            pub fn is_joint(&self) -> bool {
                match self {
                    $(Self::$Variant(numbers) => numbers.is_joint(),)*
                }
            }

            /// Checks every number.
            ///
            /// # Errors
            /// The first one that is out of its range.
            pub fn validate(&self) -> Result<(), RoutingError> {
                match self {
                    $(Self::$Variant(numbers) => numbers.validate(),)*
                }
            }
        }

        impl Normaliser {
            /// Weights of 0 for experts that do not take part, and which do: no more than before.
            pub fn weigh(&self, scores: Scores) -> Weighed {
                match self {
                    $(Self::$Variant(normaliser) => normaliser.weigh(scores),)*
                }
            }

            /// See [`Normalise::is_joint`].
            pub fn is_joint(&self) -> bool {
                match self {
                    $(Self::$Variant(normaliser) => normaliser.is_joint(),)*
                }
            }

            /// See [`Normalise::blend`].
            pub fn blend(&self, scores: Scores, prior: Option<Tensor<3>>) -> Tensor<3> {
                match self {
                    $(Self::$Variant(normaliser) => normaliser.blend(scores, prior),)*
                }
            }

            /// Every tensor.
            pub fn tensors(&mut self) -> Vec<PartTensor<'_>> {
                match self {
                    $(Self::$Variant(normaliser) => normaliser.tensors(),)*
                }
            }
        }
    };
}

normalisers! {
    "softmax" => softmax::Softmax(SoftmaxConfig, Softmax),
    "sigmoid" => sigmoid::Sigmoid(SigmoidConfig, Sigmoid),
    "cells" => cells::Cells(CellsConfig, Cells),
    "sigmoid_share" => sigmoid_share::SigmoidShare(SigmoidShareConfig, SigmoidShare),
    "none" => none::None(NoneConfig, NoNormaliser),
    "identity" => identity::Identity(IdentityConfig, Identity),
    "sparsegen" => sparsegen::Sparsegen(SparsegenConfig, Sparsegen),
    "probability" => probability::Probability(ProbabilityConfig, Probability),
    "threshold" => threshold::Threshold(ThresholdConfig, Threshold),
    "softmax_twice" => softmax_twice::SoftmaxTwice(SoftmaxTwiceConfig, SoftmaxTwice),
}
