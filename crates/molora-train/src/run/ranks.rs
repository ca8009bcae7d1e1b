//! A run that several ranks compute together.
//!
//! All ranks do the same, but for their shares of batches ([`collective`](crate::collective)). Rank 0 has the run folder;
//! the others have folders of their own for what they write, which are removed when they end.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::base::files::copy_into;
use crate::collective::{Collective, CollectiveError, gather_values};
use crate::error::TrainError;
use crate::store::{RUN, RunConfig};

/// Name of the run folder of a rank other than the first.
const OWN: &str = "run";

/// Where a rank writes.
pub(super) struct Place {
    /// Removed when the rank ends.
    _own: Option<TempDir>,
    folder: PathBuf,
}

impl Place {
    /// The place for a new run in `folder`.
    pub(super) fn new(collective: &dyn Collective, folder: &Path) -> Result<Self, TrainError> {
        if collective.rank() == 0 {
            return Ok(Self {
                _own: None,
                folder: folder.to_owned(),
            });
        }
        let own = tempfile::tempdir()?;
        Ok(Self {
            folder: own.path().join(OWN),
            _own: Some(own),
        })
    }

    /// The place for a run that goes on, with what is in `folder`, which every rank has to see.
    ///
    /// # Errors
    /// On all ranks, if one of them does not see the run.
    pub(super) fn of_run(collective: &dyn Collective, folder: &Path) -> Result<Self, TrainError> {
        let place = Self::new(collective, folder)?;
        if collective.world_size() == 1 {
            return Ok(place);
        }
        let sees = gather_values(collective, folder.join(RUN).is_file())?;
        if let Some(rank) = sees.iter().position(|sees| !sees) {
            let folder = folder.to_owned();
            return Err(CollectiveError::Unseen { rank, folder }.into());
        }
        if place._own.is_some() {
            std::fs::create_dir(&place.folder)?;
            copy_into(folder, &place.folder)?;
        }
        // Nothing changes in the folder before all have read it.
        collective.barrier()?;
        Ok(place)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Refuses ranks that would compute different runs.
///
/// # Errors
/// If a rank has another configuration, other data or another base model than rank 0, or there are more ranks than
/// a batch has rows.
pub(super) fn agree(collective: &dyn Collective, config: &RunConfig) -> Result<(), TrainError> {
    let ranks = collective.world_size();
    if ranks == 1 {
        return Ok(());
    }
    let rows = config.recipe.data.sampling.batch_size;
    if ranks > rows {
        return Err(CollectiveError::TooMany { ranks, rows }.into());
    }
    let facts = [
        ("version of molora", config.molora_version.clone()),
        ("recipe", config.recipe.to_toml()),
        ("seed", config.seed.to_string()),
        ("tasks", format!("{:?}", config.tasks)),
        ("model or data", format!("{:?}", config.digests)),
        ("base data type", format!("{:?}", config.base_dtype)),
    ];
    let all = gather_values(collective, facts.clone().map(|(_, fact)| fact).to_vec())?;
    for (rank, own) in all.iter().enumerate() {
        let differs = facts.iter().zip(&all[0]).zip(own);
        let what = differs
            .filter(|((_, first), own)| *first != *own)
            .map(|(((what, _), _), _)| *what)
            .next();
        if let Some(what) = what {
            return Err(CollectiveError::Differs { rank, what }.into());
        }
    }
    Ok(())
}
