//! Choice of the instruction set at run time.

use pulp::{Arch, Simd, WithSimd};

/// Runs a closure compiled for the best instruction set of this processor.
///
/// The closure must carry `#[inline(always)]`, and so must what it calls: only code that is inlined
/// into it is compiled for the instruction set.
pub(crate) fn vectorised(run: impl FnMut()) {
    arch().dispatch(Run(run));
}

#[cfg(not(test))]
fn arch() -> Arch {
    Arch::new()
}

#[cfg(test)]
fn arch() -> Arch {
    tests::forced().unwrap_or_default()
}

/// Calls the closure by reference. Calling it by value, as `pulp` does with a bare closure, goes
/// through a function that the compiler need not inline.
struct Run<F>(F);

impl<F: FnMut()> WithSimd for Run<F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) {
        (self.0)();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;

    /// The instruction set that all threads use: 1 none, 2 AVX2; the best one otherwise. Other tests
    /// may run meanwhile: whatever is set, their values are the same bits.
    static FORCED: AtomicU8 = AtomicU8::new(0);

    pub(super) fn forced() -> Option<Arch> {
        match FORCED.load(Ordering::Relaxed) {
            1 => Some(Arch::Scalar),
            #[cfg(target_arch = "x86_64")]
            2 => pulp::x86::V3::try_new().map(Arch::V3),
            _ => None,
        }
    }

    /// The results of `run` with the best instruction set, without one, and with AVX2.
    pub(crate) fn on_every_instruction_set<T>(run: impl Fn() -> T) -> [T; 3] {
        [0, 1, 2].map(|forced| {
            FORCED.store(forced, Ordering::Relaxed);
            let result = run();
            FORCED.store(0, Ordering::Relaxed);
            result
        })
    }
}
