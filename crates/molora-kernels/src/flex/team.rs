//! Threads that stay awake between many short parallel sections, as those of a token that is written.
//!
//! Waking a thread of rayon's pool takes as long as a product of one row. Inside of [`together`] the threads of the pool
//! wait for sections without going to sleep, and a section costs two writes that they see.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use rayon::prelude::*;

/// Bytes that a task reads at least where its thread has to be woken: less costs more.
const ASLEEP: usize = 128 * 1024;
/// The same where it is awake.
const AWAKE: usize = 16 * 1024;
/// How often a thread looks for a section before it looks for other work.
const LOOKS: usize = 2000;
/// Most tasks of a section; what a state can hold.
const MOST: usize = u16::MAX as usize;

thread_local! {
    /// The team of a section that this thread may begin.
    static TEAM: Cell<*const Team> = const { Cell::new(ptr::null()) };
}

/// Runs `work`, in which [`for_each`] shares its tasks with threads that wait for them.
///
/// Other parallel work of `work` finds the same threads, a little later.
pub(crate) fn together<T>(work: impl FnOnce() -> T) -> T {
    let helpers = rayon::current_num_threads() - 1;
    if helpers == 0 || !TEAM.get().is_null() {
        return work();
    }
    let team = Team::default();
    rayon::in_place_scope(|scope| {
        (0..helpers).for_each(|_| scope.spawn(|_| team.help()));
        let _end = End(&team);
        TEAM.set(&team);
        work()
    })
}

/// Lets the helpers go, also when `work` panics.
struct End<'a>(&'a Team);

impl Drop for End<'_> {
    fn drop(&mut self) {
        TEAM.set(ptr::null());
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// Whether the other threads are awake.
pub(crate) fn is_together() -> bool {
    !TEAM.get().is_null()
}

/// Runs all tasks in parallel, in any order.
///
/// # Panics
/// If a task does.
pub(crate) fn for_each(tasks: usize, run: impl Fn(usize) + Sync) {
    let team = TEAM.get();
    if tasks == 1 {
        run(0);
    } else if team.is_null() || tasks > MOST {
        (0..tasks).into_par_iter().for_each(&run);
    } else {
        // A task that has sections of its own shares them by the pool.
        TEAM.set(ptr::null());
        // SAFETY: the team outlives `together`, which took the pointer away if it is over.
        unsafe { (*team).section(tasks, &run) };
        TEAM.set(team);
    }
}

/// Runs ranges of columns, of each of which so many bytes are read, in parallel; a multiple of `step` columns each.
pub(crate) fn fill_columns(
    columns: usize,
    step: usize,
    bytes: usize,
    run: impl Fn(Range<usize>) + Sync,
) {
    // Two for each thread that is awake, so that one that comes late does less.
    let (least, parts) = match is_together() {
        true => (AWAKE, 2),
        false => (ASLEEP, 1),
    };
    let share = columns.div_ceil(parts * rayon::current_num_threads());
    let count = share.max(least / bytes.max(1)).next_multiple_of(step);
    for_each(columns.div_ceil(count), |task| {
        run(task * count..columns.min((task + 1) * count));
    });
}

/// One thread that begins sections, and those that help it.
#[derive(Default)]
struct Team {
    /// Number of the section, the next of its tasks, and how many they are: 32, 16 and 16 bits.
    state: AtomicU64,
    /// The closure of the section, and the function that calls it with the number of a task. Both are written before the
    /// section's state.
    closure: AtomicPtr<()>,
    call: AtomicPtr<()>,
    /// Tasks of the section that have ended.
    ended: AtomicUsize,
    is_over: AtomicBool,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Calls the closure that a pointer is to.
///
/// # Safety
/// It must be to an `F`.
unsafe fn call<F: Fn(usize)>(closure: *const (), task: usize) {
    // SAFETY: as promised by the caller.
    unsafe { (*closure.cast::<F>())(task) }
}

impl Team {
    /// Runs all tasks of a section with the others' help.
    fn section<F: Fn(usize) + Sync>(&self, tasks: usize, run: &F) {
        let number = (self.state.load(Ordering::Relaxed) >> 32) + 1;
        self.ended.store(0, Ordering::Relaxed);
        let function: unsafe fn(*const (), usize) = call::<F>;
        self.closure
            .store(ptr::from_ref(run).cast_mut().cast(), Ordering::Relaxed);
        self.call.store(function as *mut (), Ordering::Relaxed);
        self.state
            .store(number << 32 | tasks as u64, Ordering::Release);
        while self.take() {}
        while self.ended.load(Ordering::Acquire) < tasks {
            spin_loop();
        }
        let panic = self.panic.lock().ok().and_then(|mut panic| panic.take());
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Runs a task of the section, if one is left.
    fn take(&self) -> bool {
        let state = self.state.load(Ordering::Acquire);
        let (next, tasks) = (state >> 16 & 0xffff, state & 0xffff);
        if next == tasks {
            return false;
        }
        let closure = self.closure.load(Ordering::Relaxed);
        let function = self.call.load(Ordering::Relaxed);
        let (order, other) = (Ordering::AcqRel, Ordering::Relaxed);
        let taken = state + (1 << 16);
        if self
            .state
            .compare_exchange(state, taken, order, other)
            .is_err()
        {
            // Somebody else has it; there may be more.
            return true;
        }
        // SAFETY: the state has not changed since both were read, so they are those of this section, which does not
        // end, and with it the borrow of the closure, before this task has.
        let result = catch_unwind(AssertUnwindSafe(|| unsafe {
            let function = std::mem::transmute::<*mut (), unsafe fn(*const (), usize)>(function);
            function(closure, next as usize);
        }));
        if let (Err(panic), Ok(mut place)) = (result, self.panic.lock()) {
            place.get_or_insert(panic);
        }
        self.ended.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// Takes tasks until the team is over.
    fn help(&self) {
        let mut looks = 0;
        while !self.is_over.load(Ordering::Acquire) {
            if self.take() {
                looks = 0;
            } else if looks < LOOKS {
                looks += 1;
                spin_loop();
            } else if rayon::yield_now() != Some(rayon::Yield::Executed) {
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads can be started").install(run)
    }

    #[test]
    fn every_task_of_every_section_runs_once() {
        for threads in [1, 2, 5] {
            on_threads(threads, || {
                together(|| {
                    for tasks in [0, 1, 2, 3, 17, 70_000] {
                        let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                        for_each(tasks, |task| {
                            counts[task].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(
                            counts
                                .iter()
                                .all(|count| count.load(Ordering::Relaxed) == 1)
                        );
                    }
                });
            });
        }
    }

    #[test]
    fn many_short_sections_see_what_the_ones_before_wrote() {
        let sum = on_threads(3, || {
            together(|| {
                let numbers: Vec<_> = (0..7).map(AtomicUsize::new).collect();
                for _ in 0..5000 {
                    for_each(7, |task| {
                        let before = numbers[task].load(Ordering::Relaxed);
                        numbers[task].store(before + task, Ordering::Relaxed);
                    });
                }
                numbers
                    .iter()
                    .map(|n| n.load(Ordering::Relaxed))
                    .sum::<usize>()
            })
        });
        assert_eq!(sum, 21 * 5001);
    }

    #[test]
    fn sections_and_teams_within_others_run_too() {
        let count = AtomicUsize::new(0);
        let add = |_| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        on_threads(3, || {
            together(|| {
                together(|| for_each(4, |_| for_each(5, add)));
                (0..6usize)
                    .into_par_iter()
                    .for_each(|_| together(|| for_each(2, add)));
                for_each(3, add);
            });
        });
        assert_eq!(count.load(Ordering::Relaxed), 20 + 12 + 3);
    }

    #[test]
    fn a_task_that_panics_ends_the_section_with_its_panic() {
        let ended = AtomicUsize::new(0);
        let panicked = on_threads(2, || {
            together(|| {
                catch_unwind(AssertUnwindSafe(|| {
                    for_each(8, |task| {
                        assert!(task != 5, "task 5");
                        ended.fetch_add(1, Ordering::Relaxed);
                    });
                }))
            })
        });
        let text = panicked.expect_err("a panic");
        assert_eq!(text.downcast_ref::<&str>(), Some(&"task 5"));
        assert_eq!(ended.load(Ordering::Relaxed), 7);
        // The thread may begin sections again.
        together(|| for_each(2, |_| ()));
    }
}
