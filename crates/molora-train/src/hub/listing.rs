//! What a repository holds: the commit of a revision, and its files with their sizes.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Instant;

use serde::Deserialize;

use super::cache::ModelCache;
use super::content::Digest;
use super::download::{tell, with_retries};
use super::http::{Client, answer};
use super::id::is_commit;
use super::interruptible::{Ask, pieces};
use super::{HubError, OnProgress, Progress};

/// A repository at one commit.
pub(super) struct Listing {
    pub(super) commit: String,
    /// Size of each file in bytes, where the hub reports it.
    pub(super) sizes: BTreeMap<String, Option<u64>>,
    /// Hash of each file's content, where the hub reports it.
    pub(super) digests: BTreeMap<String, Digest>,
}

/// The hub's description of a repository: what molora reads of it.
#[derive(Deserialize)]
struct Description {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    /// Of a large file that of its pointer.
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

/// The longest description in bytes: room for some hundred thousand files.
const MAX_LENGTH: u64 = 32 << 20;

/// Asks the hub, a few times if it does not answer.
pub(super) fn read(
    client: &Client<'_>,
    cache: &ModelCache,
    on_progress: &mut OnProgress<'_>,
) -> Result<Listing, HubError> {
    let what = "the list of files";
    let listing = with_retries(client, what, on_progress, |on_progress| {
        let asking = Progress::Asking { file: what };
        let mut go_on = || tell(client.model, asking, what, on_progress);
        (false, ask(client, &mut go_on))
    });
    listing.map_err(|error| match error {
        HubError::Connection { url, problem, .. } if cache.whole_snapshot().is_ok() => {
            HubError::Connection {
                url,
                problem,
                hint: "; the cache holds the model: HF_HUB_OFFLINE=1 uses that",
            }
        }
        error => error,
    })
}

fn ask(client: &Client<'_>, go_on: &mut Ask<'_>) -> Result<Listing, HubError> {
    let begin = Instant::now();
    let (url, response) = client.describe(go_on)?;
    let mut text = Vec::new();
    // Of what is left after unpacking, which may be a thousand times what was sent.
    let body = response.into_body().into_reader().take(MAX_LENGTH + 1);
    let limit = client.config.timeout;
    pieces(&url, body, limit, &mut |piece| {
        text.extend_from_slice(piece.unwrap_or_default());
        if text.len() as u64 > MAX_LENGTH {
            let (url, limit) = (url.clone(), MAX_LENGTH);
            return Err(HubError::Long { url, limit });
        }
        if begin.elapsed() > 3 * limit {
            return Err(HubError::Slow {
                url: url.clone(),
                bytes: text.len() as u64,
                seconds: begin.elapsed().as_secs_f64(),
            });
        }
        go_on()
    })?;
    let found: Description = serde_json::from_slice(&text)
        .map_err(|error| answer(&url, format!("not a repository's description: {error}")))?;
    // It becomes the name of a folder.
    if !is_commit(&found.sha) {
        let text = format!("found sha {:?}, expected 40 hexadecimal digits", found.sha);
        return Err(answer(&url, text));
    }
    let mut listing = Listing {
        commit: found.sha,
        sizes: BTreeMap::new(),
        digests: BTreeMap::new(),
    };
    for file in found.siblings {
        let hash = match file.lfs {
            Some(lfs) => lfs.sha256,
            None => file.blob_id,
        };
        if let Some(hash) = hash {
            let digest = Digest::new(&hash).ok_or_else(|| {
                let name = &file.rfilename;
                answer(
                    &url,
                    format!("found hash {hash:?} of {name}, expected 40 or 64 digits"),
                )
            })?;
            listing.digests.insert(file.rfilename.clone(), digest);
        }
        listing.sizes.insert(file.rfilename, file.size);
    }
    Ok(listing)
}
