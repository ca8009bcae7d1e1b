//! What a decoder reads.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

/// A padded batch of token sequences.
#[derive(Debug, Clone)]
pub struct DecoderInput {
    /// Token numbers, `[B, T]`.
    pub ids: Tensor<2, Int>,
    /// True for real tokens, `[B, T]`; padding may stand anywhere. Positions count real tokens.
    pub mask: Tensor<2, Bool>,
    /// The number of the sequence that each token belongs to, `[B, T]`, where several sequences are
    /// packed into one row one after the other: a token attends to its own sequence only, and positions
    /// start again with each. `None` = one sequence per row.
    pub segments: Option<Tensor<2, Int>>,
}

impl DecoderInput {
    /// Sequences padded on the left to the longest, with token 0.
    ///
    /// # Panics
    /// If there is no sequence, or none has a token.
    pub fn from_sequences(sequences: &[Vec<usize>], device: &Device) -> Self {
        let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
        assert!(longest > 0, "no token in {} sequences", sequences.len());
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for sequence in sequences {
            let padding = longest - sequence.len();
            ids.extend(std::iter::repeat_n(0, padding));
            ids.extend(sequence.iter().map(|&token| token as i64));
            mask.extend((0..longest).map(|index| index >= padding));
        }
        let shape = [sequences.len(), longest];
        Self {
            ids: Tensor::from_data(TensorData::new(ids, shape), device),
            mask: Tensor::from_data(TensorData::new(mask, shape), device),
            segments: None,
        }
    }

    /// The same with token 0 for padding, which may be numbered as no token is and is looked up too.
    pub(crate) fn with_plain_padding(&self) -> Self {
        let padding = self.mask.clone().bool_not();
        Self {
            ids: self.ids.clone().mask_fill(padding, 0),
            ..self.clone()
        }
    }
}

/// Positions `[B, T]` of the tokens of the input: how many real tokens are in front of each, in its
/// row or, with segments, in its segment. `mask` `[B, S]` is that of all tokens.
pub(super) fn positions(mask: &Tensor<2, Bool>, input: &DecoderInput) -> Tensor<2, Int> {
    let (all, new) = (mask.dims()[1], input.ids.dims()[1]);
    let counted = mask.clone().int().cumsum(1).sub_scalar(1).clamp_min(0);
    let counted = counted.narrow(1, all - new, new);
    let Some(segments) = &input.segments else {
        return counted;
    };
    // The count at the start of a segment, carried on to its end.
    let previous = segments.clone().roll_dim(1, 1);
    let goes_on = segments.clone().equal(previous);
    let starts = counted.clone().mask_fill(goes_on, 0).cummax(1);
    counted - starts
}
