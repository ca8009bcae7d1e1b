//! Second moments of what the sites of a mixture read and add.

use std::path::Path;

use burn::tensor::Tensor;
use molora_models::{Adaptable, Adapter, Observation};

use crate::TrainError;
use crate::data::{Batch, Example, Split};
use crate::error::RunProblem;
use crate::guide::Guide;
use crate::model::inputs;
use crate::run::Opened;

/// Records in one forward pass: all sites' inputs are in memory at once.
const ROWS: usize = 16;

/// What the fit of one site needs of the calibration records; it does not grow with their number.
///
/// Deltas lie in the space that the rows of the experts' `B` span: with orthonormal columns `Q`
/// `[O, K]` of that space `y = z Q^T`, and only `z` `[K]` is kept, of a width of at most `E R`.
#[derive(Debug)]
pub(super) struct Moments {
    /// Orthonormal columns `Q`, `[O, K]`.
    pub(super) span: Tensor<2>,
    /// `X^T X`, `[D, D]`.
    pub(super) xx: Tensor<2>,
    /// `X^T Z`, `[D, K]`.
    pub(super) xz: Tensor<2>,
    /// `sum_n |z_n|^2`.
    pub(super) zz: f64,
}

/// The moments of all sites, in their order.
#[derive(Debug)]
pub(super) struct Calibration {
    pub(super) sites: Vec<Moments>,
    /// Number of records.
    pub(super) records: usize,
    /// Number of their real tokens.
    pub(super) tokens: usize,
}

/// Collects moments over records of a split, in equal parts from all tasks and evenly spread over
/// each.
///
/// # Errors
/// A task number out of range, or a site whose inputs or deltas are no numbers; `run` is named.
pub(super) fn moments(
    (run, opened): (&Path, &Opened),
    split: Split,
    samples: usize,
    guide: Option<&Guide>,
) -> Result<Calibration, TrainError> {
    let (tasks, device) = (&opened.loaded.tasks, &opened.loaded.device);
    let sites = opened.model.backbone.sites();
    let mut found = Calibration {
        sites: sites
            .into_iter()
            .map(|(_, site)| Moments::new(site))
            .collect(),
        records: 0,
        tokens: 0,
    };
    let share = samples.div_ceil(tasks.len().max(1));
    for task in tasks {
        let examples = task.split(split);
        for rows in spread(examples.len(), share).chunks(ROWS) {
            let chosen: Vec<&Example> = rows.iter().map(|&row| &examples[row]).collect();
            let batch = Batch::from_examples(&chosen);
            let guidance = guide.map(|guide| guide.of(&batch.task_ids, rows, split, device));
            let guidance = guidance.unwrap_or_default();
            let (input, context) = inputs(&batch, tasks.len(), None, guidance, device)?;
            for observation in opened.model.observe(&input, &context) {
                found.sites[observation.site].add(&observation);
            }
            found.records += rows.len();
            found.tokens += batch.num_tokens();
        }
    }
    let sites = opened.model.backbone.sites();
    let mut sites = sites.into_iter().zip(&found.sites);
    match sites.find(|(_, moments)| !moments.is_finite()) {
        None => Ok(found),
        Some(((site, _), _)) => Err(TrainError::Run {
            path: run.into(),
            problem: RunProblem::SiteNotFinite { site },
        }),
    }
}

/// At most `wanted` numbers below `count`, evenly spread.
fn spread(count: usize, wanted: usize) -> Vec<usize> {
    let wanted = wanted.min(count);
    (0..wanted).map(|index| index * count / wanted).collect()
}

impl Moments {
    fn new(site: &Adapter) -> Self {
        let b = site.bank.b.val().detach();
        let (span, _) = molora_adapters::qr(b.transpose());
        let ([_, kept], d_input) = (span.dims(), site.bank.a.dims()[0]);
        let device = span.device();
        Self {
            span,
            xx: Tensor::zeros([d_input, d_input], &device),
            xz: Tensor::zeros([d_input, kept], &device),
            zz: 0.0,
        }
    }

    /// Whether all sums are numbers.
    fn is_finite(&self) -> bool {
        let sum = self.xx.clone().abs().sum() + self.xz.clone().abs().sum();
        self.zz.is_finite() && sum.into_scalar::<f32>().is_finite()
    }

    fn add(&mut self, observation: &Observation) {
        let x = real_rows(observation.input.clone(), &observation.mask);
        let z = real_rows(observation.delta.clone(), &observation.mask).matmul(self.span.clone());
        let xt = x.clone().transpose();
        self.xx = self.xx.clone() + xt.clone().matmul(x);
        self.xz = self.xz.clone() + xt.matmul(z.clone());
        self.zz += z.square().sum().into_scalar::<f64>();
    }
}

/// `[B, T, D]` as rows `[B * T, D]`, zeros where there is padding, which may hold anything.
fn real_rows(values: Tensor<3>, mask: &Tensor<2>) -> Tensor<2> {
    let [batch, tokens, width] = values.dims();
    let padding = mask.clone().lower_elem(0.5).unsqueeze_dim::<3>(2);
    let padding = padding.expand([batch, tokens, width]);
    values
        .mask_fill(padding, 0.0)
        .reshape([batch * tokens, width])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_spread_evenly() {
        assert_eq!(spread(10, 4), [0, 2, 5, 7]);
        assert_eq!(spread(3, 8), [0, 1, 2]);
        assert!(spread(0, 4).is_empty());
    }

    #[test]
    fn padding_does_not_count() {
        let device = molora_testkit::device();
        let values = Tensor::from_data([[[1.0, 2.0], [f32::NAN, 3.0]]], &device);
        let mask = Tensor::from_data([[1.0, 0.0]], &device);
        let expected = [[1.0, 2.0], [0.0, 0.0]];
        molora_testkit::assert_close(real_rows(values, &mask), expected, 0.0, "rows");
    }
}
