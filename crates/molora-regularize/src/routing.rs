//! Losses on routing decisions, over the decisions that count.

use burn::tensor::{Tensor, activation::log_softmax};
use molora_routing::RouterOutput;

use crate::Reduction;

/// Load-balancing loss `E * sum_e f_e * P_e`.
///
/// `f_e` is the share of selections that went to expert `e` (no gradient) and `P_e` the mean router
/// probability of `e`. With [`Reduction::Mean`] `f` is divided by all selections and the loss of a
/// uniform router is 1; with [`Reduction::Sum`] `f` is summed over the K slots of a decision
/// (Mixtral's form) and the loss of a uniform router is K. Dense routing selects every expert
/// equally, so its loss is constant.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// Fedus et al., Switch Transformers, arXiv:2101.03961, section 2.2, eq. 4.
pub fn load_balance(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    let counts = routed.selection_counts();
    let selections = match reduction {
        Reduction::Mean => counts.clone().sum().clamp_min(1.0),
        Reduction::Sum => routed.num_decisions(),
    };
    let mass = routed.sum_counted(routed.probs.clone()) / routed.num_decisions();
    ((counts / selections).detach() * mass)
        .sum()
        .mul_scalar(routed.num_experts() as f64)
}

/// Router z-loss: `logsumexp(logits)^2` over decisions, which keeps logits small.
///
/// The mean over the decisions that count, or their sum. With all logits 0 each decision's value is
/// `ln(E)^2`.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// Zoph et al., ST-MoE, arXiv:2202.08906, eq. 5.
pub fn router_z_loss(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    let [batch, tokens, _] = routed.logits.dims();
    // logits - log_softmax(logits) is logsumexp in every column, computed without overflow.
    let first = |values: Tensor<3>| values.slice([0..batch, 0..tokens, 0..1]);
    let normalizer = log_softmax(routed.logits.clone(), 2);
    let log_sum_exp = first(routed.logits.clone()) - first(normalizer);
    let total = routed.sum_counted(log_sum_exp.square());
    match reduction {
        Reduction::Mean => total / routed.num_decisions(),
        Reduction::Sum => total,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::activation::softmax;
    use molora_routing::Selection;
    use molora_testkit::{FORWARD, GRADIENT, assert_close};

    /// Three tokens of the MoSLD notes' worked example and one padding token full of junk.
    const LOGITS: [[[f32; 4]; 4]; 1] = [[
        [0.5, 1.0, 0.25, 0.625],
        [0.1, -0.2, 0.5, 0.35],
        [1.0, 0.0, -0.5, 0.375],
        [90.0, -80.0, 7.0, 3.0],
    ]];

    fn routed(logits: Tensor<3>, selection: Selection) -> RouterOutput {
        let probs = softmax(logits.clone(), 2);
        let (weights, selected) = selection.weigh(&logits, &probs);
        let counted = Tensor::from_data([[1.0, 1.0, 1.0, 0.0]], &logits.device());
        RouterOutput {
            logits,
            probs,
            weights,
            selected,
            counted,
        }
    }

    #[test]
    fn balance_of_the_worked_example() {
        let logits = Tensor::<3>::from_data(LOGITS, &molora_testkit::device());
        let routed = routed(logits, Selection::TopK(2));
        assert_close(
            load_balance(&routed, Reduction::Mean),
            [1.015326],
            FORWARD,
            "switch",
        );
        assert_close(
            load_balance(&routed, Reduction::Sum),
            [2.030652],
            FORWARD,
            "without the k",
        );
    }

    #[test]
    fn balance_gradient_of_the_worked_example() {
        let device = molora_testkit::autodiff_device();
        let logits = Tensor::<3>::from_data(LOGITS, &device).require_grad();
        let loss = load_balance(&routed(logits.clone(), Selection::TopK(2)), Reduction::Mean);
        let gradient = logits.grad(&loss.backward()).expect("tracked");
        let expected = [[
            [-0.024213, -0.039920, -0.018857, 0.082990],
            [-0.027974, -0.020724, -0.041732, 0.090430],
            [-0.052619, -0.019358, -0.011741, 0.083718],
            [0.0; 4],
        ]];
        assert_close(gradient, expected, GRADIENT, "d balance / d logits");
    }

    #[test]
    fn dense_routing_is_balanced() {
        let logits = Tensor::<3>::from_data(LOGITS, &molora_testkit::device());
        let loss = load_balance(&routed(logits, Selection::Dense), Reduction::Mean);
        assert_close(loss, [1.0], FORWARD, "dense");
    }

    #[test]
    fn z_loss_of_zero_logits_is_the_squared_log_of_experts() {
        let logits = Tensor::<3>::zeros([1, 4, 4], &molora_testkit::device());
        let routed = routed(logits, Selection::Dense);
        let square = 4f32.ln().powi(2);
        assert_close(
            router_z_loss(&routed, Reduction::Mean),
            [square],
            FORWARD,
            "mean",
        );
        assert_close(
            router_z_loss(&routed, Reduction::Sum),
            [3.0 * square],
            FORWARD,
            "sum",
        );
    }

    #[test]
    fn z_loss_survives_large_logits() {
        let logits = Tensor::<3>::from_data(LOGITS, &molora_testkit::device()).mul_scalar(100.0);
        let value = router_z_loss(&routed(logits, Selection::Dense), Reduction::Mean);
        assert!(value.into_scalar::<f32>().is_finite());
    }
}
