//! Layers, and the halves that they make.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Tensor};

use crate::decoder::{Attention, FeedForward, LayerCache, Pass};
use crate::layers::Norm;
use crate::relative_bias::RelativeBias;
use crate::{LayerRouter, ModelPart};

/// A layer: each part is added to what it reads.
#[derive(Module, Debug)]
pub(super) struct Block {
    /// Biases by distance of this layer, and of those behind it that have none.
    pub(super) bias: Option<RelativeBias>,
    pub(super) attention_norm: Norm,
    pub(super) attention: Attention,
    /// Attention to the encoder, in the decoder.
    pub(super) cross: Option<(Norm, Attention)>,
    pub(super) feed_forward_norm: Norm,
    pub(super) feed_forward: FeedForward,
    /// Whether normalisation stands in front of each part rather than behind its sum.
    pub(super) norm_first: bool,
    /// Weighs the experts of the feed-forward part, where that has a router of its own.
    pub(super) router: Option<LayerRouter>,
}

/// Learned positions.
#[derive(Module, Debug)]
pub(super) struct Positions {
    /// `[offset + tokens, D]`.
    pub(super) table: Param<Tensor<2>>,
    /// Row of the first token.
    pub(super) offset: usize,
}

/// Encoder or decoder.
#[derive(Module, Debug)]
pub(super) struct Stack {
    pub(super) positions: Option<Positions>,
    /// Behind the embeddings, where normalisation comes last.
    pub(super) embedding_norm: Option<Norm>,
    pub(super) blocks: Vec<Block>,
    /// Behind the last layer, where normalisation comes first.
    pub(super) final_norm: Option<Norm>,
    pub(super) num_heads: usize,
}

impl Stack {
    /// What the stack returns, from the output of its last layer.
    pub(super) fn end(&self, hidden: Tensor<3>) -> Tensor<3> {
        match &self.final_norm {
            Some(norm) => norm.forward(hidden),
            None => hidden,
        }
    }
}

impl Positions {
    /// The rows of the last `new` tokens of a mask, `[B, new, D]`: positions count real tokens, so that
    /// padding may stand on either side.
    pub(super) fn rows(&self, mask: &Tensor<2, Bool>, new: usize) -> Tensor<3> {
        let ([batch, all], width) = (mask.dims(), self.table.dims()[1]);
        let counted = mask.clone().int().cumsum(1).sub_scalar(1).clamp_min(0);
        let counted = counted.narrow(1, all - new, new);
        let rows = counted.add_scalar(self.offset as i64);
        let rows = self.table.val().select(0, rows.reshape([batch * new]));
        rows.reshape([batch, new, width])
    }
}

impl Block {
    /// Puts the biases of the layer into a pass, if it has its own.
    pub(super) fn place(&self, pass: &mut Pass, queries: usize, offset: usize, keys: usize) {
        if let Some(bias) = &self.bias {
            pass.attention.bias = Some(bias.forward(queries, offset, keys));
        }
    }

    /// A part with its normalisation, added to what it reads.
    pub(super) fn added(
        &self,
        norm: &Norm,
        x: Tensor<3>,
        part: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        match self.norm_first {
            true => {
                let normed = norm.forward(x.clone());
                x + part(normed)
            }
            false => norm.forward(x.clone() + part(x)),
        }
    }

    pub(super) fn read(
        &self,
        x: Tensor<3>,
        cache: Option<&mut LayerCache>,
        pass: &mut Pass,
    ) -> Tensor<3> {
        self.added(&self.attention_norm, x, |x| {
            self.attention.forward(x, cache, pass)
        })
    }

    pub(super) fn think(
        &self,
        x: Tensor<3>,
        part: Option<&ModelPart>,
        pass: &mut Pass,
    ) -> Tensor<3> {
        let router = self.router.as_ref().or(part.and_then(ModelPart::router));
        pass.feed_forward = router.cloned();
        self.added(&self.feed_forward_norm, x, |x| {
            self.feed_forward.forward(x, pass)
        })
    }
}
