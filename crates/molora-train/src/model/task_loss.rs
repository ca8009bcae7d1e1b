//! Losses of tasks: of the output of a head, or of the log-probability of the right tokens.

use burn::tensor::{Device, Int, Tensor, TensorData};
use molora_models::{TaskModel, TextInput, TextOutput};

use crate::data::{AnswerToken, Batch, Target};

/// Rows of logits at a time: they are as wide as the vocabulary.
const LOGIT_ROWS: usize = 512;

/// The loss of each task in a batch summed over its examples, `[1]`, by task number.
///
/// Of a class it is the cross-entropy of the head's logits, of a number the squared error, of a text
/// the mean of `-log p(token)` over the tokens of its answers, or their sum by the batch's own weight.
/// `smoothing` is that of labels, of classes and of tokens.
pub(crate) fn task_losses(
    model: &TaskModel,
    input: &TextInput,
    output: TextOutput,
    batch: &Batch,
    smoothing: f64,
) -> Vec<(usize, Tensor<1>)> {
    let mut losses = Vec::new();
    let answers = batch.answers();
    if !answers.is_empty() {
        let written = output.written.expect("a model that writes");
        losses = written_losses(model, written, batch, &answers, smoothing);
    }
    let told: Vec<_> = batch
        .rows_by_task()
        .into_iter()
        .filter(|(_, rows)| is_told(&batch.targets[rows[0]]))
        .collect();
    if told.is_empty() {
        return losses;
    }
    let pooled = model.pool(output.hidden, &input.mask);
    for (task, rows) in told {
        let of_task = match rows.len() == batch.rows {
            true => pooled.clone(),
            false => pooled.clone().select(0, places(&rows, &pooled.device())),
        };
        let of_task = told_losses(model, task, of_task, batch, &rows, smoothing);
        losses.push((task, of_task.sum()));
    }
    losses
}

/// Whether a head predicts the answer.
fn is_told(target: &Target) -> bool {
    matches!(target, Target::Class(_) | Target::Number(_))
}

/// The losses of a task's head on the pooled states of its rows, `[N]`.
fn told_losses(
    model: &TaskModel,
    task: usize,
    pooled: Tensor<2>,
    batch: &Batch,
    rows: &[usize],
    smoothing: f64,
) -> Tensor<1> {
    let device = pooled.device();
    let head = model.heads[task]
        .as_ref()
        .expect("a task without text has a head");
    let logits = head.forward(pooled);
    let numbers: Vec<f32> = rows
        .iter()
        .filter_map(|&row| match batch.targets[row] {
            Target::Number(number) => Some(number as f32),
            _ => None,
        })
        .collect();
    if numbers.len() == rows.len() {
        let targets = TensorData::new(numbers, [rows.len(), 1]);
        let error = logits - Tensor::<2>::from_data(targets, &device);
        return error.square().reshape([rows.len()]);
    }
    let classes: Vec<usize> = rows
        .iter()
        .filter_map(|&row| match batch.targets[row] {
            Target::Class(class) => Some(class),
            _ => None,
        })
        .collect();
    molora_kernels::smoothed_cross_entropy(logits, places(&classes, &device), smoothing)
}

/// The loss of each row of a batch of one task `[B]`, as [`task_losses`] sums them up without smoothing.
pub(crate) fn row_losses(
    model: &TaskModel,
    input: &TextInput,
    output: TextOutput,
    batch: &Batch,
) -> Tensor<1> {
    let answers = batch.answers();
    if answers.is_empty() {
        let pooled = model.pool(output.hidden, &input.mask);
        let rows: Vec<usize> = (0..batch.rows).collect();
        return told_losses(model, batch.task_ids[0], pooled, batch, &rows, 0.0);
    }
    let written = output.written.expect("a model that writes");
    let device = written.device();
    let losses = token_losses(model, written, &answers, 0.0);
    // A row for each text with the shares of its tokens.
    let mut shares = vec![0.0; batch.rows * answers.len()];
    for (place, answer) in answers.iter().enumerate() {
        shares[answer.row * answers.len() + place] = answer.weight;
    }
    let shares = TensorData::new(shares, [batch.rows, answers.len()]);
    let shares = Tensor::<2>::from_data(shares, &device);
    shares.matmul(losses.unsqueeze_dim(1)).squeeze_dim(1)
}

/// The losses of tasks with generated answers, from the states `[B, S, D]` that predict them.
fn written_losses(
    model: &TaskModel,
    written: Tensor<3>,
    batch: &Batch,
    answers: &[AnswerToken],
    smoothing: f64,
) -> Vec<(usize, Tensor<1>)> {
    let device = written.device();
    let losses = token_losses(model, written, answers, smoothing);
    let weights: Vec<f32> = answers.iter().map(|answer| answer.weight).collect();
    let weights = TensorData::new(weights, [answers.len()]);
    let losses = losses * Tensor::<1>::from_data(weights, &device);
    let mut by_task = std::collections::BTreeMap::<usize, Vec<usize>>::new();
    for (place, answer) in answers.iter().enumerate() {
        let task = batch.task_ids[answer.row];
        by_task.entry(task).or_default().push(place);
    }
    let is_single = by_task.len() == 1;
    let sum = |(task, tokens): (usize, Vec<usize>)| match is_single {
        true => (task, losses.clone().sum()),
        false => (
            task,
            losses.clone().select(0, places(&tokens, &device)).sum(),
        ),
    };
    by_task.into_iter().map(sum).collect()
}

/// `-log p(token)` of each answer token, `[N]`, or its cross-entropy with a smoothed label. The head is
/// computed at target positions only, and some of them at a time. Of a frozen head, no logits are kept for the backward.
pub(crate) fn token_losses(
    model: &TaskModel,
    written: Tensor<3>,
    answers: &[AnswerToken],
    smoothing: f64,
) -> Tensor<1> {
    let ([batch, tokens, width], device) = (written.dims(), written.device());
    let hidden = written.reshape([batch * tokens, width]);
    let is_at_once = hidden.is_autodiff() && !model.trains_head();
    let losses = answers.chunks(LOGIT_ROWS).map(|answers| {
        let rows: Vec<usize> = answers
            .iter()
            .map(|answer| answer.row * tokens + answer.place)
            .collect();
        let hidden = hidden.clone().select(0, places(&rows, &device));
        let targets: Vec<usize> = answers.iter().map(|answer| answer.token as usize).collect();
        let losses = |hidden| {
            let logits = model.logits(hidden).expect("a model that writes");
            molora_kernels::smoothed_cross_entropy(logits, places(&targets, &device), smoothing)
        };
        match is_at_once {
            true => with_slopes(hidden, losses),
            false => losses(hidden),
        }
    });
    Tensor::cat(losses.collect(), 0)
}

/// The losses `[N]` of rows `[N, D]`, each of its own row and of nothing else that trains, with their gradients taken
/// here and now: the backward multiplies these by what comes from above, and what `losses` computes is not kept for it.
fn with_slopes(rows: Tensor<2>, losses: impl FnOnce(Tensor<2>) -> Tensor<1>) -> Tensor<1> {
    let leaf = rows.clone().detach().require_grad();
    let values = losses(leaf.clone());
    let mut gradients = values.clone().sum().backward();
    let slopes = leaf.grad_remove(&mut gradients);
    let slopes = Tensor::from_inner(slopes.expect("the losses are of the rows"));
    // A straight line through the values with the slopes: what is added to the values is zero.
    let line = (rows * slopes).sum_dim(1).squeeze_dim(1);
    values.detach() + (line.clone() - line.detach())
}

fn places(values: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}

#[cfg(test)]
mod tests {
    use molora_testkit::{assert_close, autodiff_device};

    use super::*;

    #[test]
    fn losses_with_slopes_have_the_values_and_gradients_of_the_losses() {
        let device = autodiff_device();
        let rows = [[0.5, -1.0], [2.0, 0.25], [-0.125, 1.0]];
        let table = [[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]];
        let table = Tensor::<2>::from_floats(table, &device);
        let losses = |rows: Tensor<2>| {
            let targets = places(&[2, 0, 1], &rows.device());
            molora_kernels::smoothed_cross_entropy(rows.matmul(table.clone()), targets, 0.1)
        };
        let from_above = Tensor::<1>::from_floats([1.0, -2.0, 0.5], &device);
        let evaluate = |run: &dyn Fn(Tensor<2>) -> Tensor<1>| {
            let rows = Tensor::<2>::from_floats(rows, &device).require_grad();
            let values = run(rows.clone() * 2.0);
            let gradients = (values.clone() * from_above.clone()).sum().backward();
            (values, rows.grad(&gradients).expect("rows train"))
        };
        let (expected, expected_gradient) = evaluate(&losses);
        let (values, gradient) = evaluate(&|rows| with_slopes(rows, losses));
        values.into_data().assert_eq(&expected.into_data(), true);
        assert_close(gradient, expected_gradient, 1e-6, "gradient");
    }
}
