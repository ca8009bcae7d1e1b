//! Tokens to the input of the first layer.

use burn::module::{Module, Param};
use burn::tensor::{Bool, Int, Tensor};

use super::EncoderInput;
use super::config::Projection;
use crate::base_dtype::wide;
use crate::{EmbeddingNoise, LayerNorm, MoLoraLinear};

/// `norm(word + type + position)`, and a linear map where its width is not that of the layers.
#[derive(Module, Debug)]
pub(super) struct Embeddings {
    /// `[V, E]`.
    pub(super) word: Param<Tensor<2>>,
    pub(super) position: Option<Param<Tensor<2>>>,
    /// The padding token that positions count from.
    #[module(skip)]
    pub(super) padding: Option<usize>,
    pub(super) token_type: Option<Param<Tensor<2>>>,
    /// Whether tokens have types of their own; else all are of type 0.
    pub(super) reads_types: bool,
    pub(super) norm: LayerNorm,
    pub(super) projection: Option<MoLoraLinear>,
    #[module(skip)]
    pub(super) order: Projection,
}

impl Embeddings {
    /// `[B, T, D]`. `words` is the table that is read, and `project` computes the linear map.
    pub(super) fn forward(
        &self,
        words: &Param<Tensor<2>>,
        input: &EncoderInput,
        noise: Option<EmbeddingNoise>,
        project: impl FnOnce(&MoLoraLinear, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let mut sum = rows(words, &input.ids);
        if let Some(noise) = noise {
            sum = noise.add(sum, &input.mask, None);
        }
        if let Some(table) = &self.token_type {
            sum = match self.reads_types {
                true => sum + rows(table, &input.type_ids),
                false => sum + table.val().narrow(0, 0, 1).unsqueeze::<3>(),
            };
        }
        if let Some(table) = &self.position {
            sum = match self.padding {
                Some(padding) => sum + rows(table, &counted(input, padding)),
                None => {
                    let tokens = input.ids.dims()[1];
                    sum + table.val().narrow(0, 0, tokens).unsqueeze::<3>()
                }
            };
        }
        match (&self.projection, self.order) {
            (None, _) => self.norm.forward(sum),
            (Some(linear), Projection::BehindNorm) => project(linear, self.norm.forward(sum)),
            (Some(linear), Projection::BeforeNorm) => self.norm.forward(project(linear, sum)),
        }
    }
}

/// Rows of a table for token numbers `[B, T]`, `[B, T, E]`.
fn rows(table: &Param<Tensor<2>>, ids: &Tensor<2, Int>) -> Tensor<3> {
    let ([batch, tokens], width) = (ids.dims(), table.dims()[1]);
    let ids = ids.clone().reshape([batch * tokens]);
    wide(table.val().select(0, ids)).reshape([batch, tokens, width])
}

/// Rows of the table of positions: the first token that is no padding has the row behind that of the
/// padding token, which padding has, wherever it stands.
fn counted(input: &EncoderInput, padding: usize) -> Tensor<2, Int> {
    let is_token: Tensor<2, Bool> = input.ids.clone().not_equal_elem(padding as i64);
    let is_token = is_token.bool_and(input.mask.clone()).int();
    (is_token.clone().cumsum(1) * is_token).add_scalar(padding as i64)
}

#[cfg(test)]
mod tests {
    use molora_testkit::device;

    use super::*;

    #[test]
    fn positions_count_what_is_no_padding() {
        let device = device();
        // On the right, on the left with other tokens in it, and the padding token within a text.
        let ids = [[5, 6, 1, 1], [7, 8, 5, 6], [5, 1, 6, 7]];
        let mask = [
            [true, true, false, false],
            [false, false, true, true],
            [true; 4],
        ];
        let ids = Tensor::<2, Int>::from_ints(ids, &device);
        let input = EncoderInput {
            type_ids: ids.zeros_like(),
            ids,
            mask: Tensor::from_data(mask, &device),
        };
        let found: Vec<i64> = counted(&input, 1).into_data().iter::<i64>().collect();
        assert_eq!(found, [2, 3, 1, 1, 1, 1, 2, 3, 2, 1, 3, 4]);
    }
}
