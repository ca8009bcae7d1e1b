//! The gradients of a step with one layer's activations at a time.
//!
//! A first pass without gradients keeps the input of every layer and nothing else. From the last
//! layer to the first, each is computed again from its input, now with gradients, and the gradient
//! of its output is carried on to its input, and at last to the embeddings, if they train. Dropout
//! masks are drawn from keys, so that they are the same again. Gradients are those of the whole pass;
//! one forward pass more is what it costs.

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Gradients, Tensor};
use molora_models::{ForwardContext, RouteTrace, TaskModel, TextInput};
use molora_regularize::{LossBreakdown, ObjectiveConfig, Shown};

use super::decisions::Whole;
use crate::data::Batch;
use crate::model::{Auxiliary, sum_of, task_losses};

/// The loss of each task summed over its examples, the auxiliary terms, and what was decided.
pub(crate) type Measured = (
    Vec<(usize, Tensor<1>)>,
    Option<LossBreakdown>,
    Vec<RouteTrace>,
);

/// The part of a micro-batch in its step, and how its losses are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MicroBatchShare<'a> {
    /// Number of the micro-batch.
    pub(crate) index: usize,
    /// Examples of the whole batch, by which task losses are divided.
    pub(crate) examples: f64,
    /// The micro-batch's share of the tokens, with which auxiliary terms count.
    pub(crate) tokens: f64,
    /// What the loss of each task is multiplied by, by task number; none where all count alike.
    pub(crate) weights: &'a [f64],
    /// Smoothing of the labels.
    pub(crate) smoothing: f64,
}

/// Adds the gradients of a micro-batch to `accumulator`.
pub(super) fn backward(
    model: &TaskModel,
    batch: &Batch,
    (input, context): (&TextInput, &ForwardContext),
    (auxiliary, whole): (&Auxiliary<'_>, Option<&Whole>),
    part: MicroBatchShare<'_>,
    accumulator: &mut GradientsAccumulator<TaskModel>,
) -> Measured {
    let inner = model.valid();
    let (mut hidden, mut state) = inner.begin(input, context);
    let (mut inputs, mut routes) = (Vec::new(), Vec::new());
    for index in 0..inner.num_blocks().unwrap_or(0) {
        inputs.push((hidden.clone(), state.clone()));
        let (next, decided) = inner.block(index, hidden, &mut state);
        hidden = next;
        routes.extend(decided);
    }
    let mut found = auxiliary.evaluate(&inner, &routes, context);
    let routed = auxiliary.objective.map(|objective| objective.part(true));
    let shown = routed.as_ref().map(|routed| {
        auxiliary.with_views(&inner, &routes, Some(context), |views| routed.shown(&views))
    });

    let about = whole.map(|whole| {
        let of_whole = whole.evaluate(auxiliary, &inner, part.index, &routes);
        let terms = found.get_or_insert_default();
        terms.terms.extend(of_whole.terms);
        let all = whole.all(part.index, &routes);
        let shown = auxiliary.with_views(&inner, &all, Some(&whole.context), |views| {
            whole.objective.shown(&views)
        });
        (whole, shown)
    });

    let top = leaf(hidden);
    let end = model.end(top.clone());
    let tasks = task_losses(model, input, end, batch, part.smoothing);
    let mut total = sum_of(&tasks, part.examples, part.weights, &top.device());
    if let Some(extra) = auxiliary.of_weights(model) {
        total = total + extra.mul_scalar(part.tokens);
    }
    let mut gradient = carry(total.backward(), &top, model, accumulator);
    for (index, (hidden, mut state)) in inputs.into_iter().enumerate().rev() {
        let hidden = leaf(hidden);
        let (output, routes) = model.block(index, hidden.clone(), &mut state);
        let mut total = (output * Tensor::from_inner(gradient)).sum();
        let own = routed
            .as_ref()
            .zip(shown.as_ref())
            .and_then(|(routed, shown)| {
                share_of(routed, shown, auxiliary, model, &routes, context)
            });
        if let Some(own) = own {
            total = total + own.mul_scalar(part.tokens);
        }
        let of_whole = about.as_ref().and_then(|(whole, shown)| {
            let around = whole.around(part.index, &routes);
            share_of(
                &whole.objective,
                shown,
                auxiliary,
                model,
                &around,
                &whole.context,
            )
        });
        if let Some(own) = of_whole {
            total = total + own;
        }
        gradient = carry(total.backward(), &hidden, model, accumulator);
    }
    if model.trains_embeddings() {
        let (hidden, _) = model.begin(input, context);
        let total = (hidden * Tensor::from_inner(gradient)).sum();
        let gradients = GradientsParams::from_grads(total.backward(), model);
        accumulator.accumulate(model, gradients);
    }
    (tasks, found, routes)
}

fn share_of(
    routed: &ObjectiveConfig,
    shown: &[Shown],
    auxiliary: &Auxiliary<'_>,
    model: &TaskModel,
    routes: &[RouteTrace],
    context: &ForwardContext,
) -> Option<Tensor<1>> {
    auxiliary.with_views(model, routes, Some(context), |views| {
        let own: Vec<_> = views
            .into_iter()
            .filter(|view| view.routed.is_some())
            .collect();
        routed.share(&own, shown)
    })
}

/// A tensor of its own that gradients lead to.
fn leaf(tensor: Tensor<3>) -> Tensor<3> {
    tensor.detach().require_grad()
}

/// Keeps the gradients of parameters, and returns that of `input`.
fn carry(
    mut gradients: Gradients,
    input: &Tensor<3>,
    model: &TaskModel,
    accumulator: &mut GradientsAccumulator<TaskModel>,
) -> Tensor<3> {
    let gradient = input
        .grad_remove(&mut gradients)
        .expect("the loss is made of it");
    accumulator.accumulate(model, GradientsParams::from_grads(gradients, model));
    gradient
}
