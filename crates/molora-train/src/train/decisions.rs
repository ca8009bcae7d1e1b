//! Terms about the decisions of a whole batch, where a step has it in several micro-batches.
//!
//! A load balance is no sum over parts of a batch. So all micro-batches are routed once without gradients, and the term
//! of each has its own decisions, with gradients, among those of all others, without: the gradients of the parts then
//! add up to that of the whole. It costs a forward pass more, and only where a recipe has such terms.

use burn::tensor::{Device, Int, Tensor, TensorData};
use molora_models::{ForwardContext, RouteTrace, TaskModel};
use molora_regularize::{LossBreakdown, ObjectiveConfig};
use molora_routing::{RoutedPart, RouterOutput};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::collective::{Collective, CollectiveError};
use crate::model::Auxiliary;

/// What terms about a whole batch read.
pub(super) struct Whole {
    /// These terms.
    pub(super) objective: ObjectiveConfig,
    /// The others, which each micro-batch has for itself.
    pub(super) others: ObjectiveConfig,
    /// Tasks and labels of all rows.
    pub(super) context: ForwardContext,
    /// The decisions of every micro-batch, without gradients, with rows numbered in the whole batch.
    pub(super) decisions: Vec<Vec<RouteTrace>>,
    /// The first row of every micro-batch.
    pub(super) first_rows: Vec<usize>,
}

impl Whole {
    /// The decisions `own` of micro-batch number `index` among those of the others, for the sites in `own`.
    pub(super) fn around(&self, index: usize, own: &[RouteTrace]) -> Vec<RouteTrace> {
        own.iter()
            .map(|route| self.site(index, route.site, own))
            .collect()
    }

    /// The terms, with the gradients of the decisions `own` of micro-batch number `index`.
    pub(super) fn evaluate(
        &self,
        auxiliary: &Auxiliary<'_>,
        model: &TaskModel,
        index: usize,
        own: &[RouteTrace],
    ) -> LossBreakdown {
        let all = self.all(index, own);
        auxiliary.with_views(model, &all, Some(&self.context), |views| {
            self.objective.evaluate(&views)
        })
    }

    /// The same for all sites, among them such as have no decision in `own`.
    pub(super) fn all(&self, index: usize, own: &[RouteTrace]) -> Vec<RouteTrace> {
        let of_others = self.decisions.iter().flatten().map(|route| route.site);
        let mut sites: Vec<usize> = own
            .iter()
            .map(|route| route.site)
            .chain(of_others)
            .collect();
        sites.sort_unstable();
        sites.dedup();
        sites
            .into_iter()
            .map(|site| self.site(index, site, own))
            .collect()
    }

    fn site(&self, index: usize, site: usize, own: &[RouteTrace]) -> RouteTrace {
        let has_gradients = own
            .first()
            .is_some_and(|route| route.routed.logits.is_autodiff());
        let (mut routed, mut rows) = (Vec::new(), Vec::new());
        for (number, decisions) in self.decisions.iter().enumerate() {
            let from = if number == index { own } else { decisions };
            let Some(route) = from.iter().find(|route| route.site == site) else {
                continue;
            };
            let first_row = self.first_rows[number];
            rows.extend(route.rows.clone().map(|rows| match number == index {
                true => rows.add_scalar(first_row as i32),
                false => rows,
            }));
            routed.push(match number != index && has_gradients {
                true => map(route.routed.clone(), Tensor::from_inner),
                false => route.routed.clone(),
            });
        }
        RouteTrace {
            site,
            routed: RouterOutput::cat(routed),
            code: None,
            rows: (!rows.is_empty()).then(|| Tensor::cat(rows, 0)),
        }
    }
}

/// Decisions as they are kept for the terms of other micro-batches: without gradients and codes, with rows numbered from
/// `first_row`.
pub(super) fn kept(routes: Vec<RouteTrace>, first_row: usize) -> Vec<RouteTrace> {
    let keep = |route: RouteTrace| RouteTrace {
        site: route.site,
        routed: map(route.routed, |tensor| match tensor.is_autodiff() {
            true => tensor.inner(),
            false => tensor,
        }),
        code: None,
        rows: route.rows.map(|rows| rows.add_scalar(first_row as i32)),
    };
    routes.into_iter().map(keep).collect()
}

/// The same decisions in other tensors.
fn map(routed: RouterOutput, change: impl Fn(Tensor<3>) -> Tensor<3>) -> RouterOutput {
    let change_flat = |counted: Tensor<2>| change(counted.unsqueeze_dim(2)).squeeze_dim::<2>(2);
    let part = |part: RoutedPart| RoutedPart {
        probs: change(part.probs),
        counted: change_flat(part.counted),
    };
    RouterOutput {
        logits: change(routed.logits),
        probs: change(routed.probs),
        weights: change(routed.weights),
        selected: routed
            .selected
            .map(|selected| change(selected.float()).greater_elem(0.5)),
        counted: change_flat(routed.counted),
        learned: routed.learned.map(&change),
        parts: routed.parts.into_iter().map(part).collect(),
        reaches_all: routed.reaches_all,
    }
}

/// The decisions of all ranks' micro-batches, in order.
///
/// # Errors
/// If the ranks cannot exchange data.
pub(super) fn gathered(
    collective: &dyn Collective,
    own: Vec<Vec<RouteTrace>>,
    device: &Device,
) -> Result<Vec<Vec<RouteTrace>>, TrainError> {
    // Alone nothing leaves the device.
    if collective.world_size() == 1 {
        return Ok(own);
    }
    let mut writer = Writer::default();
    for routes in own {
        let routes: Vec<_> = routes
            .into_iter()
            .map(|route| writer.route(route))
            .collect();
        writer.micro_batches.push(routes);
    }
    let mut all = Vec::new();
    for (rank, bytes) in collective.gather(writer.bytes())?.into_iter().enumerate() {
        let garbled = |problem: String| CollectiveError::Garbled { rank, problem };
        all.extend(read(&bytes, device).map_err(garbled)?);
    }
    Ok(all)
}

/// A decision on its way to other ranks: the shapes of its tensors, whose numbers stand behind all shapes.
#[derive(Serialize, Deserialize)]
struct Sent {
    site: usize,
    rows: Option<Vec<i32>>,
    has_selected: bool,
    has_learned: bool,
    reaches_all: bool,
    shapes: Vec<[usize; 3]>,
}

#[derive(Default)]
struct Writer {
    micro_batches: Vec<Vec<Sent>>,
    numbers: Vec<u8>,
}

impl Writer {
    fn route(&mut self, route: RouteTrace) -> Sent {
        let routed = route.routed;
        let mut sent = Sent {
            site: route.site,
            rows: route.rows.map(|rows| rows.into_data().iter().collect()),
            has_selected: routed.selected.is_some(),
            has_learned: routed.learned.is_some(),
            reaches_all: routed.reaches_all,
            shapes: Vec::new(),
        };
        let counted = |counted: Tensor<2>| counted.unsqueeze_dim::<3>(2);
        let mut tensors = vec![routed.logits, routed.probs, routed.weights];
        tensors.push(counted(routed.counted));
        tensors.extend(routed.selected.map(|selected| selected.float()));
        tensors.extend(routed.learned);
        let parts = routed.parts.into_iter();
        tensors.extend(parts.flat_map(|part| [part.probs, counted(part.counted)]));
        for tensor in tensors {
            sent.shapes.push(tensor.dims());
            let data = tensor.into_data();
            self.numbers
                .extend(data.iter::<f32>().flat_map(f32::to_le_bytes));
        }
        sent
    }

    fn bytes(self) -> Vec<u8> {
        let shapes = serde_json::to_vec(&self.micro_batches).expect("shapes are JSON");
        let mut bytes = (shapes.len() as u64).to_le_bytes().to_vec();
        bytes.extend(shapes);
        bytes.extend(self.numbers);
        bytes
    }
}

/// What a [`Writer`] has written.
fn read(bytes: &[u8], device: &Device) -> Result<Vec<Vec<RouteTrace>>, String> {
    let short = || format!("{} bytes, expected more", bytes.len());
    let (length, rest) = bytes.split_at_checked(8).ok_or_else(short)?;
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
    let (shapes, numbers) = rest.split_at_checked(length).ok_or_else(short)?;
    let sent: Vec<Vec<Sent>> = serde_json::from_slice(shapes).map_err(|error| error.to_string())?;
    let mut numbers = numbers
        .chunks_exact(4)
        .map(|number| f32::from_le_bytes(number.try_into().expect("four bytes")));
    let mut tensor = |shape: [usize; 3]| -> Result<Tensor<3>, String> {
        let count = shape.iter().product();
        let values: Vec<f32> = numbers.by_ref().take(count).collect();
        match values.len() == count {
            true => Ok(Tensor::from_data(TensorData::new(values, shape), device)),
            false => Err(short()),
        }
    };
    let mut route = |sent: Sent| -> Result<RouteTrace, String> {
        let mut shapes = sent.shapes.into_iter();
        let mut next = || tensor(shapes.next().ok_or("a tensor is missing")?);
        let flat = |counted: Tensor<3>| counted.squeeze_dim::<2>(2);
        let [logits, probs, weights] = [next()?, next()?, next()?];
        let counted = flat(next()?);
        let selected = sent.has_selected.then(&mut next).transpose()?;
        let learned = sent.has_learned.then(&mut next).transpose()?;
        let mut parts = Vec::new();
        while let Ok(probs) = next() {
            let counted = flat(next()?);
            parts.push(RoutedPart { probs, counted });
        }
        let rows = |rows: Vec<i32>| {
            let shape = [rows.len()];
            Tensor::<1, Int>::from_data(TensorData::new(rows, shape), device)
        };
        Ok(RouteTrace {
            site: sent.site,
            routed: RouterOutput {
                logits,
                probs,
                weights,
                selected: selected.map(|selected| selected.greater_elem(0.5)),
                counted,
                learned,
                parts,
                reaches_all: sent.reaches_all,
            },
            code: None,
            rows: sent.rows.map(rows),
        })
    };
    let micro_batches = sent.into_iter();
    micro_batches
        .map(|routes| routes.into_iter().map(&mut route).collect())
        .collect()
}
