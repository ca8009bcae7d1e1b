//! Programs that are ranks of one run.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use molora_train::collective::{Collective, Local};

/// Variables in which Open MPI, MPICH (and Slurm's PMI), and Slurm's PMIx say how many ranks there are.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// What the program says to its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    /// Everything: the only process, or rank 0.
    Whole,
    /// Warnings.
    Warnings,
    /// Nothing but why it ends all ranks.
    None,
}

/// What the user asked of several ranks and cannot have; all of them know it before they have exchanged anything.
#[derive(Debug)]
pub(super) struct Misuse(pub(super) String);

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

/// Refuses what one process alone does.
pub(super) fn one_process(what: &str, ranks: &dyn Collective) -> Result<(), Misuse> {
    match ranks.world_size() {
        1 => Ok(()),
        count => Err(Misuse(format!(
            "{what} is for one process, and this is one of {count} ranks"
        ))),
    }
}

static VOICE: AtomicU8 = AtomicU8::new(0);

/// What this process says.
pub(super) fn voice() -> Voice {
    match VOICE.load(Ordering::Relaxed) {
        0 => Voice::Whole,
        1 => Voice::Warnings,
        _ => Voice::None,
    }
}

/// Sets what this process says from now on.
pub(super) fn set_voice(voice: Voice) {
    VOICE.store(voice as u8, Ordering::Relaxed);
}

/// How many ranks the program was started as, as far as the environment says.
fn started_ranks() -> usize {
    let sizes = SIZES.iter().filter_map(|name| std::env::var(name).ok());
    let sizes = sizes.filter_map(|size| size.parse().ok());
    sizes.max().unwrap_or(1)
}

/// Calls `run` on this rank; where `mpirun` or `srun` has started none but this, it is the only one. Rank 0 alone speaks.
///
/// # Errors
/// What `run` says; several ranks without MPI in the build. An error that the other ranks do not have ends them all.
pub(super) fn on_ranks<T>(
    run: impl FnOnce(&dyn Collective) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let ranks = started_ranks();
    if ranks < 2 {
        return run(&Local);
    }
    on_mpi(ranks, run)
}

#[cfg(feature = "mpi")]
fn on_mpi<T>(
    _: usize,
    run: impl FnOnce(&dyn Collective) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    use molora_train::base::DeviceSpec;
    use molora_train::collective::Mpi;

    /// Variables in which Open MPI, MPICH and Slurm number the ranks of a machine.
    const LOCAL_RANKS: [&str; 3] = [
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "MPI_LOCALRANKID",
        "SLURM_LOCALID",
    ];
    let local = LOCAL_RANKS.iter().find_map(|name| std::env::var(name).ok());
    DeviceSpec::set_local_rank(local.and_then(|rank| rank.parse().ok()).unwrap_or(0));
    let ranks = Mpi::start(|lost| super::say_anyway(&format!("error: {lost}")))?;
    if ranks.rank() > 0 {
        set_voice(Voice::None);
    }
    let result = run(&ranks);
    match &result {
        Err(error) if !is_of_all(error) => {
            // What all ranks have found is said by the first, which ends the others.
            if ranks.rank() > 0 {
                std::thread::sleep(LATER);
            }
            let text = super::terminal::line(&crate::one_line(error));
            super::say_anyway(&format!("error: rank {}: {text}", ranks.rank()));
            ranks.abort()
        }
        // Rank 0 says it, and has the exit code of all: a launcher ends every rank as soon as one has failed.
        Err(_) if ranks.rank() > 0 => {
            drop(ranks);
            std::process::exit(0)
        }
        _ => result,
    }
}

#[cfg(not(feature = "mpi"))]
fn on_mpi<T>(
    ranks: usize,
    _: impl FnOnce(&dyn Collective) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    /// Variables in which Open MPI, MPICH and Slurm number the ranks.
    const RANKS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"];
    let rank = RANKS.iter().find_map(|name| std::env::var(name).ok());
    // The first one says it for all, and fails for all: a launcher ends every rank as soon as one has failed.
    if rank.is_some_and(|rank| rank != "0") {
        std::process::exit(0);
    }
    anyhow::bail!(
        "this is one of {ranks} ranks, but this molora is built without MPI: install it with \
         `--features mpi`, or start one process"
    )
}

/// How much later than rank 0 another rank says why it ends all of them.
#[cfg(feature = "mpi")]
const LATER: std::time::Duration = std::time::Duration::from_secs(1);

/// Whether all ranks have the error and end by themselves.
#[cfg(feature = "mpi")]
fn is_of_all(error: &anyhow::Error) -> bool {
    use molora_train::TrainError;
    use molora_train::collective::CollectiveError as Problem;
    use molora_train::compare::CompareError;

    let of_training = |error: &TrainError| match error {
        TrainError::Interrupted { .. } | TrainError::NotFinite { .. } => true,
        TrainError::Collective(problem) => matches!(
            problem,
            Problem::Differs { .. } | Problem::Unseen { .. } | Problem::TooMany { .. }
        ),
        _ => false,
    };
    if error.is::<Misuse>() {
        return true;
    }
    match (error.downcast_ref(), error.downcast_ref()) {
        (Some(error), _) => of_training(error),
        (_, Some(CompareError::Train(TrainError::Collective(error)))) => {
            of_training(&TrainError::Collective(error.clone()))
        }
        (_, Some(error)) => matches!(error, CompareError::NoTrial { .. }),
        _ => false,
    }
}
