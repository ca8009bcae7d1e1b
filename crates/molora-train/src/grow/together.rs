//! A mixture that was trained together, with one more task.

use burn::tensor::Device;
use molora_models::{Adaptable, AdapterSpec, TaskHead, TaskModel};
use molora_parts::{Axis, ParameterKind, PartTensor, fill, new_values};
use molora_routing::Router;

use super::plan::Origins;
use crate::model::NewValues;

/// Fills a fresh mixture with everything of an old one that has a task less, bit by bit; what is new keeps its
/// start, and is returned. Parameters keep their numbers.
pub(super) fn widen(
    mixture: &mut TaskModel,
    old: &TaskModel,
    spec: &AdapterSpec,
    origins: &Origins,
    device: &Device,
) -> NewValues {
    let mut old = old.clone();
    let mut wider = Wider {
        has_general: spec.general.is_some(),
        groups: &origins.groups,
        new: NewValues::none(device),
    };
    let (new, old_model) = (&mut mixture.backbone, &mut old.backbone);
    for ((_, to), (_, from)) in new.sites_mut().into_iter().zip(old_model.sites_mut()) {
        wider.take(to.tensors(), &from.tensors());
    }
    let layers = new.layer_routers_mut().into_iter();
    for ((_, to), (_, from)) in layers.zip(old_model.layer_routers_mut()) {
        wider.take(to.router.tensors(), &from.router.tensors());
    }
    let pooled = new.pooled_mut().into_iter();
    for ((_, to), (_, from)) in pooled.zip(old_model.pooled_mut()) {
        let from: Vec<_> = from.router.iter_mut().flat_map(Router::tensors).collect();
        let to = to.router.iter_mut().flat_map(Router::tensors);
        wider.take(to.collect(), &from);
    }
    if let (Some(to), Some(from)) = (new.part_mut(), old_model.part_mut()) {
        for ((_, to), (_, from)) in to.tensors().into_iter().zip(from.tensors()) {
            wider.take(to, &from);
        }
    }
    let last = mixture.heads.len() - 1;
    mixture.heads[..last].clone_from_slice(&old.heads);
    for tensor in mixture.heads[last].iter_mut().flat_map(TaskHead::tensors) {
        wider.new.add(&tensor, &vec![true; tensor.values().len()]);
    }
    wider.new
}

struct Wider<'a> {
    has_general: bool,
    groups: &'a [Option<usize>],
    new: NewValues,
}

impl Wider<'_> {
    /// Takes the values of old tensors over, and notes which ones of the others are new.
    fn take(&mut self, to: Vec<PartTensor<'_>>, from: &[PartTensor<'_>]) {
        for tensor in to {
            let Some(old) = from.iter().find(|old| old.name() == tensor.name()) else {
                continue;
            };
            let origins = self.origins(&tensor, old);
            self.new.add(&tensor, &new_values(&tensor, &origins));
            fill(vec![tensor], std::slice::from_ref(old), &origins);
        }
    }

    /// A new expert is behind the others, but in front of a general one, which is not routed; a new task is the last.
    fn origins(&self, to: &PartTensor<'_>, from: &PartTensor<'_>) -> molora_parts::Origins {
        let mut origins = molora_parts::Origins::default();
        for (count, old) in to.counts().iter().zip(from.counts()) {
            let is_general = self.has_general && to.kind() == ParameterKind::Adapters;
            let places = match count.axis {
                Axis::Expert => one_more(old.size, count.size, usize::from(is_general)),
                Axis::Task => one_more(old.size, count.size, 0),
                Axis::Group if !self.groups.is_empty() => self.groups.to_vec(),
                _ => continue,
            };
            origins = origins.with(count.axis, places);
        }
        origins
    }
}

/// The origins of `new` entries, where those that `old` have not are in front of the `last` ones.
fn one_more(old: usize, new: usize, last: usize) -> Vec<Option<usize>> {
    let added = std::iter::repeat_n(None, new - old);
    let first = (0..old - last).map(Some);
    first
        .chain(added)
        .chain((old - last..old).map(Some))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::one_more;

    #[test]
    fn a_general_expert_stays_the_last() {
        assert_eq!(one_more(2, 3, 0), [Some(0), Some(1), None]);
        assert_eq!(one_more(3, 4, 1), [Some(0), Some(1), None, Some(2)]);
        assert_eq!(one_more(1, 1, 0), [Some(0)]);
    }
}
