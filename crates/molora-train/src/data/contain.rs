//! Work on files that may be made to hurt: programs in templates, packed data, foreign formats.
//!
//! It runs on a thread of its own, so that what no library counts is bounded from outside: a panic
//! becomes an error, and the work is given up when it takes too long or the process grows too much
//! meanwhile. The thread of work that was given up keeps running until it ends by itself, or the program
//! does.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long work runs before the first check, and between checks.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const NEXT_LOOK: Duration = Duration::from_millis(2);

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread works on a file whose panics become errors. A program whose panic hook stays
/// silent meanwhile shows its user that error alone.
pub fn is_contained() -> bool {
    CONTAINED.get()
}

/// What work may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Stack of its thread in bytes.
    pub(super) stack: usize,
    /// How much the process may grow meanwhile, in bytes.
    pub(super) memory: u64,
    /// How long it may compute, and [`PATIENCE`] times as long by the clock.
    pub(super) time: Duration,
}

/// On a machine that does other work too, a thread waits for much longer than it computes.
const PATIENCE: u32 = 60;

/// Runs work within bounds; the error says which it broke, as in "takes more than 9 s".
pub(super) fn run<T: Send + 'static>(
    bounds: Bounds,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let (tell_place, place) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("contained".into());
    let started = thread.stack_size(bounds.stack).spawn(move || {
        let _ = tell_place.send(std::fs::read_link("/proc/thread-self").ok());
        // Nobody waits any more if the work was given up.
        let _ = sender.send(contain(work));
    });
    started.map_err(|error| format!("cannot be read: {error}"))?;
    let begin = Instant::now();
    let (mut before, mut look) = (None, FIRST_LOOK);
    let mut thread: Option<PathBuf> = None;
    loop {
        match receiver.recv_timeout(look) {
            Ok(result) => return result.map_err(|reason| format!("is broken: {reason}")),
            Err(RecvTimeoutError::Disconnected) => return Err("is broken".into()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        look = NEXT_LOOK;
        let memory = memory();
        let before = *before.get_or_insert(memory);
        if memory.saturating_sub(before) > bounds.memory {
            let limit = bounds.memory >> 20;
            return Err(format!("takes more than {limit} MiB of memory"));
        }
        thread = thread.or_else(|| place.try_recv().ok().flatten());
        let computed = thread.as_deref().and_then(processor_time);
        let by_clock = begin.elapsed();
        if computed.unwrap_or(by_clock) > bounds.time || by_clock > PATIENCE * bounds.time {
            return Err(format!("takes more than {} s", bounds.time.as_secs()));
        }
    }
}

/// Makes a panic an error, the first line of its text.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    result.map_err(|payload| {
        let owned = payload.downcast_ref::<String>().map(String::as_str);
        let reason = owned.or_else(|| payload.downcast_ref::<&str>().copied());
        let reason = reason.and_then(|reason| reason.lines().next());
        reason.unwrap_or("no reason given").to_owned()
    })
}

/// How long a thread, by its place in `/proc`, has computed, where the system reports it.
fn processor_time(thread: &Path) -> Option<Duration> {
    let place = Path::new("/proc").join(thread).join("schedstat");
    let times = std::fs::read_to_string(place).ok()?;
    let nanoseconds = times.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

/// Memory of the process in bytes where the system reports it; else 0, and only time is a bound.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a bound of memory: that of the process is watched, and other tests take of it.
    const BOUNDS: Bounds = Bounds {
        stack: 1 << 20,
        memory: u64::MAX,
        time: Duration::from_secs(1),
    };

    #[test]
    fn work_within_bounds_gives_its_result() {
        assert_eq!(run(BOUNDS, || 5), Ok(5));
    }

    #[test]
    fn a_panic_is_an_error() {
        let broken = || -> usize {
            assert!(is_contained());
            [1, 2][std::hint::black_box(7)]
        };
        let error = run(BOUNDS, broken).expect_err("a panic");
        assert!(
            error.starts_with("is broken: index out of bounds"),
            "{error}"
        );
        assert!(!is_contained());
    }

    /// As it does on a machine whose processors are taken.
    #[cfg(target_os = "linux")]
    #[test]
    fn work_may_wait_for_longer_than_it_may_compute() {
        let waits = || std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(run(BOUNDS, waits), Ok(()));
    }

    #[test]
    fn work_that_takes_too_much_is_given_up() {
        let slow = || {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(60) {
                std::hint::spin_loop();
            }
        };
        assert_eq!(run(BOUNDS, slow), Err("takes more than 1 s".into()));
        #[cfg(target_os = "linux")]
        {
            let large = || {
                for _ in 0..200 {
                    std::mem::forget(std::hint::black_box(vec![7_u8; 2 << 20]));
                    std::thread::sleep(Duration::from_millis(3));
                }
            };
            let expected = Err("takes more than 100 MiB of memory".into());
            let bounds = Bounds {
                memory: 100 << 20,
                ..BOUNDS
            };
            assert_eq!(run(bounds, large), expected);
        }
    }
}
