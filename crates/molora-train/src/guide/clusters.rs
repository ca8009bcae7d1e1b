//! Clusters of texts, by which routers decide: MoCLE's first stage.
//!
//! Gou et al., arXiv:2312.12379, section 3.1: the texts of all training records are embedded and divided
//! by k-means; a record belongs to the cluster whose centroid is nearest to its text. The run keeps the
//! centroids, so that the same text has the same cluster in training, evaluation and a resumed run.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use molora_kernels::random::Seed;
use molora_models::AdapterSpec;
use molora_routing::Guidance;
use serde::{Deserialize, Serialize};

use super::k_means::{k_means, nearest};
use super::{Guide, TextEncoder};
use crate::base::place::write_json_atomically;
use crate::data::draw::shuffle;
use crate::data::{Split, TokenizedTask};
use crate::error::{RunProblem, TrainError};
use crate::recipe::ClusterTexts;
use crate::report::SCHEMA_VERSION;

/// File of the clusters in a run folder.
pub const CLUSTERS: &str = "clusters.json";

/// The clusters of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clusters {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// Folder of the encoder that made the vectors, `bundled:NAME` or `hub:org/name@commit`.
    pub encoder: String,
    /// Number of clusters that the routers know; there may be fewer centroids.
    pub clusters: usize,
    /// The centroid of each cluster.
    pub centroids: Vec<Vec<f32>>,
}

impl Clusters {
    /// Divides the training texts of all tasks.
    ///
    /// # Errors
    /// Whatever reading the encoder gives, and a text that cannot be tokenized.
    pub fn fit(
        config: &ClusterTexts,
        clusters: usize,
        tasks: &[TokenizedTask],
        seed: Seed,
        encoder: &TextEncoder,
    ) -> Result<Self, TrainError> {
        let texts = tasks.iter().flat_map(|task| task.requests(Split::Train));
        let mut texts: Vec<&str> = texts.map(String::as_str).collect();
        shuffle(&mut seed.child("texts").generator(), &mut texts);
        texts.truncate(config.texts);
        let vectors = encoder.embed(&texts)?;
        let seed = seed.child("centroids");
        Ok(Self {
            version: SCHEMA_VERSION,
            encoder: encoder.name.clone(),
            clusters,
            centroids: k_means(&vectors, clusters, (config.starts, config.iterations), seed),
        })
    }

    /// Writes the file into a run folder.
    ///
    /// # Errors
    /// [`TrainError::Report`] if it cannot be written.
    pub fn save(&self, run: &Path) -> Result<(), TrainError> {
        write_json_atomically(&run.join(CLUSTERS), self)
    }

    /// Reads the file of a run folder whose routers know so many clusters.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Run`] for a missing or broken file, or one of other clusters.
    pub fn load(run: &Path, clusters: usize) -> Result<Self, TrainError> {
        let path = run.join(CLUSTERS);
        let text = fs_err::read_to_string(&path)?;
        let found: Self = serde_json::from_str(&text).map_err(TrainError::json(&path))?;
        let count = found.centroids.len();
        if found.clusters != clusters || count == 0 || count > clusters {
            let problem = RunProblem::OtherClusters {
                found: count,
                expected: clusters,
            };
            return Err(TrainError::run(&path, problem));
        }
        let width = found.centroids[0].len();
        match found.centroids.iter().find(|other| other.len() != width) {
            None => Ok(found),
            Some(other) => {
                let problem = RunProblem::CentroidLength {
                    found: other.len(),
                    expected: width,
                };
                Err(TrainError::run(&path, problem))
            }
        }
    }

    /// The clusters of a run whose routers read them, if they do.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_for(run: &Path, spec: &AdapterSpec) -> Result<Option<Self>, TrainError> {
        let clusters = spec.num_clusters();
        clusters.map(|count| Self::load(run, count)).transpose()
    }

    /// The guidance of the routers for all records of tasks.
    ///
    /// # Errors
    /// Whatever reading the encoder gives, and a text that cannot be tokenized.
    pub fn guide(&self, tasks: &[TokenizedTask], device: &Device) -> Result<Guide, TrainError> {
        self.guide_of(tasks, &Split::ALL, &self.text_encoder(device)?)
    }

    /// The encoder that made the vectors.
    ///
    /// # Errors
    /// Whatever finding and reading the model gives.
    pub fn text_encoder(&self, device: &Device) -> Result<TextEncoder, TrainError> {
        TextEncoder::open(&self.encoder, device)
    }

    /// The place of each text among the clusters.
    ///
    /// # Errors
    /// A text that cannot be tokenized.
    pub fn of_texts(
        &self,
        texts: &[&str],
        encoder: &TextEncoder,
    ) -> Result<Vec<Place>, TrainError> {
        let vectors = encoder.embed(texts)?;
        let place = |vector: &Vec<f32>| Place {
            cluster: nearest(&self.centroids, vector),
            similarities: self.similarities(vector),
        };
        Ok(vectors.iter().map(place).collect())
    }

    /// Products of each centroid with a text's vector, brought to length 1; 0 for clusters without a
    /// centroid.
    fn similarities(&self, vector: &[f32]) -> Vec<f32> {
        let square: f32 = vector.iter().map(|x| x * x).sum();
        let length = square.sqrt().max(f32::MIN_POSITIVE);
        let product = |centroid: &Vec<f32>| -> f32 {
            let terms = centroid.iter().zip(vector);
            terms.map(|(c, x)| c * x / length).sum()
        };
        let mut all: Vec<f32> = self.centroids.iter().map(product).collect();
        all.resize(self.clusters, 0.0);
        all
    }

    /// The guidance of the routers for some splits of tasks, which need not be those of the run.
    ///
    /// # Errors
    /// A text that cannot be tokenized.
    pub fn guide_of(
        &self,
        tasks: &[TokenizedTask],
        splits: &[Split],
        encoder: &TextEncoder,
    ) -> Result<Guide, TrainError> {
        let mut ids = ClusterIds {
            clusters: self.clusters,
            tasks: vec![Default::default(); tasks.len()],
        };
        for (task, of_task) in tasks.iter().zip(&mut ids.tasks) {
            for &split in splits {
                let texts: Vec<&str> = task.requests(split).iter().map(String::as_str).collect();
                of_task[place(split)] = self.of_texts(&texts, encoder)?;
            }
        }
        Ok(Guide::ByCluster(ids))
    }
}

/// Where a text is among the clusters.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The nearest one.
    pub cluster: usize,
    /// How similar it is to each (MoR1E).
    pub similarities: Vec<f32>,
}

/// The place of every record among the clusters, by task and split.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterIds {
    clusters: usize,
    tasks: Vec<[Vec<Place>; 3]>,
}

impl ClusterIds {
    /// The guidance of the routers for records of a split, each of a task.
    ///
    /// # Panics
    /// If a record has no cluster.
    pub(super) fn of(
        &self,
        tasks: &[usize],
        records: &[usize],
        split: Split,
        device: &Device,
    ) -> Guidance {
        let of = |(&task, &record): (&usize, &usize)| &self.tasks[task][place(split)][record];
        let places: Vec<&Place> = tasks.iter().zip(records).map(of).collect();
        clusters_of(&places, self.clusters, device)
    }
}

/// The guidance of the routers for sequences at these places among the clusters.
pub(crate) fn clusters_of(places: &[&Place], clusters: usize, device: &Device) -> Guidance {
    let mut rows = vec![0.0_f32; places.len() * clusters];
    for (row, place) in places.iter().enumerate() {
        rows[row * clusters + place.cluster] = 1.0;
    }
    let shape = [places.len(), clusters];
    let similarities = places.iter().flat_map(|place| place.similarities.clone());
    let similarities = TensorData::new(similarities.collect::<Vec<f32>>(), shape);
    Guidance {
        clusters: Some(Tensor::from_data(TensorData::new(rows, shape), device)),
        similarities: Some(Tensor::from_data(similarities, device)),
        ..Guidance::default()
    }
}

fn place(split: Split) -> usize {
    match split {
        Split::Train => 0,
        Split::Validation => 1,
        Split::Test => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clusters(centroids: Vec<Vec<f32>>) -> Clusters {
        Clusters {
            version: SCHEMA_VERSION,
            encoder: "bundled:any".into(),
            clusters: 3,
            centroids,
        }
    }

    #[test]
    fn what_was_saved_is_what_is_loaded() {
        let run = tempfile::tempdir().expect("a folder");
        let saved = clusters(vec![vec![1.0, 0.0], vec![0.0, 1.0]]);
        saved.save(run.path()).expect("writable");
        assert_eq!(Clusters::load(run.path(), 3).expect("its own file"), saved);
    }

    #[test]
    fn clusters_of_another_run_are_refused() {
        let run = tempfile::tempdir().expect("a folder");
        let refusal = |centroids, expected| {
            clusters(centroids).save(run.path()).expect("writable");
            let error = Clusters::load(run.path(), expected).expect_err("not that of the run");
            error.to_string()
        };
        let error = refusal(vec![vec![1.0]], 4);
        assert!(error.contains("1 centroids"), "{error}");
        let error = refusal(vec![], 3);
        assert!(error.contains("0 centroids"), "{error}");
        let error = refusal(vec![vec![1.0], vec![1.0, 2.0]], 3);
        assert!(error.contains("2 numbers, expected 1"), "{error}");
    }

    #[test]
    fn similarities_are_products_with_a_vector_of_length_one() {
        let clusters = clusters(vec![vec![0.6, 0.8], vec![0.0, 2.0]]);
        assert_eq!(clusters.similarities(&[0.0, 4.0]), [0.8, 2.0, 0.0]);
    }

    #[test]
    fn records_have_the_clusters_of_their_split() {
        let at = |clusters: &[usize]| -> Vec<Place> {
            let place = |&cluster: &usize| Place {
                cluster,
                similarities: vec![0.5, 0.0, cluster as f32],
            };
            clusters.iter().map(place).collect()
        };
        let ids = ClusterIds {
            clusters: 3,
            tasks: vec![
                [at(&[0, 1]), at(&[2]), at(&[])],
                [at(&[2, 0]), at(&[1]), at(&[])],
            ],
        };
        let device = Device::default();
        let rows = |guidance: Guidance| {
            let rows = guidance.clusters.expect("clusters").into_data();
            rows.iter::<f32>().collect::<Vec<_>>()
        };
        let train = ids.of(&[0, 1], &[1, 0], Split::Train, &device);
        assert_eq!(rows(train), [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let validation = ids.of(&[1], &[0], Split::Validation, &device);
        let similar = validation.similarities.clone().expect("similarities");
        let similar: Vec<f32> = similar.into_data().iter::<f32>().collect();
        assert_eq!(similar, [0.5, 0.0, 1.0]);
        assert_eq!(rows(validation), [0.0, 1.0, 0.0]);
    }
}
