//! Experts that are whole feed-forward parts over the shared frozen weights, mixed behind the
//! non-linearity by one decision. MixLoRA, arXiv:2404.15159.
//!
//! With gate `W1`, up `W3` and down `W2`, and the low-rank deltas `d` of each expert,
//!
//! ```text
//! inner_e = act(W1 x + d1_e(x)) * (W3 x + d3_e(x))        [I], for each expert that is selected
//! y       = W2 sum_e w_e inner_e + b2 sum_e w_e + sum_e w_e d2_e(inner_e)
//! ```
//!
//! which is `sum_e w_e FFN_e(x)`: the frozen products are computed once, whatever the number of experts.
//! A decision for at most K of E experts fills K *slots* for each token, which are rows of a batch K
//! times as large: the only tensors that are larger than a layer's own are `[K * B, T, I]`.

use burn::tensor::{Int, Tensor};
use molora_adapters::Mixing;
use molora_routing::RouterOutput;

use crate::layers::Activation;
use crate::{Adapter, ForwardContext, MoLoraLinear};

/// The linear layers of a feed-forward part: `down(activation(up(x)))`, or
/// `down(activation(gate(x)) * up(x))` with a gate (Shazeer, arXiv:2002.05202). Where `up` has twice as
/// many outputs as `down` has inputs, the first half is the gate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FeedForwardParts<'a> {
    pub(crate) gate: Option<&'a MoLoraLinear>,
    pub(crate) up: &'a MoLoraLinear,
    pub(crate) down: &'a MoLoraLinear,
    pub(crate) activation: Activation,
}

impl FeedForwardParts<'_> {
    /// Number of the first adapted layer among the model's sites.
    pub(crate) fn first_site(&self) -> Option<usize> {
        let linears = self.gate.into_iter().chain([self.up, self.down]);
        let sites = linears.filter_map(|linear| Some(linear.adapter.as_ref()?.site()));
        sites.min()
    }

    /// The part with its linear layers computed by `apply`, `[B, T, D]` to `[B, T, D]`.
    pub(crate) fn compute(
        &self,
        x: Tensor<3>,
        mut apply: impl FnMut(&MoLoraLinear, Tensor<3>) -> Tensor<3>,
    ) -> Tensor<3> {
        let gate = self.gate.map(|gate| apply(gate, x.clone()));
        let up = apply(self.up, x);
        apply(self.down, self.inner(gate, up))
    }

    /// What the down-projection reads.
    fn inner(&self, gate: Option<Tensor<3>>, up: Tensor<3>) -> Tensor<3> {
        let width = self.down.dims().d_input;
        let (gate, up) = match up.dims()[2] == 2 * width {
            true => (
                Some(up.clone().narrow(2, 0, width)),
                up.narrow(2, width, width),
            ),
            false => (gate, up),
        };
        match (gate, self.activation) {
            (Some(gate), Activation::Silu) => molora_kernels::silu_gate(gate, up),
            (Some(gate), activation) => activation.apply(gate) * up,
            (None, activation) => activation.apply(up),
        }
    }

    /// The experts' outputs mixed by a decision for at most `slots` of them, `[B, T, D]` to `[B, T, D]`.
    pub(crate) fn mixed(
        &self,
        x: Tensor<3>,
        routed: &RouterOutput,
        slots: usize,
        context: &ForwardContext,
    ) -> Tensor<3> {
        let slots = Slots::of(routed, slots);
        let gate = self
            .gate
            .map(|gate| gate.in_slots(x.clone(), &slots, context));
        let up = self.up.in_slots(x, &slots, context);
        self.down.mix_slots(self.inner(gate, up), &slots, context)
    }
}

/// Which expert each of K slots of a token holds.
struct Slots {
    count: usize,
    /// 1 for the slot's expert, `[K * B, T', E]`; zeros for a slot that is empty.
    experts: Tensor<3>,
    /// The same times the expert's weight.
    weights: Tensor<3>,
}

impl Slots {
    /// The selected experts in the order of their numbers: `count` is the most that are selected.
    fn of(routed: &RouterOutput, count: usize) -> Self {
        let [batch, decisions, experts] = routed.weights.dims();
        let device = routed.weights.device();
        let shape = [count, batch, decisions, experts];
        let held = match &routed.selected {
            // The number of a selected expert among those that are selected, from 1.
            Some(selected) if !routed.reaches_all => {
                let selected = selected.clone().int();
                let number = selected.clone().cumsum(2) * selected;
                let slot = Tensor::<1, Int>::arange(1..count as i64 + 1, &device);
                let slot = slot.reshape([count, 1, 1, 1]).expand(shape);
                number.unsqueeze::<4>().expand(shape).equal(slot).float()
            }
            _ => Tensor::<2>::eye(experts, &device)
                .reshape([experts, 1, 1, experts])
                .expand(shape),
        };
        let weights = held.clone() * routed.weights.clone().unsqueeze::<4>();
        let rows = [count * batch, decisions, experts];
        Self {
            count,
            experts: held.reshape(rows),
            weights: weights.reshape(rows),
        }
    }

    /// Rows of the batch once for every slot.
    fn repeat<const D: usize>(&self, rows: Tensor<D>) -> Tensor<D> {
        match self.count {
            1 => rows,
            count => rows.repeat_dim(0, count),
        }
    }

    /// The sum over slots of `[K * B, T, F]`, `[B, T, F]`.
    fn sum(&self, rows: Tensor<3>) -> Tensor<3> {
        let [all, tokens, width] = rows.dims();
        let batch = all / self.count;
        rows.reshape([self.count, batch, tokens, width])
            .sum_dim(0)
            .reshape([batch, tokens, width])
    }
}

impl MoLoraLinear {
    /// The output of every slot's expert, `[B, T, D]` to `[K * B, T, O]`.
    fn in_slots(&self, x: Tensor<3>, slots: &Slots, context: &ForwardContext) -> Tensor<3> {
        let base = slots.repeat(self.base(x.clone()));
        let Some(adapter) = &self.adapter else {
            return base;
        };
        let low = slots.repeat(adapter.low(x, context));
        let tasks = context.tasks.clone().map(|tasks| slots.repeat(tasks));
        let mixing = Mixing {
            weights: Some(slots.experts.clone()),
            is_selection: true,
            tasks: tasks.as_ref(),
        };
        adapter.bank.mix(Some(base), low, mixing)
    }

    /// The weighed sum of the outputs of the slots' experts, each of which has an input of its own,
    /// `[K * B, T, D]` to `[B, T, O]`.
    fn mix_slots(&self, x: Tensor<3>, slots: &Slots, context: &ForwardContext) -> Tensor<3> {
        let weights = slots.weights.clone().sum_dim(2);
        // The frozen layer is linear: what is mixed in front of it is mixed behind it.
        let mixed = self
            .weight
            .times(slots.sum(x.clone() * weights.clone()), None);
        let base = match &self.bias {
            Some(bias) => mixed + slots.sum(weights) * bias.val().unsqueeze(),
            None => mixed,
        };
        let Some(adapter) = &self.adapter else {
            return base;
        };
        let low = adapter.low(x, context);
        let tasks = context.tasks.clone().map(|tasks| slots.repeat(tasks));
        let weights = slots.weights.clone();
        adapter.bank.mix_codes(base, low, weights, tasks.as_ref())
    }
}

impl Adapter {
    /// The low-rank code of the site's input, with the dropout of the pass.
    fn low(&self, x: Tensor<3>, context: &ForwardContext) -> Tensor<3> {
        let dropout = context.dropout.map(|seed| seed.index(self.site as u64));
        self.bank.down(x, dropout)
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::{Device, activation::softmax};
    use molora_adapters::{BankConfig, Site, Slices};
    use molora_kernels::random::{Seed, uniform};
    use molora_testkit::{FORWARD, assert_close};

    use super::*;
    use crate::{AdapterSpec, BaseWeight};
    use molora_routing::Weighed;

    const EXPERTS: usize = 3;

    fn draw<const D: usize>(shape: [usize; D], name: &str, device: &Device) -> Tensor<D> {
        uniform(shape, 0.7, Seed::new(3).child(name), device)
    }

    fn linear(
        dims: [usize; 2],
        site: usize,
        slices: Slices,
        has_bias: bool,
        device: &Device,
    ) -> MoLoraLinear {
        let name = format!("{site}");
        let bias = has_bias.then(|| draw([dims[1]], &format!("{name} bias"), device));
        let mut linear = MoLoraLinear::new(BaseWeight::of(draw(dims, &name, device)), bias);
        let spec = AdapterSpec {
            bank: BankConfig {
                num_experts: EXPERTS,
                rank: 2,
                slices,
                ..BankConfig::default()
            },
            ..AdapterSpec::default()
        };
        let seed = Seed::new(1).child(&name);
        let at = Site {
            dims: linear.dims(),
            tasks: 0,
            weight: None,
        };
        let mut adapter = spec.init(at, dims[0], site, seed, device);
        let b = draw([EXPERTS * 2, dims[1]], &format!("{name} b"), device);
        adapter.bank.b = Param::from_tensor(b);
        linear.adapter = Some(adapter);
        linear
    }

    /// The linear layer with one of its experts.
    fn with_expert(linear: &MoLoraLinear, expert: usize) -> MoLoraLinear {
        let mut linear = linear.clone();
        let adapter = linear.adapter.as_mut().expect("made with one");
        adapter.bank = adapter.bank.expert(expert);
        linear
    }

    /// Decisions of two rows of four tokens, of which each selects `k` experts; weights add up to
    /// `sum`.
    fn routed(k: usize, sum: f64, device: &Device) -> RouterOutput {
        let logits = draw([2, 4, EXPERTS], "logits", device);
        let selected = molora_kernels::top_k_mask(logits.clone(), k);
        let weights = softmax(logits.clone(), 2) * selected.clone().float();
        let weights = weights.clone() / weights.sum_dim(2) * sum;
        let weighed = Weighed::new(weights, (k < EXPERTS).then_some(selected));
        RouterOutput::new(logits, weighed, Tensor::ones([2, 4], device))
    }

    #[test]
    fn a_mixture_is_the_weighed_sum_of_whole_feed_forwards() {
        let device = molora_testkit::device();
        let context = ForwardContext::new(Tensor::ones([2, 4], &device));
        let x = draw([2, 4, 5], "x", &device);
        for (slices, is_gated, k, sum) in [
            (Slices::Independent, true, 2, 1.0),
            (Slices::Shared, true, 1, 1.0),
            (Slices::Independent, false, 3, 1.0),
            (Slices::Shared, false, 2, 0.6),
        ] {
            let gate = is_gated.then(|| linear([5, 7], 0, slices, false, &device));
            let up = linear([5, 7], 1, slices, !is_gated, &device);
            let down = linear([7, 5], 2, slices, !is_gated, &device);
            let activation = match is_gated {
                true => Activation::Silu,
                false => Activation::Gelu,
            };
            let parts = FeedForwardParts {
                gate: gate.as_ref(),
                up: &up,
                down: &down,
                activation,
            };
            let routed = routed(k, sum, &device);
            let outputs = (0..EXPERTS).map(|expert| {
                let gate = gate.as_ref().map(|gate| with_expert(gate, expert));
                let parts = FeedForwardParts {
                    gate: gate.as_ref(),
                    up: &with_expert(&up, expert),
                    down: &with_expert(&down, expert),
                    activation,
                };
                let y = parts.compute(x.clone(), |l, x| l.forward(x, &context, None).0);
                y * routed.weights.clone().narrow(2, expert, 1)
            });
            let expected = outputs.reduce(|sum, y| sum + y).expect("three experts");
            let found = parts.mixed(x.clone(), &routed, k, &context);
            let name = format!("{slices:?}, gate {is_gated}, top-{k}");
            assert_close(found, expected, FORWARD, &name);
        }
    }
}
