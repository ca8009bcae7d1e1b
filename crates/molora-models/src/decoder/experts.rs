//! A feed-forward part of many, of which a router of the base chooses a few for each token: mixture of
//! experts (Shazeer et al., arXiv:1701.06538; Mixtral, arXiv:2401.04088, section 2.1).
//!
//! With probabilities `p = softmax(router(x))` and the K experts of a token that have the largest,
//!
//! ```text
//! y = sum_k p_k / s * FFN_k(x)        s = sum_k p_k, or 1 for families that do not share them out
//! ```
//!
//! Real tokens are sorted by expert, and each expert computes its own tokens alone. To the sites in an
//! expert every token is a row of its own: what they know of a sequence goes with its tokens.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData, activation};

use super::feed_forward::FeedForward;
use super::pass::Pass;
use crate::{ForwardContext, MoLoraLinear};

/// The feed-forward part of a layer.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one in a layer")]
pub(super) enum FeedForwardPart {
    /// One for all tokens.
    Dense(FeedForward),
    /// Several, of which a token has a few.
    Experts(Experts),
}

impl FeedForwardPart {
    /// `[B, T, D]` to `[B, T, D]`.
    pub(super) fn forward(&self, x: Tensor<3>, pass: &mut Pass) -> Tensor<3> {
        match self {
            _ if pass.feeds_apart(matches!(self, Self::Experts(_))) => pass.feed_apart(x),
            Self::Dense(part) => part.forward(x, pass),
            Self::Experts(part) => part.forward(x, pass),
        }
    }
}

/// Experts of the base with their router.
#[derive(Module, Debug)]
pub(super) struct Experts {
    /// Scores the experts, `[D, E]`.
    pub(super) router: MoLoraLinear,
    pub(super) experts: Vec<FeedForward>,
    /// Number K of experts that a token has.
    pub(super) top_k: usize,
    /// Whether their probabilities are made to add up to 1.
    pub(super) shares_out: bool,
}

impl Experts {
    /// `[B, T, D]` to `[B, T, D]`; zeros for padding.
    fn forward(&self, x: Tensor<3>, pass: &mut Pass) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let (count, experts) = (batch * tokens, self.experts.len());
        let logits = pass.apply(&self.router, x.clone());
        let probs_ne = activation::softmax(logits, 2).reshape([count, experts]);
        let plan = Plan::new(&probs_ne, &pass.context.mask, self.top_k);
        if plan.tokens.is_empty() {
            return x.zeros_like();
        }
        let device = x.device();
        let chosen = numbers(&plan.chosen, &device).reshape([count, self.top_k]);
        let mut weights_nk = probs_ne.gather(1, chosen);
        if self.shares_out {
            weights_nk = weights_nk.clone() / weights_nk.sum_dim(1);
        }
        let sorted = numbers(&plan.tokens, &device);
        let sorted_md = x.reshape([count, width]).select(0, sorted);
        let mut outputs = self.each(sorted_md, &plan, tokens, pass);
        // What padding takes.
        outputs.push(Tensor::zeros([1, width], &device));
        let places = numbers(&plan.places, &device);
        let picked_nkd = Tensor::cat(outputs, 0)
            .select(0, places)
            .reshape([count, self.top_k, width]);
        (picked_nkd * weights_nk.unsqueeze_dim::<3>(2))
            .sum_dim(1)
            .reshape([batch, tokens, width])
    }

    /// The outputs of the experts that have tokens, each `[M, D]`, for tokens sorted by expert.
    fn each(
        &self,
        sorted_md: Tensor<2>,
        plan: &Plan,
        tokens: usize,
        pass: &mut Pass,
    ) -> Vec<Tensor<2>> {
        let width = sorted_md.dims()[1];
        let (whole, shared) = (pass.context.clone(), pass.shared.clone());
        let (mut outputs, mut start) = (Vec::new(), 0);
        for (expert, &count) in self.experts.iter().zip(&plan.counts) {
            if count == 0 {
                continue;
            }
            let (before, mut of_rows) = (pass.routes.len(), None);
            if expert.is_adapted() {
                let own = &plan.tokens[start..start + count];
                let rows: Vec<usize> = own.iter().map(|token| token / tokens).collect();
                let device = sorted_md.device();
                let (own, rows) = (numbers(own, &device), numbers(&rows, &device));
                pass.context = of_tokens(&whole, &rows);
                pass.shared = shared.as_ref().map(|shared| shared.of_tokens(&own, &rows));
                of_rows = Some(rows);
            }
            let x = sorted_md.clone().narrow(0, start, count);
            let y = expert.forward(x.reshape([count, 1, width]), pass);
            let routes = pass.routes[before..].iter_mut();
            routes.for_each(|route| route.rows.clone_from(&of_rows));
            outputs.push(y.reshape([count, width]));
            start += count;
        }
        (pass.context, pass.shared) = (whole, shared);
        outputs
    }
}

/// What the sites of an expert read beside their input: every token is a row.
fn of_tokens(whole: &ForwardContext, rows: &Tensor<1, Int>) -> ForwardContext {
    let tasks = whole.tasks.clone();
    ForwardContext {
        mask: Tensor::ones([rows.dims()[0], 1], &rows.device()),
        tasks: tasks.map(|tasks| tasks.select(0, rows.clone())),
        guidance: whole.guidance.of_tokens(rows),
        ..whole.clone()
    }
}

fn numbers(values: &[usize], device: &burn::tensor::Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// Which experts compute which tokens.
struct Plan {
    /// The experts of each of N tokens, likeliest first, `[N * K]`.
    chosen: Vec<usize>,
    /// Real tokens sorted by expert: M numbers, each token K times.
    tokens: Vec<usize>,
    /// How many of those each expert has.
    counts: Vec<usize>,
    /// Where the outputs for each token are among the sorted ones, `[N * K]`; M for padding.
    places: Vec<usize>,
}

impl Plan {
    /// By the probabilities `[N, E]` and the mask of real tokens `[B, T]`. Of equal probabilities the expert
    /// with the smaller number comes first.
    fn new(probs_ne: &Tensor<2>, mask: &Tensor<2>, top_k: usize) -> Self {
        let [count, experts] = probs_ne.dims();
        let probs = probs_ne.to_data().convert::<f32>();
        let probs = probs.try_into_vec::<f32>().expect("just converted");
        let mask = mask.to_data().convert::<f32>();
        let mask = mask.try_into_vec::<f32>().expect("just converted");
        let mut chosen = Vec::with_capacity(count * top_k);
        let mut of_expert = vec![Vec::new(); experts];
        for (token, probs) in probs.chunks(experts).enumerate() {
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]));
            for &expert in &order[..top_k] {
                if mask[token] != 0.0 {
                    of_expert[expert].push(chosen.len());
                }
                chosen.push(expert);
            }
        }
        let sorted = of_expert.concat();
        let mut places = vec![sorted.len(); chosen.len()];
        for (place, &slot) in sorted.iter().enumerate() {
            places[slot] = place;
        }
        Self {
            tokens: sorted.iter().map(|slot| slot / top_k).collect(),
            counts: of_expert.iter().map(Vec::len).collect(),
            chosen,
            places,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_tokens_are_sorted_by_expert() {
        let device = molora_testkit::device();
        let probs = [
            [0.2, 0.5, 0.3],
            [0.6, 0.3, 0.1],
            [0.1, 0.1, 0.8],
            [0.3, 0.4, 0.3],
        ];
        let probs = Tensor::<2>::from_floats(probs, &device);
        let mask = Tensor::<2>::from_floats([[1.0, 1.0], [0.0, 1.0]], &device);
        let plan = Plan::new(&probs, &mask, 2);
        assert_eq!(plan.chosen, [1, 2, 0, 1, 2, 0, 1, 0]);
        assert_eq!(plan.counts, [2, 3, 1]);
        assert_eq!(plan.tokens, [1, 3, 0, 1, 3, 0]);
        assert_eq!(plan.places, [2, 5, 0, 3, 6, 6, 4, 1]);
    }
}
