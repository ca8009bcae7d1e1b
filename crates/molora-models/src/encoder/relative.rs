//! Contents and relative positions that attend to each other: He et al., DeBERTa, arXiv:2006.03654,
//! section 3.1.
//!
//! With `d(i, j)` the class of the distance from key j to query i, and a table P of positions,
//!
//! ```text
//! Kr = P W_k, Qr = P W_q
//! score(i, j) = (q_i k_j + q_i Kr[d(i, j)] + k_j Qr[d(i, j)]) / sqrt(3 W)      eq. 4
//! ```
//!
//! A model may leave out either of the last two terms; the 3 is the number of terms.
//!
//! Products are taken with one row for each of the 2T - 1 distances in a text of T tokens, in their
//! order, and then shifted, so that nothing is gathered for each pair of tokens.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};

use crate::LayerNorm;

/// Which scores there are beside those of contents with contents, and what distances are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disentangled {
    /// Whether a query's content looks at where the key stands (`c2p`).
    pub from_content: bool,
    /// Whether where the query stands looks at a key's content (`p2c`).
    pub from_position: bool,
    /// Whether the projections of contents serve positions too.
    pub shares_projections: bool,
    /// Whether the table's rows are normalised.
    pub has_norm: bool,
    /// Whether positions are computed at all; without them only the scale of the scores is left.
    pub has_positions: bool,
    /// Number of classes in each direction; `None` if each distance is one.
    pub buckets: Option<usize>,
    /// Distance from which all are of one class.
    pub max_distance: usize,
}

impl Disentangled {
    /// Rows of the table for one direction; it has twice as many.
    pub(super) fn span(&self) -> usize {
        self.buckets.unwrap_or(self.max_distance)
    }

    /// The factor on scores for heads of a width.
    pub(super) fn scale(&self, head_dim: usize) -> f64 {
        let terms = 1 + usize::from(self.from_content) + usize::from(self.from_position);
        ((head_dim * terms) as f64).sqrt().recip()
    }

    /// The row of the table for a query `distance` tokens behind the key.
    fn row(&self, distance: i64) -> i64 {
        let class = match self.buckets {
            Some(buckets) => bucket(distance, buckets, self.max_distance),
            None => distance,
        };
        let span = self.span() as i64;
        (class + span).clamp(0, 2 * span - 1)
    }
}

/// The class of a distance: single ones up to half of `buckets`, then growing geometrically up to
/// `max_distance`.
fn bucket(distance: i64, buckets: usize, max_distance: usize) -> i64 {
    let half = (buckets / 2) as i64;
    if distance.abs() <= half {
        return distance;
    }
    // In f32, as the reference computes it: a distance may lie on the edge of a class.
    let growth = (distance.abs() as f32 / half as f32).ln();
    let whole = ((max_distance as f64 - 1.0) / half as f64) as f32;
    let class = (growth / whole.ln() * (half - 1) as f32).ceil() as i64 + half;
    class * distance.signum()
}

/// Relative positions.
#[derive(Module, Debug)]
pub(super) struct RelativePositions {
    /// `[2 * span, D]`.
    pub(super) table: Param<Tensor<2>>,
    pub(super) norm: Option<LayerNorm>,
    #[module(skip)]
    pub(super) config: Disentangled,
}

/// The rows of the table for all distances in a text, `[1, 2T - 1, D]`.
#[derive(Debug, Clone)]
pub(crate) struct PositionRows {
    /// From the query first to the query last.
    rising: Tensor<3>,
    /// The other way round.
    falling: Tensor<3>,
    config: Disentangled,
}

impl RelativePositions {
    /// The rows for a text of so many tokens.
    pub(super) fn rows(&self, tokens: usize) -> PositionRows {
        let table: Tensor<3> = self.table.val().unsqueeze();
        let table = match &self.norm {
            Some(norm) => norm.forward(table),
            None => table,
        };
        let last = tokens as i64 - 1;
        let rows: Vec<i64> = (-last..=last).map(|d| self.config.row(d)).collect();
        let select = |rows: Vec<i64>| {
            let data = TensorData::new(rows, [2 * tokens - 1]);
            let rows = Tensor::<1, Int>::from_data(data, &table.device());
            table.clone().select(1, rows)
        };
        PositionRows {
            falling: select(rows.iter().rev().copied().collect()),
            rising: select(rows),
            config: self.config,
        }
    }
}

impl PositionRows {
    /// What positions add to the scaled scores, `[B, H, T, T]`, for queries and keys `[B, T, H * W]`;
    /// `key_of` and `query_of` project rows.
    pub(super) fn scores(
        &self,
        [query, key]: [&Tensor<3>; 2],
        num_heads: usize,
        key_of: impl FnOnce(Tensor<3>) -> Tensor<3>,
        query_of: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<4> {
        let scale = self.config.scale(query.dims()[2] / num_heads);
        let by_content = self.config.from_content.then(|| {
            let rows = key_of(self.falling.clone()).mul_scalar(scale);
            along_distances(query.clone(), rows, num_heads)
        });
        let by_position = self.config.from_position.then(|| {
            let rows = query_of(self.rising.clone()).mul_scalar(scale);
            along_distances(key.clone(), rows, num_heads).swap_dims(2, 3)
        });
        let scores = [by_content, by_position].into_iter().flatten();
        let sum = scores.reduce(|sum, scores| sum + scores);
        sum.expect("made for one of them at least")
    }
}

/// The products of each token's content with the row of its distance to every other token,
/// `[B, H, T, T]`: of token t with column `s - t + T - 1` for token s.
///
/// `contents` is `[B, T, H * W]` and `rows` `[1, 2T - 1, H * W]`.
fn along_distances(contents: Tensor<3>, rows: Tensor<3>, num_heads: usize) -> Tensor<4> {
    let ([batch, tokens, width], distances) = (contents.dims(), rows.dims()[1]);
    let head = width / num_heads;
    let contents = contents.reshape([batch * tokens, num_heads, head]);
    let rows = rows.reshape([distances, num_heads, head]);
    let products = contents
        .swap_dims(0, 1)
        .matmul(rows.swap_dims(0, 1).swap_dims(1, 2));
    // A column more makes row t of the next shape begin t columns further left.
    let empty = Tensor::zeros([num_heads, batch * tokens, 1], &products.device());
    Tensor::cat(vec![products, empty], 2)
        .reshape([num_heads, batch, tokens * (distances + 1)])
        .narrow(2, tokens - 1, tokens * distances)
        .reshape([num_heads, batch, tokens, distances])
        .narrow(3, 0, tokens)
        .swap_dims(0, 1)
}

#[cfg(test)]
mod tests {
    use molora_kernels::random::{Seed, uniform};
    use molora_testkit::{FORWARD, assert_close, device};

    use super::*;

    const CONFIG: Disentangled = Disentangled {
        from_content: true,
        from_position: true,
        shares_projections: true,
        has_norm: false,
        has_positions: true,
        buckets: None,
        max_distance: 3,
    };

    #[test]
    fn classes_of_distances() {
        // Four single distances on each side, then up to 40 tokens in three steps.
        let classes = [
            (0, 0),
            (3, 3),
            (4, 4),
            (5, 5),
            (8, 5),
            (9, 6),
            (19, 7),
            (40, 8),
        ];
        for (distance, class) in classes {
            assert_eq!(bucket(distance, 8, 40), class, "{distance}");
            assert_eq!(bucket(-distance, 8, 40), -class, "{}", -distance);
        }
        let plain: Vec<i64> = (-4..=4).map(|distance| CONFIG.row(distance)).collect();
        assert_eq!(plain, [0, 0, 1, 2, 3, 4, 5, 5, 5]);
    }

    #[test]
    fn scores_are_those_of_each_pair() {
        let (device, tokens, heads, head) = (device(), 5, 2, 3);
        let width = heads * head;
        let draw = |name: &str, rows: usize| -> Tensor<2> {
            uniform([rows, width], 1.0, Seed::new(4).child(name), &device)
        };
        let table = draw("table", 6);
        let positions = RelativePositions {
            table: Param::from_tensor(table.clone()),
            norm: None,
            config: CONFIG,
        };
        let [query, key]: [Tensor<3>; 2] =
            ["query", "key"].map(|name| draw(name, 2 * tokens).reshape([2, tokens, width]));
        let found = positions.rows(tokens).scores(
            [&query, &key],
            heads,
            |rows| rows.mul_scalar(2.0),
            |rows| rows.neg(),
        );
        let host = |tensor: Tensor<2>| tensor.into_data().try_to_vec::<f32>().expect("f32");
        let [query, key] = [query, key].map(|x| host(x.reshape([2 * tokens, width])));
        let (table, scale) = (host(table), CONFIG.scale(head) as f32);
        let mut expected = Vec::new();
        for (b, h, i, j) in (0..2 * heads * tokens * tokens).map(|n| {
            let pair = n % (tokens * tokens);
            let [b, h] = [n / (heads * tokens * tokens), n / (tokens * tokens) % heads];
            (b, h, pair / tokens, pair % tokens)
        }) {
            let row = CONFIG.row(i as i64 - j as i64) as usize * width + h * head;
            let at = |token: usize| (b * tokens + token) * width + h * head;
            let product = |values: &[f32], from: usize| -> f32 {
                (0..head).map(|n| values[from + n] * table[row + n]).sum()
            };
            let sum = 2.0 * product(&query, at(i)) - product(&key, at(j));
            expected.push(sum * scale);
        }
        let shape = [2, heads, tokens, tokens];
        let expected = Tensor::<4>::from_data(TensorData::new(expected, shape), &device);
        assert_close(found, expected, FORWARD, "scores");
    }
}
