//! Models by name from the Hugging Face Hub, or a server that implements its file API.
//!
//! [`fetch`] asks the hub which commit a revision is, downloads the few files that molora reads
//! into the cache that Python's `huggingface_hub` uses too, and returns the snapshot's folder. A
//! commit never changes: one that is whole in the cache needs no network.
//!
//! The crate `hf-hub` gives the layout of the cache, the addresses and the request for a
//! repository's description. Files are read here, because version 0.5 of the crate sends the token
//! on to the host that a file is redirected to, resumes a retry at the wrong place, and compares no
//! sizes or hashes. Version 1.0 does not replace this either: a download that was cut begins again from its
//! first byte, sizes and hashes are not compared, `HF_HUB_OFFLINE` is not known, its blocking calls cannot be stopped,
//! another process that loads the same file makes it fail after ten seconds, and it brings an
//! asynchronous runtime, a second HTTP client and the Xet protocol (326 crates in all).

#[cfg(feature = "hub")]
mod cache;
mod config;
#[cfg(feature = "hub")]
mod content;
#[cfg(feature = "hub")]
mod download;
mod error;
#[cfg(feature = "hub")]
mod files;
#[cfg(feature = "hub")]
mod http;
mod id;
#[cfg(feature = "hub")]
mod interruptible;
#[cfg(feature = "hub")]
mod listing;
#[cfg(feature = "hub")]
mod part;

#[cfg(feature = "hub")]
use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::PathBuf;

pub use config::{HubConfig, Token};
pub use error::HubError;
pub use id::ModelId;

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Folder with the model's files.
    pub folder: PathBuf,
    /// The commit that they are from, as 40 hexadecimal digits.
    pub commit: String,
}

/// Progress of a download.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// A request was sent and is not answered yet, or a file is being checked.
    Asking {
        /// Name of the file.
        file: &'a str,
    },
    /// Another process downloads the same file.
    Waiting {
        /// Name of the file.
        file: &'a str,
    },
    /// Some of a file is there.
    Bytes {
        /// Name of the file.
        file: &'a str,
        /// How much of it is there, in bytes, with what an earlier download left.
        done: u64,
        /// Its size in bytes.
        total: u64,
    },
    /// A request failed and is made again.
    Retry {
        /// Name of the file.
        file: &'a str,
        /// What failed.
        problem: &'a HubError,
    },
}

/// Progress callback; `Break` cancels the download.
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// Downloads what is missing of a model and returns its folder in the cache.
///
/// An interrupted download resumes where it stopped. Contents are checked against the hashes that the
/// hub reports, and those that lie in the cache against their names there, once for each file. Files:
/// `config.json`, `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`,
/// `generation_config.json` and `chat_template.jinja` as far as the repository has them, and
/// `model.safetensors` or the shards of its index.
///
/// # Errors
/// See [`HubError`]; in offline mode, if the cache does not hold the whole model.
#[cfg(feature = "hub")]
pub fn fetch(
    model: &ModelId,
    config: &HubConfig,
    on_progress: &mut OnProgress<'_>,
) -> Result<Snapshot, HubError> {
    let cache = cache::ModelCache::new(model, config);
    let known = RefCell::new(content::Known::read(config.memory.clone()));
    let mut whole = None;
    if config.offline || model.is_commit() {
        match cache.whole_snapshot() {
            Ok(snapshot) => {
                let checked = content::check_snapshot(&snapshot.folder, &known, &mut |file| {
                    download::tell(model, Progress::Asking { file }, file, on_progress)
                });
                match checked {
                    // Downloaded again below.
                    Err(HubError::Damaged { .. }) if !config.offline => {}
                    Err(error) => return Err(error),
                    Ok(()) if config.offline || cache.is_complete(&snapshot.commit) => {
                        return Ok(snapshot);
                    }
                    // Who made it may have left a small file out.
                    Ok(()) => whole = Some(snapshot),
                }
            }
            Err(missing) if config.offline => {
                return Err(HubError::Offline {
                    model: model.clone(),
                    missing,
                    cache: config.cache.clone(),
                });
            }
            Err(_) => {}
        }
    }
    let client = http::Client::new(model, config)?;
    let listing = match (listing::read(&client, &cache, on_progress), whole) {
        (Ok(listing), _) => listing,
        (Err(error @ HubError::Connection { .. }), Some(snapshot)) => {
            tracing::warn!("{error}; the copy in the cache may lack small files");
            return Ok(snapshot);
        }
        (Err(error), _) => return Err(error),
    };
    let download = download::Download {
        client: &client,
        cache: &cache,
        listing: &listing,
        known: &known,
    };
    for file in files::wanted(model, &listing)? {
        download.file(file, on_progress)?;
    }
    if let Some(index) = files::index(&listing) {
        let index = cache.path(&listing.commit, index);
        for shard in files::shards(&index)? {
            download.file(&shard, on_progress)?;
        }
    }
    // Last, so that an offline run never sees half of a snapshot.
    cache.remember_absent(&listing);
    cache.point_to(&listing.commit);
    Ok(Snapshot {
        folder: cache.folder(&listing.commit),
        commit: listing.commit,
    })
}

/// Says that this build cannot download.
///
/// # Errors
/// Always [`HubError::NotBuilt`]: the feature `hub` is off.
#[cfg(not(feature = "hub"))]
pub fn fetch(
    model: &ModelId,
    _config: &HubConfig,
    _on_progress: &mut OnProgress<'_>,
) -> Result<Snapshot, HubError> {
    Err(HubError::NotBuilt {
        model: model.clone(),
    })
}
