//! The ranks that make a comparison: which of them do what, and who writes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::agree;
use super::error::CompareError;
use super::plan::{self, Plan};
use super::{COMPARISON, State, state};
use crate::TrainError;
use crate::base::place::clean;
use crate::collective::{self, Collective, CollectiveError, gather_values, group_of};
use crate::store::FolderLock;

/// This rank among those of a comparison.
pub(super) struct Crew<'a> {
    all: &'a dyn Collective,
    group: Box<dyn Collective + 'a>,
    /// Number of the group, and how many there are.
    number: usize,
    count: usize,
}

impl<'a> Crew<'a> {
    /// All ranks in `count` groups.
    pub(super) fn new(all: &'a dyn Collective, count: usize) -> Result<Self, CompareError> {
        let (number, _) = group_of(all.rank(), count, all.world_size());
        Ok(Self {
            all,
            group: all.group(count).map_err(TrainError::from)?,
            number,
            count,
        })
    }

    /// The first rank makes the folder, and holds its lock; the others see it.
    ///
    /// # Errors
    /// On all ranks, if they differ in their plan or one does not see the folder.
    pub(super) fn begin(
        &self,
        plan: &Plan,
        folder: &Path,
    ) -> Result<Option<FolderLock>, CompareError> {
        let own = toml::to_string(plan).expect("plain data");
        let plans = gather_values(self.all, own).map_err(TrainError::from)?;
        if let Some(rank) = plans.iter().position(|other| *other != plans[0]) {
            let what = "comparison";
            return Err(TrainError::from(CollectiveError::Differs { rank, what }).into());
        }
        let mut lock = None;
        if self.is_first() {
            fs_err::create_dir_all(folder)?;
            lock = Some(FolderLock::take(folder)?);
            clean(folder)?;
            // Another process may have been here just now.
            plan::check_folder(folder)?;
            agree::write_or_agree(plan, folder)?;
        }
        self.all_are_here()?;
        let sees = gather_values(self.all, folder.join(COMPARISON).is_file());
        let sees = sees.map_err(TrainError::from)?;
        match sees.iter().position(|sees| !sees) {
            None => Ok(lock),
            Some(rank) => {
                let folder = folder.to_owned();
                Err(TrainError::from(CollectiveError::Unseen { rank, folder }).into())
            }
        }
    }

    /// Whether this rank is the first of all.
    pub(super) fn is_first(&self) -> bool {
        self.all.rank() == 0
    }

    /// Whether there is no other rank.
    pub(super) fn is_alone(&self) -> bool {
        self.all.world_size() == 1
    }

    /// Whether this rank writes what its group makes.
    pub(super) fn writes(&self) -> bool {
        self.group.rank() == 0
    }

    /// The ranks that compute a run together.
    pub(super) fn group(&self) -> &dyn Collective {
        &*self.group
    }

    /// Whether a run or trial is this group's: number `number` of those of a recipe. Every group gets some of each recipe,
    /// as recipes take different times.
    pub(super) fn does(&self, recipe: usize, number: usize) -> bool {
        (recipe + number) % self.count == self.number
    }

    /// How far a run is, for all ranks of the group alike.
    pub(super) fn state(&self, folder: &Path) -> Result<State, CompareError> {
        let [is_finished, is_unfinished] = self.first_says(|| {
            let state = state(folder);
            [state == State::Finished, state == State::Unfinished]
        })?;
        Ok(match (is_finished, is_unfinished) {
            (true, _) => State::Finished,
            (false, true) => State::Unfinished,
            (false, false) => State::New,
        })
    }

    /// What the group's first rank finds.
    pub(super) fn first_says<const N: usize>(
        &self,
        find: impl FnOnce() -> [bool; N],
    ) -> Result<[bool; N], CompareError> {
        let own = match self.writes() {
            true => find(),
            false => [false; N],
        };
        let found = collective::any(self.group(), own).map_err(TrainError::from)?;
        Ok(found)
    }

    /// Whether any rank of the group has been asked to stop.
    pub(super) fn is_stopped(&self, stop: &AtomicBool) -> Result<bool, CompareError> {
        let own = [stop.load(Ordering::SeqCst)];
        let [is_stopped] = collective::any(self.group(), own).map_err(TrainError::from)?;
        Ok(is_stopped)
    }

    /// Waits for all ranks.
    pub(super) fn all_are_here(&self) -> Result<(), CompareError> {
        Ok(self.all.barrier().map_err(TrainError::from)?)
    }
}
