//! Biases of scores by distance: T5, Raffel et al., arXiv:1910.10683, section 2.1.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};

/// A bias on the scores of each head, learned for classes of distances.
#[derive(Module, Debug)]
pub(crate) struct RelativeBias {
    /// `[classes, heads]`, or more rows of which no more are read.
    pub(crate) table: Param<Tensor<2>>,
    /// Number of classes.
    pub(crate) classes: usize,
    pub(crate) max_distance: usize,
    /// Whether keys behind the query have classes of their own.
    pub(crate) is_two_way: bool,
}

impl RelativeBias {
    /// The bias of so many queries, the first at position `offset`, and keys from position 0:
    /// `[1, H, T, S]`.
    pub(crate) fn forward(&self, queries: usize, offset: usize, keys: usize) -> Tensor<4> {
        let heads = self.table.dims()[1];
        let class = |query: usize, key: usize| {
            let class = bucket(
                key as i64 - query as i64,
                self.classes,
                self.max_distance,
                self.is_two_way,
            );
            class as i64
        };
        let classes: Vec<i64> = (offset..offset + queries)
            .flat_map(|query| (0..keys).map(move |key| class(query, key)))
            .collect();
        let table = self.table.val();
        let classes = TensorData::new(classes, [queries * keys]);
        let classes = Tensor::<1, Int>::from_data(classes, &table.device());
        let bias = table.select(0, classes).transpose();
        bias.reshape([1, heads, queries, keys])
    }
}

/// The class of a key that stands `distance` tokens behind the query.
///
/// Half of the classes are single distances; the others grow geometrically up to `max_distance`.
fn bucket(distance: i64, buckets: usize, max_distance: usize, is_two_way: bool) -> usize {
    let (buckets, first, distance) = match is_two_way {
        true => {
            let half = buckets / 2;
            let first = if distance > 0 { half } else { 0 };
            (half, first, distance.unsigned_abs() as usize)
        }
        // Later keys are hidden from the query anyway.
        false => (buckets, 0, (-distance).max(0) as usize),
    };
    let single = buckets / 2;
    if distance < single {
        return first + distance;
    }
    // In f32, as the reference computes it: a distance may lie on the edge of a class.
    let growth = (distance as f32 / single as f32).ln();
    let whole = (max_distance as f64 / single as f64).ln() as f32;
    let class = single + (growth / whole * (buckets - single) as f32) as usize;
    first + class.min(buckets - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_distances() {
        // 16 classes: 0 to 7 behind (0 to 3 single, then 4, 8, 16 tokens), 8 to 15 ahead.
        let two_way = |distance| bucket(distance, 16, 64, true);
        let expected = [
            (0, 0),
            (-3, 3),
            (-4, 4),
            (-7, 4),
            (-8, 5),
            (-63, 7),
            (-999, 7),
        ];
        for (distance, class) in expected {
            assert_eq!(two_way(distance), class, "{distance}");
            if distance < 0 {
                assert_eq!(two_way(-distance), class + 8, "{}", -distance);
            }
        }
        let one_way = |distance| bucket(distance, 16, 128, false);
        for (distance, class) in [(5, 0), (0, 0), (-7, 7), (-8, 8), (-32, 12), (-128, 15)] {
            assert_eq!(one_way(distance), class, "{distance}");
        }
    }
}
