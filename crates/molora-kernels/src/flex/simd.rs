//! Choice of the instruction set at run time.

use pulp::{Arch, Simd, WithSimd};

/// Runs a closure compiled for the best instruction set of this processor.
///
/// The closure must carry `#[inline(always)]`, and so must what it calls: only code that is inlined
/// into it is compiled for the instruction set.
pub(crate) fn vectorised(run: impl FnMut()) {
    Arch::new().dispatch(Run(run));
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
