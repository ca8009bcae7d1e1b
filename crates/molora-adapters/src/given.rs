//! Banks of experts that come from elsewhere.

use burn::module::Param;
use burn::tensor::Tensor;

use crate::ExpertBank;

impl ExpertBank {
    /// A bank of given matrices without dropout, each expert with an `A` of its own.
    ///
    /// # Shapes
    /// - `a`: `[D, E*R]`, down-projections side by side
    /// - `b`: `[E*R, O]`, up-projections one below the other
    ///
    /// # Panics
    /// If the ranks disagree or are no multiple of `num_experts`.
    pub fn of_matrices(a: Tensor<2>, b: Tensor<2>, num_experts: usize, factor: f64) -> Self {
        let (width, height) = (a.dims()[1], b.dims()[0]);
        assert!(
            width == height && width > 0 && width.is_multiple_of(num_experts),
            "{num_experts} experts have factors of ranks {width} and {height}"
        );
        Self {
            a: Param::from_tensor(a),
            b: Param::from_tensor(b),
            rank_scale: None,
            num_experts,
            rank: width / num_experts,
            factor,
            dropout: 0.0,
            weight_dropout: 0.0,
        }
    }

    /// The bank with another probability of dropping an input activation in training.
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.dropout = dropout;
        self
    }

    /// Constant factor s on the delta.
    pub fn factor(&self) -> f64 {
        self.factor
    }
}
