//! A learned embedding of the cluster that a sequence belongs to, and a linear map of it, whatever the
//! text. MoCLE, Gou et al., arXiv:2312.12379, section 3.2.
//!
//! ```text
//! s = W c + b      c the embedding of the sequence's cluster
//! ```
//!
//! Which cluster that is comes from outside, see [`Guidance::clusters`](crate::Guidance::clusters). A
//! sequence without one takes the mean embedding.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, normal};
use molora_parts::{Axis, ParameterKind, PartTensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Reads, Score, ScoreInput, Scored, ScorerDims, ScorerNumbers, draw, rows_of_experts,
    unknown_rows,
};
use crate::RoutingError;

/// `W c + b` with an embedding `c` for each cluster. MoCLE, arXiv:2312.12379.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Number of clusters.
    pub clusters: usize,
    /// Width C of their embeddings.
    pub width: usize,
}

impl Default for ClusterConfig {
    /// The smaller number of clusters in the paper.
    fn default() -> Self {
        Self {
            clusters: 16,
            width: 64,
        }
    }
}

impl ScorerNumbers for ClusterConfig {
    type Scorer = ClusterScorer;

    /// Embeddings from N(0, 1), as PyTorch's; weight and bias as a linear layer's.
    fn init(&self, dims: ScorerDims, seed: Seed, device: &Device) -> ClusterScorer {
        let Self { clusters, width } = *self;
        let embedding = normal([clusters, width], 1.0, seed.child("embedding"), device);
        ClusterScorer {
            embedding: Param::from_tensor(embedding),
            weight: draw([dims.experts, width], width, seed.child("weight"), device),
            bias: draw([dims.experts], width, seed.child("bias"), device),
        }
    }

    fn validate(&self, _num_experts: usize) -> Result<(), RoutingError> {
        match self {
            Self { clusters: 0, .. } => Err(RoutingError::Zero { field: "clusters" }),
            Self { width: 0, .. } => Err(RoutingError::Zero { field: "width" }),
            _ => Ok(()),
        }
    }

    fn reads(&self) -> Reads {
        Reads::Clusters
    }

    fn num_clusters(&self) -> Option<usize> {
        Some(self.clusters)
    }
}

/// A linear map of the embedding of a sequence's cluster.
#[derive(Module, Debug)]
pub struct ClusterScorer {
    /// One row per cluster, `[clusters, C]`.
    pub embedding: Param<Tensor<2>>,
    /// One row per expert, `[E, C]`.
    pub weight: Param<Tensor<2>>,
    /// Bias, `[E]`.
    pub bias: Param<Tensor<1>>,
}

impl Score for ClusterScorer {
    fn score(&self, features: Tensor<2>) -> Tensor<2> {
        unknown_rows(self, features)
    }

    fn score_rows(&self, input: &ScoreInput) -> Scored {
        let [batch, decisions, _] = input.features.dims();
        let embedding = match &input.clusters {
            Some(rows) => known_or_mean(rows.clone()).matmul(self.embedding.val()),
            None => self.embedding.val().mean_dim(0),
        };
        let logits = embedding.matmul(self.weight.val().transpose());
        let logits = logits + self.bias.val().unsqueeze();
        let experts = logits.dims()[1];
        let logits = logits.unsqueeze_dim::<3>(1);
        Scored::new(logits.expand([batch, decisions, experts]))
    }

    fn tensors(&mut self) -> Vec<PartTensor<'_>> {
        let kind = ParameterKind::Routers;
        let ([clusters, width], [experts]) = (self.embedding.dims(), self.bias.dims());
        let (clusters, columns) = ([Axis::Unit.of(clusters)], [Axis::Feature.of(width)]);
        let experts = [Axis::Expert.of(experts)];
        let (embedding, bias) = (&mut self.embedding, &mut self.bias);
        vec![
            PartTensor::matrix(
                "router.cluster_embedding",
                kind,
                embedding,
                &clusters,
                &columns,
            ),
            rows_of_experts("router.weight", &mut self.weight),
            PartTensor::vector("router.bias", kind, bias, &experts),
        ]
    }
}

/// Rows `[B, clusters]` in which a row of zeros picks the mean.
fn known_or_mean(rows: Tensor<2>) -> Tensor<2> {
    let [batch, clusters] = rows.dims();
    let is_unknown = rows.clone().sum_dim(1).lower_elem(0.5);
    rows.mask_fill(is_unknown.expand([batch, clusters]), 1.0 / clusters as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_testkit::{FORWARD, assert_close};

    #[test]
    fn a_sequence_is_scored_by_its_cluster_and_others_by_the_mean() {
        let device = molora_testkit::device();
        let scorer = ClusterScorer {
            embedding: Param::from_data([[1.0, 0.0], [0.0, 2.0]], &device),
            weight: Param::from_data([[1.0, 1.0], [0.0, -1.0], [3.0, 0.0]], &device),
            bias: Param::from_data([0.0, 0.5, 0.0], &device),
        };
        let input = ScoreInput {
            clusters: Some(Tensor::from_data(
                [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]],
                &device,
            )),
            ..ScoreInput::new(Tensor::zeros([3, 1, 4], &device))
        };
        let found = scorer.score_rows(&input).logits;
        let mean = [1.5, -0.5, 1.5];
        let expected = [[[1.0, 0.5, 3.0]], [[2.0, -1.5, 0.0]], [mean]];
        assert_close(found, expected, FORWARD, "logits");
        let unknown = scorer.score(Tensor::zeros([1, 4], &device));
        assert_close(unknown, [mean], FORWARD, "logits of an unknown cluster");
    }
}
