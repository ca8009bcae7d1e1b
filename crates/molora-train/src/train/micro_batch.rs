//! What was found in the micro-batches of a step, and how the ranks of a run get all of it.

use std::collections::BTreeMap;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use molora_models::TaskModel;
use serde::{Deserialize, Serialize};

use super::balance::{SelectionCounts, plain};
use super::watch::Watch;
use crate::TrainError;
use crate::collective::{self, Collective, CollectiveError, TreeSum};

/// A number of the step that is still on the device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Name {
    Task(usize),
    Term(String),
    GradientNorm,
}

/// A number, its share in the step's, and its tensor `[1]`.
pub(super) type Measured = (Name, f64, Tensor<1>);

/// What was found in a micro-batch beside its gradients.
pub(super) struct MicroBatch {
    pub(super) measured: Vec<Measured>,
    pub(super) choices: SelectionCounts,
    pub(super) watch: Watch,
}

/// The same on its way to other ranks, with numbers as bits: JSON has none for NaN.
#[derive(Debug, Serialize, Deserialize)]
struct Sent {
    measured: Vec<(Name, f64, u32)>,
    choices: BTreeMap<usize, (Vec<u32>, Vec<u32>)>,
    watch: BTreeMap<usize, Vec<u32>>,
}

/// The sum of all gradients, and what was found in all micro-batches in their order.
///
/// `device` is that of the model, without autodiff.
///
/// # Errors
/// If the ranks cannot exchange data.
pub(super) fn gathered(
    collective: &dyn Collective,
    model: &TaskModel,
    sum: TreeSum<GradientsParams>,
    own: Vec<MicroBatch>,
    device: &Device,
) -> Result<(GradientsParams, Vec<MicroBatch>), TrainError> {
    // Alone nothing leaves the device.
    if collective.world_size() == 1 {
        let (gradients, _) = collective::summed(collective, model, sum, &[])?;
        return Ok((gradients, own));
    }
    let sent: Vec<Sent> = own.into_iter().map(Sent::of).collect();
    let note = serde_json::to_vec(&sent).expect("numbers are JSON");
    let (gradients, notes) = collective::summed(collective, model, sum, &note)?;
    let mut all = Vec::new();
    for (rank, note) in notes.into_iter().enumerate() {
        let found: Result<Vec<Sent>, _> = serde_json::from_slice(&note);
        let found = found.map_err(|error| CollectiveError::Garbled {
            rank,
            problem: error.to_string(),
        })?;
        all.extend(found.into_iter().map(|sent| sent.on(device)));
    }
    Ok((gradients, all))
}

impl Sent {
    fn of(micro: MicroBatch) -> Self {
        let measured = micro.measured.into_iter();
        let choices = micro.choices.0.into_iter();
        let watch = micro.watch.sums.into_iter();
        Self {
            measured: measured
                .map(|(name, share, value)| (name, share, host(value)[0]))
                .collect(),
            choices: choices
                .map(|(site, (counts, decisions))| (site, (host(counts), host(decisions))))
                .collect(),
            watch: watch.map(|(site, sums)| (site, host(sums))).collect(),
        }
    }

    fn on(self, device: &Device) -> MicroBatch {
        let tensor = |bits: Vec<u32>| {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let shape = [values.len()];
            Tensor::<1>::from_data(TensorData::new(values, shape), device)
        };
        let choices = self.choices.into_iter();
        let watch = self.watch.into_iter();
        let measured = self.measured.into_iter();
        MicroBatch {
            measured: measured
                .map(|(name, share, value)| (name, share, tensor(vec![value])))
                .collect(),
            choices: SelectionCounts(
                choices
                    .map(|(site, (counts, all))| (site, (tensor(counts), tensor(all))))
                    .collect(),
            ),
            watch: Watch {
                sums: watch.map(|(site, sums)| (site, tensor(sums))).collect(),
                gradients: None,
            },
        }
    }
}

fn host(tensor: Tensor<1>) -> Vec<u32> {
    let values = plain(tensor).into_data();
    values.iter::<f32>().map(f32::to_bits).collect()
}
