//! The table of a vocabulary.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use molora_kernels::BlockMatrix;

use crate::base_dtype::wide;

/// Frozen numbers for every token of a vocabulary, `[V, D]`: the embeddings of tokens, or the head that scores them,
/// or both in one.
#[derive(Module, Debug)]
pub enum TokenTable {
    /// In f32 or bf16.
    Numbers(Param<Tensor<2>>),
    /// In 8 bits a number.
    Blocks(BlockMatrix),
}

impl TokenTable {
    /// Tokens V and width D.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Numbers(table) => table.dims(),
            Self::Blocks(blocks) => blocks.dims(),
        }
    }

    /// Its numbers in f32: a copy, unless it is in f32.
    pub fn wide(&self) -> Tensor<2> {
        match self {
            Self::Numbers(table) => wide(table.val()),
            Self::Blocks(blocks) => blocks.wide(),
        }
    }

    /// Its numbers as they are kept, those of blocks in f32.
    pub(crate) fn kept(&self) -> Tensor<2> {
        match self {
            Self::Numbers(table) => table.val(),
            Self::Blocks(blocks) => blocks.wide(),
        }
    }

    /// Rows for tokens `[N]`, in f32, `[N, D]`.
    pub(crate) fn rows(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        match self {
            Self::Numbers(table) => wide(table.val().select(0, ids)),
            Self::Blocks(blocks) => blocks.select(ids).wide(),
        }
    }

    /// Products of hidden states `[B, T, D]` with every row: `[B, T, V]`.
    pub(crate) fn scores(&self, hidden: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Numbers(table) => molora_kernels::linear_transposed(hidden, table.val(), None),
            Self::Blocks(blocks) => molora_kernels::linear_blocks(hidden, blocks, None),
        }
    }
}

impl From<Param<Tensor<2>>> for TokenTable {
    fn from(table: Param<Tensor<2>>) -> Self {
        Self::Numbers(table)
    }
}
