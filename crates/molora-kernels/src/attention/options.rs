//! What an attention may look at, and how its scores are made.

use burn::tensor::{Bool, Int, Tensor};

/// The choices of [`attention_with`](crate::attention_with): heads, scale, bias, and which keys
/// each query may attend to.
///
/// Query `i` stands at position `query_offset + i` and key `j` at position `j`. A key may be
/// attended to if every condition that is set allows it.
///
/// Letters: B batch, T queries, S keys, H query heads.
#[derive(Debug, Clone)]
pub struct AttentionOptions {
    /// Number of query heads H.
    pub num_heads: usize,
    /// Number of key and value heads, a divisor of H: each serves `H / num_kv_heads` adjacent query
    /// heads (grouped-query attention, arXiv:2305.13245, section 2.2).
    pub num_kv_heads: usize,
    /// Whether a query sees no key at a later position than its own.
    pub is_causal: bool,
    /// Position of the first query: with a cache of keys, the number of keys from earlier calls.
    pub query_offset: usize,
    /// Keys that may be attended to, `[B, S]`; `None` = all.
    pub mask: Option<Tensor<2, Bool>>,
    /// The number of the sequence that each position belongs to, for sequences packed into one row,
    /// `[B, S]`; queries see the keys of their own sequence only. `None` = one sequence per row.
    pub segments: Option<Tensor<2, Int>>,
    /// Factor on `q * k^T`; `None` = one over the square root of a head's width.
    pub scale: Option<f64>,
    /// Added to the scaled scores, `[1 or B, H, T, S]` (T5's relative positions, arXiv:1910.10683,
    /// section 2.1, which also has a scale of 1).
    pub bias: Option<Tensor<4>>,
    /// The largest distance between a query and a key that it may attend to, on either side; `None` =
    /// any. Distances count keys that `mask` leaves open, so that padding in between does not part two
    /// tokens. A causal window of `w` tokens, of which the query's own is the last, is a distance of
    /// `w - 1` (Mistral 7B, arXiv:2310.06825, section 2; Longformer, arXiv:2004.05150, section 3.1).
    pub window: Option<usize>,
    /// Bounds the scores, bias included, to `cap * tanh(score / cap)` (Gemma 2, arXiv:2408.00118,
    /// section 2).
    pub soft_cap: Option<f64>,
}

impl AttentionOptions {
    /// Every query sees every key, as many key heads as query heads, the usual scale, no bias.
    pub fn new(num_heads: usize) -> Self {
        Self {
            num_heads,
            num_kv_heads: num_heads,
            is_causal: false,
            query_offset: 0,
            mask: None,
            segments: None,
            scale: None,
            bias: None,
            window: None,
            soft_cap: None,
        }
    }

    /// Sets the number of key and value heads.
    #[must_use]
    pub fn with_num_kv_heads(mut self, num_kv_heads: usize) -> Self {
        self.num_kv_heads = num_kv_heads;
        self
    }

    /// Hides later positions from each query; the first query stands at `query_offset`.
    #[must_use]
    pub fn with_causal(mut self, query_offset: usize) -> Self {
        self.is_causal = true;
        self.query_offset = query_offset;
        self
    }

    /// Sets which keys may be attended to, `[B, S]`.
    #[must_use]
    pub fn with_mask(mut self, mask: Option<Tensor<2, Bool>>) -> Self {
        self.mask = mask;
        self
    }

    /// Sets the sequence that each position belongs to, `[B, S]`.
    #[must_use]
    pub fn with_segments(mut self, segments: Option<Tensor<2, Int>>) -> Self {
        self.segments = segments;
        self
    }

    /// Sets the factor on `q * k^T`.
    #[must_use]
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Sets what is added to the scaled scores, `[1 or B, H, T, S]`.
    #[must_use]
    pub fn with_bias(mut self, bias: Option<Tensor<4>>) -> Self {
        self.bias = bias;
        self
    }

    /// Sets the largest distance between a query and a key that it may attend to.
    #[must_use]
    pub fn with_window(mut self, distance: Option<usize>) -> Self {
        self.window = distance;
        self
    }

    /// Sets the bound of the scores.
    #[must_use]
    pub fn with_soft_cap(mut self, cap: Option<f64>) -> Self {
        self.soft_cap = cap;
        self
    }

    /// The factor on `q * k^T` for heads of `width` numbers.
    pub(super) fn scale_of(&self, width: usize) -> f64 {
        self.scale.unwrap_or((width as f64).sqrt().recip())
    }

    /// Panics with the name of the first thing that does not fit.
    #[track_caller]
    pub(super) fn check(&self, query: &Tensor<3>, key: &Tensor<3>, value: &Tensor<3>) {
        let ([batch, queries, width], [_, keys, _]) = (query.dims(), key.dims());
        let (heads, kv_heads) = (self.num_heads, self.num_kv_heads);
        assert!(
            heads > 0 && width.is_multiple_of(heads),
            "{heads} heads do not divide {width}"
        );
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{kv_heads} key heads do not divide {heads} heads"
        );
        let expected = [batch, keys, width / heads * kv_heads];
        assert_eq!(
            (key.dims(), value.dims()),
            (expected, expected),
            "key, value"
        );
        if let Some(mask) = &self.mask {
            assert_eq!(mask.dims(), [batch, keys], "mask");
        }
        if let Some(segments) = &self.segments {
            assert_eq!(segments.dims(), [batch, keys], "segments");
            let end = self.query_offset + queries;
            assert!(
                end <= keys,
                "queries up to position {end} but segments of {keys}"
            );
        }
        if self.window.is_some() {
            let end = self.query_offset + queries;
            assert!(
                end <= keys,
                "queries up to position {end} and a window, but {keys} keys"
            );
        }
        if let Some(bias) = &self.bias {
            let rows = if bias.dims()[0] == 1 { 1 } else { batch };
            assert_eq!(bias.dims(), [rows, heads, queries, keys], "bias");
        }
    }
}

#[cfg(test)]
mod tests;
