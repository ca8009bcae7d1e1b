//! k-means on the host, the same to the last bit on every machine: Lloyd's algorithm, whose first
//! centroids are drawn far from each other (k-means++, Arthur and Vassilvitskii, SODA 2007).

use molora_kernels::random::{Seed, unit};

/// At most `clusters` centroids of some vectors, fewer only if there are fewer vectors: the best of some
/// starts, whose vectors are nearest to their centroids.
///
/// # Panics
/// If there is no vector, none is wanted, or there is no start.
pub(super) fn k_means(
    vectors: &[Vec<f32>],
    clusters: usize,
    (starts, iterations): (usize, usize),
    seed: Seed,
) -> Vec<Vec<f32>> {
    let of_start = |start| {
        let centroids = from_start(vectors, clusters, iterations, seed.index(start as u64));
        let apart = |v: &Vec<f32>| distance(&centroids[nearest(&centroids, v)], v);
        (vectors.iter().map(apart).sum::<f64>(), centroids)
    };
    let found = (0..starts).map(of_start);
    let best = found.reduce(|best, other| if other.0 < best.0 { other } else { best });
    best.expect("there is a start").1
}

fn from_start(
    vectors: &[Vec<f32>],
    clusters: usize,
    iterations: usize,
    seed: Seed,
) -> Vec<Vec<f32>> {
    let mut centroids = spread(vectors, clusters.min(vectors.len()), seed);
    let mut ids = vec![usize::MAX; vectors.len()];
    for _ in 0..iterations {
        let now: Vec<usize> = vectors.iter().map(|v| nearest(&centroids, v)).collect();
        if now == ids {
            break;
        }
        ids = now;
        for (id, centroid) in centroids.iter_mut().enumerate() {
            let own = vectors.iter().zip(&ids).filter(|(_, own)| **own == id);
            // A cluster that lost all its vectors stays where it was.
            if let Some(mean) = mean(own.map(|(vector, _)| vector)) {
                *centroid = mean;
            }
        }
    }
    centroids
}

/// The number of the nearest centroid; of equally near ones the lower.
pub(super) fn nearest(centroids: &[Vec<f32>], vector: &[f32]) -> usize {
    let mut best = (0, f64::INFINITY);
    for (id, centroid) in centroids.iter().enumerate() {
        let distance = distance(centroid, vector);
        if distance < best.1 {
            best = (id, distance);
        }
    }
    best.0
}

/// Vectors drawn one after the other, each with a chance that grows with its squared distance to those
/// that were drawn before.
fn spread(vectors: &[Vec<f32>], count: usize, seed: Seed) -> Vec<Vec<f32>> {
    let mut generator = seed.generator();
    let first = (unit(&mut generator) * vectors.len() as f64) as usize;
    let mut chosen = vec![vectors[first.min(vectors.len() - 1)].clone()];
    let mut distances = vec![f64::INFINITY; vectors.len()];
    while chosen.len() < count {
        let last = &chosen[chosen.len() - 1];
        for (known, vector) in distances.iter_mut().zip(vectors) {
            *known = known.min(distance(last, vector));
        }
        let mut left = unit(&mut generator) * distances.iter().sum::<f64>();
        let place = distances.iter().position(|distance| {
            left -= distance;
            left < 0.0
        });
        // Rounding may leave something at the end, and equal vectors have no distance at all.
        chosen.push(vectors[place.unwrap_or(vectors.len() - 1)].clone());
    }
    chosen
}

fn mean<'v>(vectors: impl Iterator<Item = &'v Vec<f32>>) -> Option<Vec<f32>> {
    let (mut count, mut sum) = (0_usize, Vec::new());
    for vector in vectors {
        count += 1;
        sum.resize(vector.len(), 0.0_f64);
        for (sum, &value) in sum.iter_mut().zip(vector) {
            *sum += f64::from(value);
        }
    }
    let mean = |sum: f64| (sum / count as f64) as f32;
    (count > 0).then(|| sum.into_iter().map(mean).collect())
}

/// Squared distance.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |(&a, &b): (&f32, &f32)| (f64::from(a) - f64::from(b)).powi(2);
    a.iter().zip(b).map(square).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three heaps around the corners of a triangle.
    fn heaps() -> Vec<Vec<f32>> {
        let corners = [[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]];
        let around = |step: usize| {
            let turn = step as f32;
            corners.map(|[x, y]| vec![x + turn.sin(), y + turn.cos()])
        };
        (0..20).flat_map(around).collect()
    }

    #[test]
    fn heaps_are_found_whatever_the_seed() {
        let vectors = heaps();
        for seed in 0..20 {
            let centroids = k_means(&vectors, 3, (8, 50), Seed::new(seed));
            let ids: Vec<usize> = vectors.iter().map(|v| nearest(&centroids, v)).collect();
            let mut first = ids[..3].to_vec();
            assert!(
                ids.chunks(3).all(|three| three == first),
                "seed {seed}: {ids:?}"
            );
            first.sort_unstable();
            assert_eq!(first, [0, 1, 2], "seed {seed}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_centroids() {
        let vectors = heaps();
        let of = |seed| k_means(&vectors, 5, (1, 3), Seed::new(seed));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn there_are_no_more_clusters_than_vectors() {
        let equal = vec![vec![1.0, 2.0]; 2];
        let centroids = k_means(&equal, 4, (2, 10), Seed::new(0));
        assert_eq!(centroids, equal);
        assert_eq!(nearest(&centroids, &[1.0, 2.0]), 0);
    }
}
