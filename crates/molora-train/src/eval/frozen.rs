//! Pooled states of a model that does not change, for probes.

use burn::tensor::{Device, Tensor, TensorData};
use molora_models::TaskModel;

use super::check_finite;
use crate::TrainError;
use crate::data::{Batch, Example, Split, TokenizedTask, eval_batches};
use crate::guide::Guide;
use crate::model::inputs_for;

/// A model that is not trained, and how it is asked.
pub(crate) struct Frozen<'a> {
    /// The model, without gradients.
    pub(crate) model: &'a TaskModel,
    /// Number of tasks that it was trained on.
    pub(crate) num_tasks: usize,
    /// The task's place in a guide.
    pub(crate) place: usize,
    /// The model's own number of the task, where gates and routers are told it.
    pub(crate) known: Option<usize>,
    /// Rows per pass.
    pub(crate) batch_size: usize,
    pub(crate) device: &'a Device,
}

impl Frozen<'_> {
    /// The pooled states of some examples of a task, `[rows, D]`.
    /// `progress` is called with the number of records done.
    ///
    /// # Errors
    /// [`TrainError::ScoreNotFinite`] for states that are no numbers.
    pub(crate) fn pooled(
        &self,
        (task, split): (&TokenizedTask, Split),
        rows: &[usize],
        guide: Option<&Guide>,
        progress: &mut dyn FnMut(usize) -> Result<(), TrainError>,
    ) -> Result<Tensor<2>, TrainError> {
        let device = self.device;
        let examples: &[Example] = task.split(split);
        let lengths: Vec<usize> = rows.iter().map(|&row| examples[row].ids.len()).collect();
        let width = self.model.backbone.width();
        let mut values = vec![0.0_f32; rows.len() * width];
        for places in eval_batches(&lengths, self.batch_size) {
            let records: Vec<usize> = places.iter().map(|&place| rows[place]).collect();
            let examples: Vec<_> = records.iter().map(|&row| &examples[row]).collect();
            let batch = Batch::from_examples(&examples);
            let guidance =
                guide.map(|guide| guide.of(&vec![self.place; batch.rows], &records, split, device));
            let guidance = guidance.unwrap_or_default();
            let known = vec![self.known; batch.rows];
            let (input, context) =
                inputs_for(&batch, &known, self.num_tasks, None, guidance, device)?;
            let pooled = self.model.encode(&input, &context).0.into_data();
            let pooled: Vec<f32> = pooled.iter::<f32>().collect();
            for (&place, state) in places.iter().zip(pooled.chunks_exact(width)) {
                let numbers = state.iter().map(|&number| f64::from(number));
                check_finite(&task.name, (split, rows[place]), "pooled state", numbers)?;
                values[place * width..][..width].copy_from_slice(state);
            }
            progress(places.len())?;
        }
        Ok(Tensor::from_data(
            TensorData::new(values, [rows.len(), width]),
            device,
        ))
    }
}
