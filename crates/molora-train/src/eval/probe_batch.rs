//! What a model computes from a few fixed tokens, by which the same model is known again elsewhere.

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use molora_adapters::task_selector;
use molora_models::{Adaptable, Backbone, DecoderInput, ForwardContext, TaskModel, TextInput};
use molora_routing::Guidance;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::base::sketch::{Sketch, mix};
use crate::data::Split;
use crate::error::{RunProblem, TrainError};
use crate::guide::{Clusters, Guide, Instructions, Place, clusters_of};

/// Lengths of the two rows of each task, so that one has padding.
const LENGTHS: [usize; 2] = [9, 5];
/// Values of an output that are kept as they are, for people.
const SHOWN: usize = 4;
/// More rows, or tokens in one, are those of no probe of molora.
const LIMIT: usize = 4096;

/// Tokens, and what a model computed from them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRecord {
    /// The sequences of the batch.
    pub rows: Vec<ProbeRow>,
    /// What was computed, in the order of the pass.
    pub outputs: Vec<ProbeOutput>,
}

/// A sequence of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRow {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The number of its task; none where the model has no tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<usize>,
}

/// One tensor that was computed, with zeros at padded tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeOutput {
    /// What it is.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its first values.
    pub first: Vec<f32>,
    /// All of its values, to be compared.
    pub sketch: Sketch,
    /// SHA-256 of its bytes as f32 in little-endian order.
    pub sha256: String,
}

/// A model that is probed, and what its routers are told.
pub(crate) struct Probed<'a> {
    pub(crate) model: &'a TaskModel,
    /// Names of its tasks; none for a model without.
    pub(crate) tasks: &'a [String],
    pub(crate) instructions: Option<&'a Instructions>,
    pub(crate) clusters: Option<&'a Clusters>,
}

impl Probed<'_> {
    /// The rows that molora takes, and what the model computes from them.
    ///
    /// # Errors
    /// [`RunProblem::ProbeNotFinite`] names an output with values that are no numbers.
    pub(crate) fn record(&self) -> Result<ProbeRecord, TrainError> {
        let backbone = &self.model.backbone;
        let rows = rows(backbone.vocab_size(), self.tasks.len());
        let outputs = self.outputs(&rows)?;
        Ok(ProbeRecord { rows, outputs })
    }

    /// What the model computes from rows: what every adapted layer adds, what every router decides, the
    /// pooled states, what the heads predict for their own rows, and the next token's scores of a
    /// generative model.
    ///
    /// # Errors
    /// [`RunProblem::ForeignProbe`] for rows that the model cannot read, else as [`record`](Self::record).
    pub(crate) fn outputs(&self, rows: &[ProbeRow]) -> Result<Vec<ProbeOutput>, TrainError> {
        self.check(rows)?;
        // Without gradients all through, so that it computes alike after a training and elsewhere.
        let model = self.model.valid();
        let device = &plain_device(&model);
        let (input, context) = self.inputs(rows, device)?;
        let sites = model.backbone.sites();
        let mut outputs = Vec::new();
        for observation in model.observe(&input, &context) {
            let dims = observation.delta.dims();
            let padding = observation
                .mask
                .lower_elem(0.5)
                .unsqueeze_dim::<3>(2)
                .expand(dims);
            let name = format!("site {}", sites[observation.site].0);
            outputs.push(output(name, observation.delta.mask_fill(padding, 0.0))?);
        }
        let found = model.forward(&input, &context);
        for trace in found.routes {
            let name = match sites.get(trace.site) {
                Some((path, _)) => format!("router of {path}"),
                None => format!("router {}", trace.site),
            };
            let weights = trace.routed.weights;
            let [batch, tokens, experts] = weights.dims();
            // A decision for a whole sequence has no padding.
            let weights = match tokens == input.mask.dims()[1] {
                false => weights,
                true => {
                    let padding = input.mask.clone().bool_not().unsqueeze_dim::<3>(2);
                    weights.mask_fill(padding.expand([batch, tokens, experts]), 0.0)
                }
            };
            outputs.push(output(name, weights)?);
        }
        let pooled = model.pool(found.hidden, &input.mask);
        outputs.push(output("pooled state".into(), pooled.clone())?);
        outputs.extend(self.told(&model, &pooled, rows, device)?);
        let written = found.written.map(|hidden| {
            let [batch, _, width] = hidden.dims();
            molora_models::last_real(hidden, &input.mask).reshape([batch, width])
        });
        if let Some(logits) = written.and_then(|hidden| model.logits(hidden)) {
            outputs.push(output("next token".into(), logits)?);
        }
        Ok(outputs)
    }

    /// What the heads predict for their own rows.
    fn told(
        &self,
        model: &TaskModel,
        pooled: &Tensor<2>,
        rows: &[ProbeRow],
        device: &Device,
    ) -> Result<Vec<ProbeOutput>, TrainError> {
        let mut outputs = Vec::new();
        for (number, head) in model.heads.iter().enumerate() {
            let own = |row: &(usize, &ProbeRow)| row.1.task == Some(number);
            let own: Vec<i64> = rows
                .iter()
                .enumerate()
                .filter(own)
                .map(|row| row.0 as i64)
                .collect();
            if let (Some(head), false) = (head, own.is_empty()) {
                let count = own.len();
                let own = Tensor::<1, Int>::from_data(TensorData::new(own, [count]), device);
                let name = format!("head of {}", self.tasks[number]);
                outputs.push(output(name, head.forward(pooled.clone().select(0, own)))?);
            }
        }
        Ok(outputs)
    }

    /// Refuses rows that would break the pass: a manifest may come from anywhere.
    fn check(&self, rows: &[ProbeRow]) -> Result<(), TrainError> {
        let backbone = &self.model.backbone;
        let longest = backbone.max_tokens().unwrap_or(LIMIT).min(LIMIT);
        let fits = |row: &ProbeRow| {
            let tokens = &row.tokens;
            !tokens.is_empty()
                && tokens.len() <= longest
                && tokens
                    .iter()
                    .all(|&token| (token as usize) < backbone.vocab_size())
                && row.task.is_none_or(|task| task < self.tasks.len())
        };
        match !rows.is_empty() && rows.len() <= LIMIT && rows.iter().all(fits) {
            true => Ok(()),
            false => Err(TrainError::run("probe".as_ref(), RunProblem::ForeignProbe)),
        }
    }

    fn inputs(
        &self,
        rows: &[ProbeRow],
        device: &Device,
    ) -> Result<(TextInput, ForwardContext), TrainError> {
        let width = rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
        let shape = [rows.len(), width];
        let padded = |row: &ProbeRow| {
            let tokens = row.tokens.iter().map(|&token| i64::from(token));
            tokens
                .chain(std::iter::repeat(0))
                .take(width)
                .collect::<Vec<i64>>()
        };
        let ids: Vec<i64> = rows.iter().flat_map(padded).collect();
        let is_real = |row: &ProbeRow| {
            let count = row.tokens.len();
            (0..width).map(move |place| place < count)
        };
        let mask: Vec<bool> = rows.iter().flat_map(is_real).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), device);
        let mask = Tensor::<2, Bool>::from_data(TensorData::new(mask, shape), device);
        let target = matches!(self.model.backbone, Backbone::EncoderDecoder(_));
        let input = TextInput {
            type_ids: Tensor::zeros(shape, device),
            segments: None,
            target: target.then(|| DecoderInput {
                ids: ids.clone(),
                mask: mask.clone(),
                segments: None,
            }),
            ids,
            mask: mask.clone(),
        };
        let tasks: Vec<Option<usize>> = rows.iter().map(|row| row.task).collect();
        let context = ForwardContext {
            tasks: Some(task_selector(&tasks, self.tasks.len().max(1), device)?),
            guidance: self.guidance(&tasks, device),
            ..ForwardContext::new(mask.float())
        };
        Ok((input, context))
    }

    /// What the routers are told: the instruction of a row's task, or one cluster after the other.
    fn guidance(&self, tasks: &[Option<usize>], device: &Device) -> Guidance {
        if let Some(instructions) = self.instructions {
            let tasks: Vec<usize> = tasks.iter().map(|task| task.unwrap_or(0)).collect();
            let guide: Guide = instructions.guide(device);
            return guide.of(&tasks, &[], Split::Test, device);
        }
        let Some(Clusters { clusters, .. }) = self.clusters else {
            return Guidance::default();
        };
        let place = |row: usize| Place {
            cluster: row % clusters,
            similarities: (0..*clusters)
                .map(|other| 1.0 / (1.0 + other.abs_diff(row % clusters) as f32))
                .collect(),
        };
        let places: Vec<Place> = (0..tasks.len()).map(place).collect();
        clusters_of(&places.iter().collect::<Vec<_>>(), *clusters, device)
    }
}

/// Where a model that has no gradients is.
fn plain_device(model: &TaskModel) -> Device {
    let devices = model.backbone.devices();
    let device = devices.into_iter().next();
    device.expect("a model has tensors").without_autodiff()
}

/// Two rows of tokens without a pattern for each task, or for none.
fn rows(vocabulary: usize, tasks: usize) -> Vec<ProbeRow> {
    let tasks: Vec<Option<usize>> = match tasks {
        0 => vec![None],
        count => (0..count).map(Some).collect(),
    };
    let mut drawn = 0;
    let mut token = || {
        drawn += 1;
        (mix(drawn) % vocabulary as u64) as u32
    };
    let rows = tasks
        .iter()
        .flat_map(|task| LENGTHS.map(|length| (*task, length)));
    rows.map(|(task, length)| ProbeRow {
        tokens: (0..length).map(|_| token()).collect(),
        task,
    })
    .collect()
}

fn output<const D: usize>(name: String, values: Tensor<D>) -> Result<ProbeOutput, TrainError> {
    let shape = values.dims().to_vec();
    let values: Vec<f32> = values.into_data().iter::<f32>().collect();
    let mut hash = Sha256::new();
    values
        .iter()
        .for_each(|value| hash.update(value.to_le_bytes()));
    match Sketch::of(values.iter().map(|&value| f64::from(value))) {
        Some(sketch) => Ok(ProbeOutput {
            name,
            shape,
            first: values[..SHOWN.min(values.len())].to_vec(),
            sketch,
            sha256: format!("{:x}", hash.finalize()),
        }),
        None => Err(TrainError::run(
            "probe".as_ref(),
            RunProblem::ProbeNotFinite { output: name },
        )),
    }
}
