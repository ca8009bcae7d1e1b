//! Tensors from those of another mixture with other experts, groups or tasks.

use crate::{Axis, PartTensor};

/// Where the entries of some axes come from: for every entry its number in the other tensor, or
/// `None` for one that is new.
#[derive(Debug, Clone, Default)]
pub struct Origins(Vec<(Axis, Vec<Option<usize>>)>);

impl Origins {
    /// The same with one more axis.
    pub fn with(mut self, axis: Axis, places: Vec<Option<usize>>) -> Self {
        self.0.push((axis, places));
        self
    }

    fn of(&self, axis: Axis) -> Option<&[Option<usize>]> {
        let found = self.0.iter().find(|(known, _)| *known == axis);
        found.map(|(_, places)| &places[..])
    }
}

/// Fills tensors with values of those of the same name, bit by bit. Entries that are new keep the
/// value that they have, and so does a tensor that the other list does not have.
///
/// Axes that `origins` does not mention are taken over entry by entry.
///
/// # Panics
/// If sizes disagree with the origins, or, on axes without any, with one another.
pub fn fill(to: Vec<PartTensor<'_>>, from: &[PartTensor<'_>], origins: &Origins) {
    for mut tensor in to {
        let other = from.iter().find(|other| other.name() == tensor.name());
        if let Some(other) = other {
            let values = filled(&tensor, other, origins);
            tensor.set_own_values(values);
        }
    }
}

/// For each value of a tensor, in the order of memory, whether it is new: at an entry of some axis that
/// has no origin.
///
/// # Panics
/// If the size of an axis disagrees with the origins.
pub fn new_values(tensor: &PartTensor<'_>, origins: &Origins) -> Vec<bool> {
    let mut is_new = vec![false];
    for count in tensor.counts() {
        let places = origins.of(count.axis);
        let name = tensor.name();
        if let Some(places) = places {
            assert_eq!(places.len(), count.size, "{name}: {:?}", count.axis);
        }
        let has_none = |entry: usize| places.is_some_and(|places| places[entry].is_none());
        let inner = is_new.iter();
        is_new = inner
            .flat_map(|&outer| (0..count.size).map(move |entry| outer || has_none(entry)))
            .collect();
    }
    is_new
}

fn filled(to: &PartTensor<'_>, from: &PartTensor<'_>, origins: &Origins) -> Vec<f32> {
    let name = to.name();
    let mut values = to.own_values();
    let others = from.own_values();
    let sizes: Vec<usize> = to.counts().iter().map(|count| count.size).collect();
    let other_sizes: Vec<usize> = from.counts().iter().map(|count| count.size).collect();
    assert_eq!(sizes.len(), other_sizes.len(), "{name}: number of axes");
    let maps: Vec<Option<&[Option<usize>]>> = to
        .counts()
        .iter()
        .zip(from.counts())
        .map(|(count, other)| {
            assert_eq!(count.axis, other.axis, "{name}: what is counted");
            let places = origins.of(count.axis);
            match places {
                Some(places) => assert_eq!(places.len(), count.size, "{name}: {:?}", count.axis),
                None => assert_eq!(other.size, count.size, "{name}: {:?}", count.axis),
            }
            places
        })
        .collect();
    let origin = |mut rest: usize| -> Option<usize> {
        let (mut place, mut stride) = (0, 1);
        for ((&size, &other), map) in sizes.iter().zip(&other_sizes).zip(&maps).rev() {
            let index = rest % size;
            rest /= size;
            let index = match map {
                Some(map) => map[index]?,
                None => index,
            };
            place += index * stride;
            stride *= other;
        }
        Some(place)
    };
    for (place, value) in values.iter_mut().enumerate() {
        if let Some(origin) = origin(place) {
            *value = others[origin];
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ParameterKind;
    use burn::module::Param;
    use burn::tensor::{Device, Tensor, TensorData};

    fn matrix(experts: usize, start: usize) -> Param<Tensor<2>> {
        let values: Vec<f32> = (start..start + experts * 4).map(|v| v as f32).collect();
        Param::from_data(
            TensorData::new(values, [experts * 2, 2]),
            &Device::default(),
        )
    }

    /// `[E*R, O]` with R 2, O 2.
    fn up(value: &mut Param<Tensor<2>>, experts: usize) -> PartTensor<'_> {
        let rows = [Axis::Expert.of(experts), Axis::Rank.of(2)];
        let columns = [Axis::Output.of(2)];
        PartTensor::matrix(
            "experts.lora_B",
            ParameterKind::Adapters,
            value,
            &rows,
            &columns,
        )
    }

    #[test]
    fn entries_come_from_their_origins_and_new_ones_stay() {
        let (mut old, mut new) = (matrix(2, 0), matrix(3, 100));
        let origins = Origins::default().with(Axis::Expert, vec![Some(1), None, Some(0)]);
        fill(vec![up(&mut new, 3)], &[up(&mut old, 2)], &origins);
        let values = new.val().into_data().try_to_vec::<f32>().expect("f32");
        let expected = [4, 5, 6, 7, 104, 105, 106, 107, 0, 1, 2, 3];
        assert_eq!(values, expected.map(|value| value as f32));
    }

    #[test]
    fn values_at_an_entry_without_origin_are_new() {
        let mut value = matrix(3, 0);
        let origins = Origins::default().with(Axis::Expert, vec![Some(1), None, Some(0)]);
        let found = new_values(&up(&mut value, 3), &origins);
        let expected = [[false; 4], [true; 4], [false; 4]].concat();
        assert_eq!(found, expected);
        assert_eq!(
            new_values(&up(&mut value, 3), &Origins::default()),
            [false; 12]
        );
    }

    #[test]
    #[should_panic(expected = "experts.lora_B: Expert")]
    fn other_sizes_need_origins() {
        let (mut old, mut new) = (matrix(2, 0), matrix(3, 0));
        fill(
            vec![up(&mut new, 3)],
            &[up(&mut old, 2)],
            &Origins::default(),
        );
    }
}
