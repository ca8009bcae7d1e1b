//! From a batch to what a model reads.

use burn::tensor::Device;
use molora_adapters::task_selector;
use molora_kernels::random::Seed;
use molora_models::{DecoderInput, ForwardContext, TextInput};
use molora_routing::Guidance;

use crate::TrainError;
use crate::data::Batch;

/// The tensors of a batch that a model reads, and the context of the pass.
///
/// # Errors
/// A task number out of range.
pub fn inputs(
    batch: &Batch,
    num_tasks: usize,
    dropout: Option<Seed>,
    guidance: Guidance,
    device: &Device,
) -> Result<(TextInput, ForwardContext), TrainError> {
    let tasks: Vec<_> = batch.task_ids.iter().copied().map(Some).collect();
    inputs_for(batch, &tasks, num_tasks, dropout, guidance, device)
}

/// [`inputs`] where `tasks` says the task of each row, `None` for one that the model never saw; each
/// row is treated for itself, whatever the others are.
///
/// # Errors
/// A task number out of range.
pub fn inputs_for(
    batch: &Batch,
    tasks: &[Option<usize>],
    num_tasks: usize,
    dropout: Option<Seed>,
    mut guidance: Guidance,
    device: &Device,
) -> Result<(TextInput, ForwardContext), TrainError> {
    guidance.prompt = batch.prompt(device);
    let tasks = task_selector(tasks, num_tasks, device)?;
    let mask = batch.mask(device);
    let context = ForwardContext {
        tasks: Some(tasks),
        dropout,
        guidance,
        ..ForwardContext::new(mask.clone().float())
    };
    let input = TextInput {
        ids: batch.input_ids(device),
        type_ids: batch.type_ids(device),
        mask,
        segments: batch.segments(device),
        target: batch.target_ids(device).map(|(ids, mask)| DecoderInput {
            ids,
            mask,
            segments: None,
        }),
    };
    Ok((input, context))
}
