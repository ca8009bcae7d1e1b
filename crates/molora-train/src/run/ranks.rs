//! A run that several ranks compute together.
//!
//! All ranks do the same, but for their shares of batches ([`collective`](crate::collective)). Rank 0 has the run folder;
//! the others have folders of their own for what they write, which are removed when they end.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::base::files::copy_into;
use crate::collective::{Collective, CollectiveError, gather_values};
use crate::data::{Split, TokenizedTask};
use crate::error::TrainError;
use crate::store::{RUN, RunConfig, SUMMARY};

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
    same_on_all(collective, &facts)
}

/// Refuses ranks that would score different records, or what different folders have: a share of each would be nobody's
/// score.
///
/// # Errors
/// If a rank has another model or other records than rank 0.
pub(super) fn agree_on_scored(
    collective: &dyn Collective,
    folder: &Path,
    tasks: &[TokenizedTask],
) -> Result<(), TrainError> {
    if collective.world_size() == 1 {
        return Ok(());
    }
    let names = [RUN, SUMMARY, "config.json", "adapter_config.json"];
    let files = names.map(|name| std::fs::read_to_string(folder.join(name)).ok());
    let records = tasks.iter().flat_map(|task| {
        let splits = [Split::Train, Split::Validation, Split::Test];
        let examples = splits.into_iter().flat_map(|split| task.split(split));
        examples.map(|example| &example.ids)
    });
    let mut hasher = DefaultHasher::new();
    records.for_each(|ids| ids.hash(&mut hasher));
    let names: Vec<&str> = tasks.iter().map(|task| &task.name[..]).collect();
    let facts = [
        ("run or model", format!("{files:?}")),
        ("tasks", format!("{names:?}")),
        ("record", hasher.finish().to_string()),
    ];
    same_on_all(collective, &facts)
}

/// Refuses ranks of which one has another fact than rank 0.
fn same_on_all(
    collective: &dyn Collective,
    facts: &[(&'static str, String)],
) -> Result<(), TrainError> {
    let own: Vec<String> = facts.iter().map(|(_, fact)| fact.clone()).collect();
    let all = gather_values(collective, own)?;
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
