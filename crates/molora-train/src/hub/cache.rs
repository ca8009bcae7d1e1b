//! A model's place in the cache: `models--org--name` with `blobs`, `snapshots` and `refs`.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::files::{INDEX, OPTIONAL, REQUIRED, WEIGHTS, shards};
use super::listing::Listing;
use super::{HubConfig, HubError, ModelId, Snapshot};

/// One model in the cache; the layout is that of the crate `hf-hub`.
pub(super) struct ModelCache {
    model: ModelId,
    repo: CacheRepo,
}

impl ModelCache {
    pub(super) fn new(model: &ModelId, config: &HubConfig) -> Self {
        let repo = repo(model, model.revision());
        Self {
            model: model.clone(),
            repo: Cache::new(config.cache.clone()).repo(repo),
        }
    }

    /// Folder of a commit's files.
    pub(super) fn folder(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    /// Place of a commit's file.
    pub(super) fn path(&self, commit: &str, file: &str) -> PathBuf {
        self.folder(commit).join(file)
    }

    /// Place of what a file holds.
    pub(super) fn blob(&self, name: &str) -> PathBuf {
        self.repo.blob_path(name)
    }

    /// Place of a lock, beside the cache's models as Python has it: `.locks/models--org--name`.
    pub(super) fn lock(&self, name: &str) -> PathBuf {
        let blobs = self.repo.blob_path(name);
        let model = blobs.ancestors().nth(2).unwrap_or(&blobs);
        let (cache, folder) = (model.parent(), model.file_name().unwrap_or_default());
        cache
            .unwrap_or(model)
            .join(".locks")
            .join(folder)
            .join(name)
    }

    /// The snapshot of the model's revision if all of it is there, or what is missing.
    pub(super) fn whole_snapshot(&self) -> Result<Snapshot, String> {
        let folder = match self.model.is_commit() {
            true => self.folder(self.model.revision()),
            false => {
                let path = self.repo.get(REQUIRED[0]);
                let folder = path.as_deref().and_then(Path::parent).map(PathBuf::from);
                folder.ok_or_else(|| format!("revision {}", self.model.revision()))?
            }
        };
        let is_missing = |file: &&str| !folder.join(file).exists();
        if let Some(file) = REQUIRED.iter().find(|file| is_missing(file)) {
            return Err((*file).into());
        }
        if is_missing(&WEIGHTS) {
            if is_missing(&INDEX) {
                return Err(WEIGHTS.into());
            }
            let shards = shards(&folder.join(INDEX)).map_err(|error| error.to_string())?;
            if let Some(shard) = shards.iter().find(|shard| is_missing(&shard.as_str())) {
                return Err(shard.clone());
            }
        }
        let commit = folder.file_name().unwrap_or_default().to_string_lossy();
        Ok(Snapshot {
            commit: commit.into_owned(),
            folder,
        })
    }

    /// Whether every file that a commit may have is there, or known not to exist.
    pub(super) fn is_complete(&self, commit: &str) -> bool {
        let is_known = |file: &str| {
            self.path(commit, file).exists() || self.absent(commit).join(file).exists()
        };
        OPTIONAL.iter().all(|file| is_known(file))
    }

    /// Remembers which files a commit does not have, as Python does. A cache that cannot be written
    /// remembers nothing.
    pub(super) fn remember_absent(&self, listing: &Listing) {
        let absent = self.absent(&listing.commit);
        for file in OPTIONAL {
            let mark = absent.join(file);
            if listing.sizes.contains_key(file) || mark.exists() {
                continue;
            }
            if std::fs::create_dir_all(&absent).is_err() || std::fs::write(mark, "").is_err() {
                return;
            }
        }
    }

    /// Folder of marks for files that a commit does not have.
    fn absent(&self, commit: &str) -> PathBuf {
        let folder = self.folder(commit);
        let root = folder.ancestors().nth(2).unwrap_or(&folder);
        root.join(".no_exist").join(commit)
    }

    /// Makes a blob appear as a commit's file.
    pub(super) fn link(&self, commit: &str, file: &str, blob: &Path) -> Result<(), HubError> {
        let path = self.path(commit, file);
        let folder = self.folder(commit);
        std::fs::create_dir_all(&folder).map_err(HubError::io(&folder))?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(HubError::io(&path)(error));
            }
            _ => {}
        }
        link(blob, &path).map_err(HubError::io(&path))
    }

    /// Makes the model's revision mean a commit. In a cache that cannot be written this changes
    /// nothing but what an offline run takes, so that it is a warning.
    pub(super) fn point_to(&self, commit: &str) {
        if self.model.is_commit() {
            return;
        }
        let found = self.repo.get(REQUIRED[0]);
        let is_same = found.is_some_and(|path| path.starts_with(self.folder(commit)));
        if is_same {
            return;
        }
        if let Err(error) = self.repo.create_ref(commit) {
            let revision = self.model.revision();
            tracing::warn!(
                "{}: revision {revision} is not noted in the cache: {error}",
                self.model
            );
        }
    }
}

/// The crate's name for a model at a revision.
pub(super) fn repo(model: &ModelId, revision: &str) -> Repo {
    Repo::with_revision(model.name().into(), RepoType::Model, revision.into())
}

/// A relative link, so that the cache may be moved. Where the file system has no links, the blob itself
/// is moved to the place, as Python does.
fn link(blob: &Path, path: &Path) -> std::io::Result<()> {
    symlink(blob, path)
        .or_else(|_| std::fs::hard_link(blob, path))
        .or_else(|_| std::fs::rename(blob, path))
}

#[cfg(unix)]
fn symlink(blob: &Path, path: &Path) -> std::io::Result<()> {
    let name = blob.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(Path::new("../../blobs").join(name), path)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
