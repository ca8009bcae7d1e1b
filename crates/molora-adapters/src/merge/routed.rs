//! Task vectors that are merged anew for each row of a batch.

use burn::tensor::Tensor;

/// A linear layer whose weight is merged for each row and then run once (WEMoE, Tang et al.,
/// arXiv:2402.00433, eq. 5 and 6):
///
/// ```text
/// y_b = x_b (W + sum_i g_bi T_i) + c + sum_i g_bi t_i
/// ```
///
/// # Shapes
/// - `x`: `[B, T, D]`
/// - `gates` `g`: `[B, K]`, or `[1, K]` for all rows
/// - `weight`: `W` `[D, O]` with the task vectors `T` `[K, D, O]`
/// - `bias`: `c` `[O]` with the task vectors `t` `[K, O]`
/// - returns `[B, T, O]`
pub fn merged_linear(
    x: Tensor<3>,
    gates: Tensor<2>,
    weight: (Tensor<2>, Tensor<3>),
    bias: Option<(Tensor<1>, Tensor<2>)>,
) -> Tensor<3> {
    let (base, deltas) = weight;
    let ([rows, tasks], [d_input, d_output]) = (gates.dims(), base.dims());
    let sum = gates
        .clone()
        .matmul(deltas.reshape([tasks, d_input * d_output]));
    let merged = base.unsqueeze::<3>() + sum.reshape([rows, d_input, d_output]);
    let batch = x.dims()[0];
    let y = x.matmul(merged.expand([batch, d_input, d_output]));
    match bias {
        Some((base, deltas)) => y + (base.unsqueeze::<2>() + gates.matmul(deltas)).unsqueeze_dim(1),
        None => y,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::weighted_sum;
    use molora_kernels::random::{Seed, uniform};
    use molora_testkit::{FORWARD, assert_close, device};

    /// With the same gate for every row it is task arithmetic.
    #[test]
    fn a_constant_gate_is_task_arithmetic() {
        let device = device();
        let draw = |name: &str, dims: [usize; 3]| -> Tensor<3> {
            uniform(dims, 1.0, Seed::new(1).child(name), &device)
        };
        let (x, deltas) = (draw("x", [2, 3, 4]), draw("t", [2, 4, 5]));
        let base = draw("w", [1, 4, 5]).squeeze_dim::<2>(0);
        let gates = Tensor::<2>::full([1, 2], 0.3, &device);
        let y = merged_linear(x.clone(), gates, (base.clone(), deltas.clone()), None);
        let delta = |task| (deltas.clone().narrow(0, task, 1).squeeze_dim(0), 0.3);
        let merged = base + weighted_sum(&[delta(0), delta(1)]);
        assert_close(y, x.matmul(merged.unsqueeze()), FORWARD, "y");
    }
}
