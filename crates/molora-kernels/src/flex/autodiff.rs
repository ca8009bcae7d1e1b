//! Records the hand-written backward of each operation.
//!
//! What a backward needs is kept in one of two ways: an input through a checkpoint, so that under
//! gradient checkpointing it may be computed again, and a small or frozen tensor as it is.

use std::marker::PhantomData;

use burn::backend::TensorMetadata;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::retro_forward::RetroForward;
use burn::backend::autodiff::checkpoint::state::BackwardStates;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;

use super::{BackwardKernels, FastOps, Rules};
use crate::cross_entropy::Labels;
use crate::dropout::DropMask;

impl<B: BackwardKernels, C: CheckpointStrategy> FastOps for Autodiff<B, C> {
    fn fast_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let again = GeluAgain::<B>(x.node().id(), PhantomData);
        let prepared = Gelu.prepare::<C>([x.node()]).memory_bound();
        match prepared.retro_forward(again).parents([&x]).stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = prepared.checkpoint(&x);
                prepared.finish(state, B::fast_gelu(x.into_primitive()))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::fast_gelu(x.into_primitive())),
        }
    }

    fn fast_gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let again = GeluTanhAgain::<B>(x.node().id(), PhantomData);
        let prepared = GeluTanh.prepare::<C>([x.node()]).memory_bound();
        match prepared.retro_forward(again).parents([&x]).stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = prepared.checkpoint(&x);
                prepared.finish(state, B::fast_gelu_tanh(x.into_primitive()))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::fast_gelu_tanh(x.into_primitive())),
        }
    }

    fn fast_silu_gate(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let again = SiluGateAgain::<B>([gate.node().id(), up.node().id()], PhantomData);
        let prepared = SiluGate
            .prepare::<C>([gate.node(), up.node()])
            .memory_bound();
        let run = |gate: FloatTensor<Self>, up: FloatTensor<Self>| {
            B::fast_silu_gate(gate.into_primitive(), up.into_primitive())
        };
        match prepared
            .retro_forward(again)
            .parents([&gate, &up])
            .stateful()
        {
            OpsKind::Tracked(mut prepared) => {
                let state = [prepared.checkpoint(&gate), prepared.checkpoint(&up)];
                prepared.finish(state, run(gate, up))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(gate, up)),
        }
    }

    fn fast_cross_entropy(logits: FloatTensor<Self>, labels: Labels) -> FloatTensor<Self> {
        let prepared = CrossEntropy.prepare::<C>([logits.node()]).compute_bound();
        match prepared.stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = (prepared.checkpoint(&logits), labels.clone());
                let out = B::fast_cross_entropy(logits.into_primitive(), labels);
                prepared.finish(state, out)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::fast_cross_entropy(logits.into_primitive(), labels))
            }
        }
    }

    fn fast_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node()];
        let run =
            |x: FloatTensor<Self>, weight| B::fast_rms_norm(x.into_primitive(), weight, epsilon);
        match RmsNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let x_id = prepared.checkpoint(&x);
                let weight = weight.into_primitive();
                let out = run(x, weight.clone());
                prepared.finish((x_id, weight, epsilon), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(x, weight.into_primitive())),
        }
    }

    fn fast_dropout(x: FloatTensor<Self>, mask: DropMask) -> FloatTensor<Self> {
        let again = DropoutAgain::<B>(x.node().id(), mask, PhantomData);
        let prepared = Dropout.prepare::<C>([x.node()]).memory_bound();
        match prepared.retro_forward(again).parents([&x]).stateful() {
            OpsKind::Tracked(prepared) => {
                prepared.finish(mask, B::fast_dropout(x.into_primitive(), mask))
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::fast_dropout(x.into_primitive(), mask))
            }
        }
    }

    fn fast_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        match LayerNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let x_id = prepared.checkpoint(&x);
                let (gamma, beta) = (gamma.into_primitive(), beta.into_primitive());
                let out = B::fast_layer_norm(x.into_primitive(), gamma.clone(), beta, epsilon);
                prepared.finish((x_id, gamma, epsilon), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::fast_layer_norm(
                x.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
                epsilon,
            )),
        }
    }

    fn fast_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        rules: Rules,
    ) -> FloatTensor<Self> {
        let inputs = [query, key, value, bias];
        let nodes = inputs.each_ref().map(|input| input.node());
        let run = |inputs: [FloatTensor<Self>; 4], rules: Rules| {
            let [query, key, value, bias] = inputs.map(|input| input.into_primitive());
            B::fast_attention(query, key, value, bias, rules)
        };
        match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let ids = inputs.each_ref().map(|input| prepared.checkpoint(input));
                let out = run(inputs, rules.clone());
                prepared.finish((ids, rules), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(run(inputs, rules)),
        }
    }

    fn fast_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), weight.node(), bias.node()];
        match Linear.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                // A frozen weight needs no `x`, and a constant `x` no weight.
                let x_id = weight.is_tracked().then(|| prepared.checkpoint(&x));
                let weight_kept = x.is_tracked().then(|| weight.primitive().clone());
                let out = B::fast_linear(
                    x.into_primitive(),
                    weight.into_primitive(),
                    bias.into_primitive(),
                );
                prepared.finish((x_id, weight_kept), out)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::fast_linear(
                x.into_primitive(),
                weight.into_primitive(),
                bias.into_primitive(),
            )),
        }
    }
}

#[derive(Debug)]
struct Gelu;

impl<B: BackwardKernels> Backward<B, 1> for Gelu {
    type State = NodeId;

    fn backward(self, ops: Ops<NodeId, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let x: FloatTensor<B> = saved.retrieve_node_output(ops.state);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::fast_gelu_backward(x, grad));
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
struct GeluAgain<B>(NodeId, PhantomData<B>);

impl<B: BackwardKernels> RetroForward for GeluAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.0);
        states.save(out_node, B::fast_gelu(x));
    }
}

#[derive(Debug)]
struct GeluTanh;

impl<B: BackwardKernels> Backward<B, 1> for GeluTanh {
    type State = NodeId;

    fn backward(self, ops: Ops<NodeId, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let x: FloatTensor<B> = saved.retrieve_node_output(ops.state);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::fast_gelu_tanh_backward(x, grad));
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
struct GeluTanhAgain<B>(NodeId, PhantomData<B>);

impl<B: BackwardKernels> RetroForward for GeluTanhAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.0);
        states.save(out_node, B::fast_gelu_tanh(x));
    }
}

#[derive(Debug)]
struct SiluGate;

impl<B: BackwardKernels> Backward<B, 2> for SiluGate {
    /// Gate and up.
    type State = [NodeId; 2];

    fn backward(self, ops: Ops<[NodeId; 2], 2>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [gate, up] = ops
            .state
            .map(|id| saved.retrieve_node_output::<FloatTensor<B>>(id));
        let (to_gate, to_up) = B::fast_silu_gate_backward(gate, up, grad);
        for (node, gradient) in ops.parents.into_iter().zip([to_gate, to_up]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// Computes the output again, which is cheaper than keeping it.
#[derive(Debug)]
struct SiluGateAgain<B>([NodeId; 2], PhantomData<B>);

impl<B: BackwardKernels> RetroForward for SiluGateAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let [gate, up] = self.0.map(|id| states.get_state::<FloatTensor<B>>(&id));
        states.save(out_node, B::fast_silu_gate(gate, up));
    }
}

#[derive(Debug)]
struct CrossEntropy;

impl<B: BackwardKernels> Backward<B, 1> for CrossEntropy {
    type State = (NodeId, Labels);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (logits, labels) = ops.state;
        let logits: FloatTensor<B> = saved.retrieve_node_output(logits);
        if let [Some(node)] = ops.parents {
            let gradient = B::fast_cross_entropy_backward(logits, &labels, grad);
            grads.register::<B>(node.id, gradient);
        }
    }
}

#[derive(Debug)]
struct RmsNorm;

impl<B: BackwardKernels> Backward<B, 2> for RmsNorm {
    /// `x`, the weight and epsilon.
    type State = (NodeId, FloatTensor<B>, f32);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight, epsilon) = ops.state;
        let x: FloatTensor<B> = saved.retrieve_node_output(x);
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = weight_node {
            let to_weight = B::fast_rms_norm_backward_weight(x.clone(), grad.clone(), epsilon);
            grads.register::<B>(node.id, to_weight);
        }
        if let Some(node) = x_node {
            let to_x = B::fast_rms_norm_backward_x(x, weight, grad, epsilon);
            grads.register::<B>(node.id, to_x);
        }
    }
}

#[derive(Debug)]
struct Dropout;

impl<B: BackwardKernels> Backward<B, 1> for Dropout {
    type State = DropMask;

    fn backward(self, ops: Ops<DropMask, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::fast_dropout(grad, ops.state));
        }
    }
}

/// Draws the same mask again.
#[derive(Debug)]
struct DropoutAgain<B>(NodeId, DropMask, PhantomData<B>);

impl<B: BackwardKernels> RetroForward for DropoutAgain<B> {
    fn forward(&self, states: &mut BackwardStates, out_node: NodeId) {
        let x = states.get_state::<FloatTensor<B>>(&self.0);
        states.save(out_node, B::fast_dropout(x, self.1));
    }
}

#[derive(Debug)]
struct LayerNorm;

impl<B: BackwardKernels> Backward<B, 3> for LayerNorm {
    /// `x`, `gamma` and epsilon.
    type State = (NodeId, FloatTensor<B>, f32);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, gamma, epsilon) = ops.state;
        let x: FloatTensor<B> = saved.retrieve_node_output(x);
        let [x_node, gamma_node, beta_node] = ops.parents;
        if gamma_node.is_some() || beta_node.is_some() {
            let (to_gamma, to_beta) =
                B::fast_layer_norm_backward_affine(x.clone(), grad.clone(), epsilon);
            if let Some(node) = gamma_node {
                grads.register::<B>(node.id, to_gamma);
            }
            if let Some(node) = beta_node {
                grads.register::<B>(node.id, to_beta);
            }
        }
        if let Some(node) = x_node {
            grads.register::<B>(
                node.id,
                B::fast_layer_norm_backward_x(x, gamma, grad, epsilon),
            );
        }
    }
}

#[derive(Debug)]
struct Attention;

impl<B: BackwardKernels> Backward<B, 4> for Attention {
    /// Query, key, value and bias, and what may be attended to.
    type State = ([NodeId; 4], Rules);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (ids, rules) = ops.state;
        let inputs = ids.map(|id| saved.retrieve_node_output::<FloatTensor<B>>(id));
        let [query, key, value, bias] = ops.parents;
        if let Some(node) = bias {
            let to_bias = B::fast_attention_backward_bias(inputs.clone(), &rules, grad.clone());
            grads.register::<B>(node.id, to_bias);
        }
        let nodes = [query, key, value];
        if nodes.iter().all(Option::is_none) {
            return;
        }
        let gradients = B::fast_attention_backward(inputs, &rules, grad);
        for (node, gradient) in nodes.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct Linear;

impl<B: BackwardKernels> Backward<B, 3> for Linear {
    /// `x` if the weight is tracked, the weight if `x` is.
    type State = (Option<NodeId>, Option<FloatTensor<B>>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight) = ops.state;
        let [x_node, weight_node, bias_node] = ops.parents;
        if let (Some(node), Some(weight)) = (x_node, weight) {
            grads.register::<B>(node.id, B::fast_linear_backward_x(weight, grad.clone()));
        }
        if let (Some(node), Some(x)) = (weight_node, x) {
            let x = saved.retrieve_node_output::<FloatTensor<B>>(x);
            grads.register::<B>(node.id, B::fast_linear_backward_weight(x, grad.clone()));
        }
        if let Some(node) = bias_node {
            let width = grad.shape()[1];
            let sums = B::float_reshape(B::float_sum_dim(grad, 0), [width].into());
            grads.register::<B>(node.id, sums);
        }
    }
}
