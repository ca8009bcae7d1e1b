//! Losses on routing decisions, over the decisions that count.

use burn::tensor::Tensor;
use burn::tensor::activation::{log_softmax, softmax};
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

/// Cross-entropy of the routers' softmax with each sequence's own expert.
///
/// Mean over the decisions that count of `-log p_d`, where `d` is the expert that `labels` names for
/// the decision's sequence; sequences without a label are left out. [`Reduction::Sum`] adds the
/// decisions up. 0 if no decision has a label.
///
/// # Shapes
/// - `labels`: one-hot rows `[B, E]`, zeros for a sequence without a label
/// - returns `[1]`
///
/// # Source
/// Mixture-of-LoRAs, Feng et al., arXiv:2403.03432, section 3.
pub fn domain_cross_entropy(
    routed: &RouterOutput,
    labels: Tensor<2>,
    reduction: Reduction,
) -> Tensor<1> {
    let [_, decisions, _] = routed.logits.dims();
    let [batch, _] = labels.dims();
    let has_label_b1 = labels.clone().sum_dim(1);
    let log_probs = log_softmax(routed.logits.clone(), 2);
    let negative_bt = (log_probs * labels.unsqueeze_dim(1))
        .sum_dim(2)
        .reshape([batch, decisions])
        .neg();
    let counted_bt = routed.counted.clone() * has_label_b1;
    let total = (negative_bt * counted_bt.clone()).sum();
    match reduction {
        Reduction::Sum => total,
        Reduction::Mean => total / counted_bt.sum().clamp_min(1.0),
    }
}

/// MoSLD's balance loss read as counts times probability mass: `sum_e c_e sum_x p_e(x)`.
///
/// `c_e` is how many decisions selected expert `e` (no gradient), `p` the router's softmax.
/// [`Reduction::Sum`] is the paper's sum over decisions, which grows with their number squared;
/// [`Reduction::Mean`] takes `c` and the mass per decision, so that a uniform router gives `K / E`.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// MoSLD, arXiv:2412.08946, eq. 4, whose `s^k` is taken for the router's probability.
pub fn balance_mass(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    counts_times_mass(routed, routed.probs.clone(), reduction)
}

/// MoSLD's balance loss read by the letter: as [`balance_mass`], with `p` replaced by a softmax over
/// the experts of the final weights, which are zero for unselected experts.
///
/// # Shapes
/// - returns `[1]`
///
/// # Source
/// MoSLD, arXiv:2412.08946, eq. 4.
pub fn balance_literal(routed: &RouterOutput, reduction: Reduction) -> Tensor<1> {
    counts_times_mass(routed, softmax(routed.weights.clone(), 2), reduction)
}

/// `sum_e c_e sum_x p_e(x)` over the decisions that count, gradient through `p` alone.
fn counts_times_mass(routed: &RouterOutput, probs: Tensor<3>, reduction: Reduction) -> Tensor<1> {
    let counts = routed.selection_counts().detach();
    let total = (counts * routed.sum_counted(probs)).sum();
    match reduction {
        Reduction::Mean => total / routed.num_decisions().square(),
        Reduction::Sum => total,
    }
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
    fn domain_cross_entropy_of_the_worked_example() {
        let device = molora_testkit::device();
        // Two sequences with one decision each, the last without a label.
        let logits = [[[0.15, 0.55, 0.55]], [[7.0, -3.0, 1.0]]];
        let logits = Tensor::<3>::from_data(logits, &device);
        let probs = softmax(logits.clone(), 2);
        let routed = RouterOutput {
            weights: probs.clone(),
            counted: Tensor::ones([2, 1], &device),
            selected: None,
            logits,
            probs,
        };
        let labels = Tensor::from_data([[0.0, 1.0, 0.0], [0.0; 3]], &device);
        for reduction in [Reduction::Mean, Reduction::Sum] {
            let loss = domain_cross_entropy(&routed, labels.clone(), reduction);
            assert_close(loss, [0.982198], FORWARD, "one label");
        }
        let none = Tensor::zeros([2, 3], &device);
        let loss = domain_cross_entropy(&routed, none, Reduction::Mean);
        assert_close(loss, [0.0], 0.0, "no label");
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
    fn readings_of_the_worked_example() {
        let logits = Tensor::<3>::from_data(LOGITS, &molora_testkit::device());
        let routed = routed(logits, Selection::TopK(2));
        for (loss, expected) in [
            (balance_mass as fn(&_, _) -> _, 4.568968),
            (balance_literal, 4.696422),
        ] {
            let sum: Tensor<1> = loss(&routed, Reduction::Sum);
            assert_close(sum, [expected], FORWARD, "sum");
            let mean = loss(&routed, Reduction::Mean);
            assert_close(mean, [expected / 9.0], FORWARD, "mean over 3 tokens");
        }
    }

    /// `Mass` is `Switch` times `T^2 K / E`, and so is its gradient.
    #[test]
    fn gradient_of_mass_is_that_of_switch_rescaled() {
        let device = molora_testkit::autodiff_device();
        let gradient = |loss: fn(&RouterOutput, Reduction) -> Tensor<1>, reduction| {
            let logits = Tensor::<3>::from_data(LOGITS, &device).require_grad();
            let loss = loss(&routed(logits.clone(), Selection::TopK(2)), reduction);
            logits.grad(&loss.backward()).expect("tracked")
        };
        let switch = gradient(load_balance, Reduction::Mean);
        let mass = gradient(balance_mass, Reduction::Sum);
        assert_close(mass, switch.mul_scalar(4.5), GRADIENT, "d mass / d logits");
    }

    /// With `q = softmax(S)`: `dL/dS_j = q_j (c_j - sum_k c_k q_k)`, and through the softmax over the
    /// selected logits `dL/dl_j = S_j (dL/dS_j - sum_k S_k dL/dS_k)`.
    #[test]
    fn gradient_of_literal_is_analytic() {
        let device = molora_testkit::autodiff_device();
        let logits = Tensor::<3>::from_data(LOGITS, &device).require_grad();
        let routed = routed(logits.clone(), Selection::TopK(2));
        let loss = balance_literal(&routed, Reduction::Sum);
        let gradient = logits.grad(&loss.backward()).expect("tracked");
        let counts = Tensor::<1>::from_data([1.0, 1.0, 1.0, 3.0], &device).reshape([1, 1, 4]);
        let weights = routed.weights.detach();
        let through = |p: Tensor<3>, d: Tensor<3>| {
            let mean = (p.clone() * d.clone()).sum_dim(2);
            p * (d - mean)
        };
        let to_weights = through(softmax(weights.clone(), 2), counts.expand([1, 4, 4]));
        let expected = through(weights, to_weights) * routed.counted.unsqueeze_dim::<3>(2);
        assert_close(gradient, expected, GRADIENT, "d literal / d logits");
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
