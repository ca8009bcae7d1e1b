//! Banks of experts that come from elsewhere.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};

use crate::core::{Core, NoCore};
use crate::down::{DenseDown, Down};
use crate::svd::Svd;
use crate::{Combine, ExpertBank, GateGradient, LowRank, Slices, truncated};

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
            down: Down::Dense(DenseDown {}),
            core: Core::None(NoCore {}),
            residual: None,
            combine: Combine::default(),
            slices: Slices::Independent,
            num_experts,
            rank: width / num_experts,
            factor,
            dropout: 0.0,
            weight_dropout: 0.0,
            gate_gradient: GateGradient::Plain,
        }
    }

    /// The bank with another probability of dropping an input activation in training.
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.dropout = dropout;
        self
    }

    /// The input direction that each expert's delta stretches most, unit rows `[E, D]`: the first
    /// right singular vector of `B A`, up to its sign (Arrow, arXiv:2405.11157, section 4.1). A
    /// direction of no meaning for an expert whose delta is zero.
    pub fn directions(&self) -> Tensor<2> {
        let (a, b) = (self.a_by_expert().detach(), self.b_by_expert().detach());
        let row = |expert: usize| {
            let delta = LowRank {
                a: a.clone().narrow(0, self.slice_of(expert), 1).squeeze_dim(0),
                b: b.clone().narrow(0, expert, 1).squeeze_dim(0),
                scale: 1.0,
            };
            truncated(&delta, 1).a.transpose()
        };
        Tensor::cat((0..self.num_experts).map(row).collect(), 0)
    }

    /// Singular values of every up-projection, largest first, `[E, R]`, and their vectors on the side of
    /// the ranks as columns, `[E, R, R]`; without a gradient. Computed on the host.
    ///
    /// # Panics
    /// If an expert has more ranks than outputs.
    pub fn up_spectrum(&self) -> (Tensor<2>, Tensor<3>) {
        let b = self.b_by_expert().detach();
        let [experts, rank, _] = b.dims();
        let (mut values, mut vectors) = (Vec::new(), Vec::new());
        for expert in 0..experts {
            let svd = Svd::of(&b.clone().narrow(0, expert, 1).squeeze_dim(0));
            values.extend(svd.values.iter().map(|value| *value as f32));
            vectors.extend((0..rank * rank).map(|at| svd.left[at % rank][at / rank] as f32));
        }
        let values = TensorData::new(values, [experts, rank]);
        let vectors = TensorData::new(vectors, [experts, rank, rank]);
        let device = b.device();
        (
            Tensor::from_data(values, &device),
            Tensor::from_data(vectors, &device),
        )
    }

    /// Constant factor s on the delta.
    pub fn factor(&self) -> f64 {
        self.factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_kernels::random::{Seed, uniform};
    use molora_testkit::assert_close;

    /// A unit input in the direction is stretched by the first singular value, and no other more.
    #[test]
    fn directions_are_stretched_most() {
        let device = molora_testkit::device();
        let values = |shape, seed| -> Tensor<2> { uniform(shape, 1.0, Seed::new(seed), &device) };
        let bank = ExpertBank::of_matrices(values([6, 4], 1), values([4, 5], 2), 2, 1.0);
        let directions = bank.directions();
        for expert in 0..2 {
            let mut weights = [0.0; 2];
            weights[expert] = 1.0;
            let delta = bank.weight_delta(Tensor::from_data(weights, &device));
            let (_, s, _) = burn::linalg::svd::<2, 1>(delta.clone(), 100);
            let direction = directions.clone().narrow(0, expert, 1);
            let stretched = direction.matmul(delta).powi_scalar(2).sum().sqrt();
            assert_close(stretched, s.narrow(0, 0, 1), 1e-5, "singular value");
        }
    }
}
