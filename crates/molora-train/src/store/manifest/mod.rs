//! What a finished run or an export was when it was written: `manifest.json`.
//!
//! A run and an export have one from the moment at which they are finished. Whatever writes into a finished
//! run goes through [`put_result`], or makes all of it anew as a change of experts does: either way the
//! manifest says what is there.
//!
//! Checkpoints, which come and go (`checkpoints/`), the lock, changes that are being made, and
//! exports that lie in the run are no part of it.

mod listed;
mod tensors;

use std::collections::BTreeMap;
use std::path::Path;

use molora_models::BaseDtype;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use listed::has_tensors;
pub(crate) use listed::listed;
pub(crate) use tensors::file_record;
pub use tensors::{TensorRecord, Tensors};

use super::names::FILES;
use super::swap::SHARED;
use super::{FORMAT, FolderLock};
use crate::base::DeviceSpec;
use crate::base::files::entries;
use crate::base::place::{write_atomically, write_json_atomically};
use crate::error::{RunProblem, TrainError};
use crate::eval::{ProbeRecord, Probed};

/// File of the manifest in a finished run or an export.
pub const MANIFEST: &str = "manifest.json";
/// The format of the file that this molora writes.
const MANIFEST_FORMAT: u32 = 1;
/// The version of burn that molora is built on.
const BURN: &str = "0.22.1";

/// What a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FolderKind {
    /// A finished run.
    Run,
    /// An adapter in PEFT's files.
    Adapter,
    /// A whole model.
    Model,
}

/// What a finished folder was when it was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format of this file.
    pub format: u32,
    /// What the folder holds.
    pub kind: FolderKind,
    /// Version of molora that wrote it.
    pub molora_version: String,
    /// Version of burn that it computed with.
    pub burn_version: String,
    /// Format of run folders of that molora.
    pub run_format: u32,
    /// Name of the device that the probe was computed on.
    pub device: String,
    /// burn's backend of the device.
    pub backend: String,
    /// The base model.
    pub base: ManifestBase,
    /// SHA-256 of every file by its path, in hexadecimal digits.
    pub files: BTreeMap<String, String>,
    /// The tensors of every safetensors file, by its path; not those of checkpoints.
    pub tensors: BTreeMap<String, Tensors>,
    /// What the model computed.
    pub probe: Probe,
}

/// The base model of a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestBase {
    /// Folder of the base model, `bundled:NAME`, or `hub:org/name@commit`.
    pub name: String,
    /// The type in which its matrices were kept for the probe.
    #[serde(default)]
    pub dtype: BaseDtype,
    /// SHA-256 of its weights, configuration and tokenizer, by file.
    pub files: BTreeMap<String, String>,
}

/// What a model computed from fixed tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// The tokens and the outputs.
    Recorded(ProbeRecord),
    /// Nothing was computed.
    None {
        /// The reason.
        why: String,
    },
}

impl Probe {
    /// What a model computes; one that computes no numbers has no probe.
    pub(crate) fn of(probed: &Probed<'_>) -> Self {
        match probed.record() {
            Ok(record) => Self::Recorded(record),
            Err(error) => Self::None {
                why: error.to_string(),
            },
        }
    }
}

/// What a manifest says beside files and tensors.
pub(crate) struct About {
    pub(crate) kind: FolderKind,
    pub(crate) device: DeviceSpec,
    pub(crate) base: ManifestBase,
    pub(crate) probe: Probe,
}

impl Manifest {
    /// The manifest of what lies in a folder now.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn of(folder: &Path, about: About) -> Result<Self, TrainError> {
        let mut manifest = Self {
            format: MANIFEST_FORMAT,
            kind: about.kind,
            molora_version: env!("CARGO_PKG_VERSION").into(),
            burn_version: BURN.into(),
            run_format: FORMAT,
            device: about.device.to_string(),
            backend: about.device.backend().into(),
            base: about.base,
            files: BTreeMap::new(),
            tensors: BTreeMap::new(),
            probe: about.probe,
        };
        manifest.add_files(folder)?;
        Ok(manifest)
    }

    /// Adds all files of a folder that belong to what it holds.
    fn add_files(&mut self, folder: &Path) -> Result<(), TrainError> {
        let is_run = self.kind == FolderKind::Run;
        let own = |path: &String| !is_run || path.contains('/') || FILES.contains(&&path[..]);
        for path in listed(folder, self.kind)?.into_iter().filter(own) {
            let (digest, tensors) = file_record(&folder.join(&path), has_tensors(&path))?;
            if let Some(tensors) = tensors {
                self.tensors.insert(path.clone(), tensors);
            }
            self.files.insert(path, digest);
        }
        Ok(())
    }

    /// Says that a file has this content.
    pub(crate) fn put(&mut self, name: &str, content: &[u8]) {
        let digest = format!("{:x}", Sha256::digest(content));
        self.files.insert(name.into(), digest);
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be written to.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), TrainError> {
        write_json_atomically(&folder.join(MANIFEST), self)
    }

    /// Reads the manifest of a folder, if it has one.
    ///
    /// # Errors
    /// [`RunProblem::NewerFormat`] for one of a later version; a file that is no manifest of molora.
    pub fn read(folder: &Path) -> Result<Option<Self>, TrainError> {
        #[derive(Deserialize)]
        struct Numbered {
            format: u32,
        }
        let path = folder.join(MANIFEST);
        let text = match fs_err::read_to_string(&path) {
            Err(error) if super::folder::is_missing(&error) => return Ok(None),
            other => other?,
        };
        if let Ok(Numbered { format: found }) = serde_json::from_str(&text)
            && found > MANIFEST_FORMAT
        {
            let known = MANIFEST_FORMAT;
            return Err(TrainError::run(
                &path,
                RunProblem::NewerFormat { found, known },
            ));
        }
        let read = serde_json::from_str(&text).map_err(TrainError::json(&path))?;
        Ok(Some(read))
    }
}

/// Makes the manifest among the new files of a change, which lists those alone, that of the run as it will be:
/// with what stays of it, and without what is dropped or replaced.
///
/// # Errors
/// If a file cannot be read or written.
pub(crate) fn foresee(new: &Path, run: &Path, dropped: &[String]) -> Result<(), TrainError> {
    let Some(mut manifest) = Manifest::read(new)? else {
        return Ok(());
    };
    let mut gone = dropped.to_vec();
    // Of folders that are put in place as a whole nothing stays; files are listed again.
    let names = entries(new)?.into_iter();
    gone.extend(names.filter(|name| !SHARED.contains(&&name[..])));
    (manifest.files, manifest.tensors) = match Manifest::read(run)? {
        // What it says of files that stay is believed: one that changed meanwhile is still told.
        Some(old) => (old.files, old.tensors),
        None => Default::default(),
    };
    if manifest.files.is_empty() {
        manifest.add_files(run)?;
    }
    let is_gone = |path: &str| {
        let below = |gone: &String| {
            path.strip_prefix(&gone[..])
                .is_some_and(|rest| rest.starts_with('/'))
        };
        gone.iter().any(|gone| path == gone || below(gone))
    };
    manifest.files.retain(|path, _| !is_gone(path));
    manifest.tensors.retain(|path, _| !is_gone(path));
    manifest.add_files(new)?;
    manifest.write(new)
}

/// Writes a result into a run that this process has the lock of, and lists it in its manifest.
///
/// # Errors
/// If the folder cannot be written to, or its manifest cannot be read.
pub(super) fn put_locked(run: &Path, name: &str, content: &[u8]) -> Result<(), TrainError> {
    let manifest = Manifest::read(run)?;
    write_atomically(&run.join(name), content)?;
    match manifest {
        Some(mut manifest) => {
            manifest.put(name, content);
            manifest.write(run)
        }
        None => Ok(()),
    }
}

/// Writes a result into a run whose other files stay, and lists it in its manifest.
///
/// # Errors
/// [`RunProblem::InUse`] if another process writes the run; as [`put_locked`].
pub(crate) fn put_result(run: &Path, name: &str, content: &[u8]) -> Result<(), TrainError> {
    let _lock = FolderLock::take(run)?;
    put_locked(run, name, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(kind: FolderKind) -> About {
        About {
            kind,
            device: DeviceSpec::Cpu,
            base: ManifestBase {
                name: "bundled:mini".into(),
                dtype: BaseDtype::F32,
                files: BTreeMap::new(),
            },
            probe: Probe::None {
                why: "a test".into(),
            },
        }
    }

    fn write(folder: &Path, names: &[&str]) {
        for name in names {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().expect("below")).expect("writable");
            std::fs::write(path, name).expect("writable");
        }
    }

    fn names(manifest: &Manifest) -> Vec<&str> {
        manifest.files.keys().map(String::as_str).collect()
    }

    #[test]
    fn burn_is_the_one_that_is_locked() {
        let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock");
        let lock = std::fs::read_to_string(lock).expect("in the workspace");
        assert!(lock.contains(&format!("name = \"burn\"\nversion = \"{BURN}\"")));
    }

    #[test]
    fn a_run_has_its_own_files_and_no_states_that_come_and_go() {
        let root = tempfile::tempdir().expect("a folder");
        let run = root.path();
        write(
            run,
            &[
                "run.toml",
                "eval.json",
                "experts/a/head.safetensors.bak",
                "checkpoints/step-1/state.json",
                ".lock",
                "peft-2/adapter_config.json",
                "thesis.tex",
                "lora.gguf",
                "stages/x/state.json",
            ],
        );
        let manifest = Manifest::of(run, about(FolderKind::Run)).expect("readable");
        let expected = [
            "eval.json",
            "experts/a/head.safetensors.bak",
            "run.toml",
            "stages/x/state.json",
        ];
        assert_eq!(names(&manifest), expected);
        manifest.write(run).expect("writable");
        assert_eq!(Manifest::read(run).expect("its own"), Some(manifest));
        let listed = listed(run, FolderKind::Run).expect("readable");
        assert!(listed.contains(&"thesis.tex".to_owned()), "{listed:?}");
        assert!(!listed.contains(&"lora.gguf".to_owned()), "{listed:?}");
        put_result(run, "unseen.json", b"{}").expect("writable");
        let manifest = Manifest::read(run).expect("its own").expect("there");
        assert!(manifest.files.contains_key("unseen.json"));
    }

    #[test]
    fn an_export_has_every_file() {
        let root = tempfile::tempdir().expect("a folder");
        write(root.path(), &["a.json", "b/c.txt", ".molora-x"]);
        let manifest = Manifest::of(root.path(), about(FolderKind::Adapter)).expect("readable");
        assert_eq!(names(&manifest), ["a.json", "b/c.txt"]);
    }

    #[test]
    fn a_change_of_experts_is_foreseen() {
        let root = tempfile::tempdir().expect("a folder");
        let (run, new) = (root.path().join("run"), root.path().join("new"));
        write(
            &run,
            &[
                "run.toml",
                "experts/a/gate.txt",
                "experts/b/gate.txt",
                "stages/x/state.json",
            ],
        );
        write(
            &new,
            &["eval.json", "experts/c/gate.txt", "before/c/run.toml"],
        );
        let manifest = Manifest::of(&new, about(FolderKind::Run)).expect("readable");
        manifest.write(&new).expect("writable");
        let dropped = ["stages".to_owned(), "experts/b".to_owned()];
        foresee(&new, &run, &dropped).expect("writable");
        let manifest = Manifest::read(&new).expect("its own").expect("there");
        let expected = [
            "before/c/run.toml",
            "eval.json",
            "experts/a/gate.txt",
            "experts/c/gate.txt",
            "run.toml",
        ];
        assert_eq!(names(&manifest), expected);
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        let refused = |text: &str| {
            std::fs::write(root.path().join(MANIFEST), text).expect("writable");
            Manifest::read(root.path())
                .expect_err("refused")
                .to_string()
        };
        assert!(refused("{\"format\": 7}").contains("format is 7, but this molora knows up to 1"));
        assert!(refused("{\"name\": \"an app\"}").contains("manifest.json: unknown field `name`"));
    }
}
