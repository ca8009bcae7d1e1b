//! Merging what several trainings have changed into one change.
//!
//! | what | by |
//! |---|---|
//! | task vectors `tau_i = theta_i - theta_0` of whole parameters | [`TaskVector`], [`Rule`] |
//! | low-rank deltas of one layer | [`LowRank`], [`merge`] with a [`MergeMethod`] |
//! | task vectors under coefficients that are learned | [`with_coefficients`], [`concrete_mask`] |
//! | task vectors under coefficients of each row of a batch | [`merged_linear`] |
//!
//! A [`Rule`] is what becomes of each one's entries ([`Sparsify`]) and how the entries of several
//! become one ([`Join`]). It is the same for task vectors, for factors and for products:
//!
//! | method | entries | joined | paper |
//! |---|---|---|---|
//! | task arithmetic | all | sum | Ilharco et al., arXiv:2212.04089 |
//! | magnitude pruning | the largest | sum | PEFT's `magnitude_prune` |
//! | TIES | the largest | mean, or sum, of those that have the elected sign | Yadav et al., arXiv:2306.01708 |
//! | DARE | random ones, rescaled | any of these | Yu et al., arXiv:2311.03099 |

mod eigen;
mod join;
mod learned;
mod lora;
mod routed;
mod rule;
mod sparsify;
mod svd;
mod vector;

pub use join::{Join, Sign, agreeing};
pub use learned::{concrete_mask, with_coefficients};
pub use lora::{LowRank, MergeMethod, merge};
pub use routed::merged_linear;
pub use rule::{Rule, weighted_sum};
pub use sparsify::{Sparsify, above_quantile, keep_largest, rescaled};
pub use svd::{singular_values, truncated, truncated_matrix};
pub use vector::TaskVector;
