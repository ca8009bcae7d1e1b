//! What a repository holds: the commit of a revision, and its files with their sizes.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::cache::ModelCache;
use super::download::patiently;
use super::http::{Client, answer, connection};
use super::id::is_commit;
use super::{HubError, OnProgress};

/// A repository at one commit.
pub(super) struct Listing {
    pub(super) commit: String,
    /// Size of each file in bytes, where the hub tells it.
    pub(super) sizes: BTreeMap<String, Option<u64>>,
}

/// The hub's description of a repository: what molora reads of it.
#[derive(Deserialize)]
struct Description {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

/// Asks the hub, a few times if it does not answer.
pub(super) fn read(
    client: &Client<'_>,
    cache: &ModelCache,
    on_progress: &mut OnProgress<'_>,
) -> Result<Listing, HubError> {
    let what = "the list of files";
    let listing = patiently(client, what, on_progress, |_| (false, ask(client)));
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

fn ask(client: &Client<'_>) -> Result<Listing, HubError> {
    let (url, mut response) = client.describe()?;
    let text = response.body_mut().read_to_string();
    let text = text.map_err(|error| connection(&url, error))?;
    let found: Description = serde_json::from_str(&text)
        .map_err(|error| answer(&url, format!("not a repository's description: {error}")))?;
    // It becomes the name of a folder.
    if !is_commit(&found.sha) {
        let text = format!("found sha {:?}, expected 40 hexadecimal digits", found.sha);
        return Err(answer(&url, text));
    }
    let sizes = found.siblings.into_iter();
    Ok(Listing {
        commit: found.sha,
        sizes: sizes.map(|file| (file.rfilename, file.size)).collect(),
    })
}
