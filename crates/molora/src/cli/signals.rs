//! Signals that ask the program to end.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown};

/// Ctrl-C, SIGTERM, which Slurm, Docker and `timeout` send, and SIGUSR1, which `mpirun` passes on and Slurm can send
/// before a job's time is over, set the flag: the work ends after the current step with a checkpoint. A second one ends the
/// program at once.
pub(super) fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    #[cfg(unix)]
    return flag_of(&[SIGINT, SIGTERM, signal_hook::consts::SIGUSR1]);
    #[cfg(not(unix))]
    flag_of(&[SIGINT, SIGTERM])
}

/// Ctrl-C sets the flag, and where it is set already ends the program.
pub(super) fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    flag_of(&[SIGINT])
}

fn flag_of(signals: &[i32]) -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for &signal in signals {
        // In this order: the first ends the program if the flag is set, the second sets it.
        register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))?;
        register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}
