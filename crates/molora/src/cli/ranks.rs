//! Programs that are ranks of one run.

use molora_train::collective::{Collective, Local};

/// Variables in which Open MPI, MPICH (and Slurm's PMI), and Slurm's PMIx say how many ranks there are.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// How many ranks the program was started as, as far as the environment says.
fn started_ranks() -> usize {
    let sizes = SIZES.iter().filter_map(|name| std::env::var(name).ok());
    let sizes = sizes.filter_map(|size| size.parse().ok());
    sizes.max().unwrap_or(1)
}

/// Calls `run` on this rank; where `mpirun` or `srun` has started none but this, it is the only one.
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
    let ranks = super::mpi::Mpi::start()?;
    let result = run(&ranks);
    if let Err(error) = &result
        && !is_of_all(error)
    {
        let text = super::terminal::line(&crate::one_line(error));
        super::say(&format!("error: rank {}: {text}", ranks.rank()));
        ranks.abort();
    }
    result
}

#[cfg(not(feature = "mpi"))]
fn on_mpi<T>(
    ranks: usize,
    _: impl FnOnce(&dyn Collective) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    anyhow::bail!(
        "this is one of {ranks} ranks, but this molora is built without MPI: install it with \
         `--features mpi`, or start one process"
    )
}

/// Whether all ranks have the error and end by themselves.
#[cfg(feature = "mpi")]
fn is_of_all(error: &anyhow::Error) -> bool {
    use molora_train::TrainError;
    use molora_train::collective::CollectiveError as Problem;
    match error.downcast_ref::<TrainError>() {
        Some(TrainError::Interrupted { .. } | TrainError::NotFinite { .. }) => true,
        Some(TrainError::Collective(problem)) => matches!(
            problem,
            Problem::Differs { .. } | Problem::Unseen { .. } | Problem::TooMany { .. }
        ),
        _ => false,
    }
}
