//! The weights of a model folder: one safetensors file, or several with an index.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, unit};
use serde::Deserialize;

use super::Weights;
use super::pairs::Pairs;
use crate::ModelError;
use crate::error::similar;

/// Stem of the files of a model.
const MODEL: &str = "model";

/// All tensors of a model folder by name, read on demand, whatever file they are in.
#[derive(Debug)]
pub struct ModelWeights {
    path: PathBuf,
    files: Vec<Weights>,
    /// Which of the files holds a tensor.
    places: HashMap<String, usize>,
    names: Vec<String>,
    /// What tensors are drawn from that are in no file.
    drawn: Option<Seed>,
}

/// Bound of the numbers of a matrix that is drawn.
const BOUND: f64 = 0.05;

impl ModelWeights {
    /// Weights of no file, whatever their names and shapes: matrices from U(-0.05, 0.05), vectors of ones, and
    /// biases of zeros. `path` is that of messages.
    pub(crate) fn random(path: &Path, seed: Seed) -> Self {
        Self {
            path: path.into(),
            files: Vec::new(),
            places: HashMap::new(),
            names: Vec::new(),
            drawn: Some(seed),
        }
    }

    /// Opens `model.safetensors`, or all files that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A missing, broken or cut file; an index that names a missing file, or a tensor that its file
    /// does not hold; a tensor in two files.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Self::open_stem(folder, MODEL)
    }

    /// As [`open`](Self::open) for files with another word in front of `.safetensors`.
    pub(crate) fn open_stem(folder: &Path, stem: &str) -> Result<Self, ModelError> {
        let single_name = format!("{stem}.safetensors");
        let index_name = format!("{single_name}.index.json");
        let (single, index) = (folder.join(&single_name), folder.join(&index_name));
        if single.exists() {
            return Self::of_files(single.clone(), vec![Weights::open(&single)?]);
        }
        if !index.exists() {
            let problem = format!("neither {single_name} nor {index_name} is in this folder");
            return Err(ModelError::file(folder, problem));
        }
        let listed = read_index(&index)?;
        let mut names: Vec<&str> = listed.iter().map(|(_, file)| file.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let files = names.iter().map(|name| open_shard(folder, &index, name));
        let weights = Self::of_files(index.clone(), files.collect::<Result<_, _>>()?)?;
        weights.agrees_with(&listed, &names)?;
        Ok(weights)
    }

    fn of_files(path: PathBuf, files: Vec<Weights>) -> Result<Self, ModelError> {
        let mut places = HashMap::new();
        for (file, weights) in files.iter().enumerate() {
            for name in weights.names() {
                if let Some(other) = places.insert(name.clone(), file) {
                    let other = files[other].path().display();
                    let problem = format!("tensor `{name}` is in this file and in {other}");
                    return Err(ModelError::file(weights.path(), problem));
                }
            }
        }
        let mut names: Vec<String> = places.keys().cloned().collect();
        names.sort_unstable();
        Ok(Self {
            path,
            files,
            places,
            names,
            drawn: None,
        })
    }

    /// Every tensor of the index is in the file that the index names; `files` are sorted.
    fn agrees_with(&self, listed: &[(String, String)], files: &[&str]) -> Result<(), ModelError> {
        for (tensor, file) in listed {
            let place = self.places.get(tensor).map(|&place| files[place]);
            if place == Some(file.as_str()) {
                continue;
            }
            let found = match place {
                Some(other) => format!("it is in {other}"),
                None => "it is in none of the files".into(),
            };
            let problem = format!("weight_map says that `{tensor}` is in {file}, but {found}");
            return Err(ModelError::file(&self.path, problem));
        }
        Ok(())
    }

    /// The single file, or the index.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order of their names.
    pub(crate) fn files(&self) -> &[Weights] {
        &self.files
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.files[*self.places.get(name)?].shape(name)
    }

    /// The type of a tensor's numbers, if there is one of this name.
    pub(crate) fn dtype(&self, name: &str) -> Option<safetensors::Dtype> {
        self.files[*self.places.get(name)?].dtype(name)
    }

    /// Reads a tensor of f32, f16 or bf16 as f32.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        device: &Device,
    ) -> Result<Tensor<D>, ModelError> {
        self.file_of(name)?.tensor(name, shape, device)
    }

    /// Reads the values of a tensor as f32, row by row.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        match self.drawn {
            None => self.file_of(name)?.values(name, shape),
            Some(seed) => Ok(drawn(name, shape, seed)),
        }
    }

    fn file_of(&self, name: &str) -> Result<&Weights, ModelError> {
        let place = self.places.get(name);
        place
            .map(|&file| &self.files[file])
            .ok_or_else(|| ModelError::MissingTensor {
                path: self.path.clone(),
                name: name.into(),
                similar: similar(name, self.names.iter().map(String::as_str)),
            })
    }
}

fn open_shard(folder: &Path, index: &Path, name: &str) -> Result<Weights, ModelError> {
    // A name with a folder in it could lead anywhere.
    let is_plain = Path::new(name).file_name().is_some_and(|file| file == name);
    let path = folder.join(name);
    if !is_plain || !path.is_file() {
        let problem = format!("weight_map names the file {name}, which is not in this folder");
        return Err(ModelError::file(index, problem));
    }
    Weights::open(&path)
}

#[derive(Deserialize)]
struct Index {
    weight_map: Pairs<String>,
}

/// The numbers of a tensor that is in no file.
fn drawn(name: &str, shape: &[usize], seed: Seed) -> Vec<f32> {
    let count = shape.iter().product();
    match shape.len() {
        1 if name.ends_with(".bias") => vec![0.0; count],
        1 => vec![1.0; count],
        _ => {
            let mut generator = seed.child(name).generator();
            let mut number = || (BOUND * (2.0 * unit(&mut generator) - 1.0)) as f32;
            (0..count).map(|_| number()).collect()
        }
    }
}

/// Tensor and file, sorted by tensor.
fn read_index(path: &Path) -> Result<Vec<(String, String)>, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::Io {
        path: path.into(),
        source,
    })?;
    let index: Index =
        serde_json::from_str(&text).map_err(|e| ModelError::file(path, e.to_string()))?;
    let mut pairs = index.weight_map.0;
    pairs.sort();
    if let Some(twice) = pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let [(tensor, first), (_, second)] = twice else {
            unreachable!("windows of two")
        };
        let problem = format!("weight_map has `{tensor}` twice: in {first} and in {second}");
        return Err(ModelError::file(path, problem));
    }
    if pairs.is_empty() {
        return Err(ModelError::file(path, "weight_map is empty"));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;
    use safetensors::tensor::{TensorView, serialize};

    /// Writes files with the given tensors of one number, and an index.
    fn folder(files: &[(&str, &[&str])], index: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, tensors) in files {
            let one = 1f32.to_le_bytes();
            let views = tensors.iter().map(|name| {
                let view = TensorView::new(Dtype::F32, vec![1], &one).expect("a valid view");
                (*name, view)
            });
            let bytes = serialize(views, None).expect("serialisable");
            std::fs::write(folder.path().join(file), bytes).expect("writable");
        }
        std::fs::write(folder.path().join("model.safetensors.index.json"), index)
            .expect("writable");
        folder
    }

    fn problem(files: &[(&str, &[&str])], index: &str) -> String {
        let folder = folder(files, index);
        let error = ModelWeights::open(folder.path()).expect_err("must fail");
        let text = error.to_string();
        assert!(!text.contains('\n'), "one line: {text}");
        text
    }

    const GOOD: &str = r#"{"metadata": {}, "weight_map": {"a": "1.st", "b": "2.st"}}"#;

    #[test]
    fn tensors_are_found_in_their_files() {
        let folder = folder(&[("1.st", &["a"]), ("2.st", &["b"])], GOOD);
        let weights = ModelWeights::open(folder.path()).expect("a whole folder");
        assert_eq!(weights.names(), ["a", "b"]);
        assert_eq!(weights.values("b", &[1]).expect("present"), [1.0]);
        let text = weights.values("c", &[1]).expect_err("absent").to_string();
        assert!(text.contains("index.json: tensor `c` is missing"), "{text}");
        let text = weights.values("b", &[2]).expect_err("other").to_string();
        assert!(text.contains("2.st: tensor `b` has shape [1]"), "{text}");
    }

    #[test]
    fn an_index_that_does_not_agree_with_its_files_is_refused() {
        let text = problem(&[("1.st", &["a"])], GOOD);
        assert!(
            text.ends_with("names the file 2.st, which is not in this folder"),
            "{text}"
        );
        let text = problem(&[("1.st", &["a", "b"]), ("2.st", &["b"])], GOOD);
        assert!(text.contains("2.st: tensor `b` is in this file and in"));
        let text = problem(&[("1.st", &["a", "b"]), ("2.st", &["c"])], GOOD);
        assert!(
            text.ends_with("says that `b` is in 2.st, but it is in 1.st"),
            "{text}"
        );
        let text = problem(&[("1.st", &["a"]), ("2.st", &["c"])], GOOD);
        assert!(text.ends_with("it is in none of the files"), "{text}");
    }

    #[test]
    fn a_bad_index_is_refused() {
        let twice = r#"{"weight_map": {"a": "1.st", "a": "2.st"}}"#;
        assert!(problem(&[], twice).ends_with("has `a` twice: in 1.st and in 2.st"));
        assert!(problem(&[], r#"{"weight_map": {}}"#).ends_with("weight_map is empty"));
        assert!(problem(&[], "{}").contains("missing field `weight_map`"));
        assert!(problem(&[], r#"{"weight_map": {"a": 3}}"#).contains("line 1"));
        let outside = r#"{"weight_map": {"a": "../1.st"}}"#;
        assert!(problem(&[], outside).contains("../1.st, which is not in this folder"));
    }

    #[test]
    fn cut_files_and_empty_folders_are_refused() {
        let cut = folder(&[("1.st", &["a"]), ("2.st", &["b"])], GOOD);
        let path = cut.path().join("2.st");
        let bytes = std::fs::read(&path).expect("readable");
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("writable");
        let text = ModelWeights::open(cut.path()).expect_err("cut").to_string();
        assert!(text.contains("2.st: the file has"), "{text}");
        let empty = tempfile::tempdir().expect("a folder");
        let text = ModelWeights::open(empty.path())
            .expect_err("empty")
            .to_string();
        assert!(text.contains("neither model.safetensors nor"), "{text}");
    }
}
