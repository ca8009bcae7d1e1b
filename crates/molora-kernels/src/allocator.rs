//! An allocator for programs that train.
//!
//! A training step allocates and frees the same large buffers again and again. The system's allocator
//! returns them to the kernel, which then clears every page anew.
//!
//! ```
//! use molora_kernels::allocator::{Allocator, keep_freed_memory};
//!
//! #[global_allocator]
//! static ALLOCATOR: Allocator = Allocator;
//!
//! fn main() {
//!     keep_freed_memory();
//! }
//! ```

pub use mimalloc::MiMalloc as Allocator;

/// Milliseconds until freed memory goes back to the kernel: the name that `mimalloc.h` has for it is
/// `mi_option_purge_delay`. Options keep their numbers from version to version.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// What it is unless the user sets `MIMALLOC_PURGE_DELAY`.
const DEFAULT: std::ffi::c_long = 1000;

/// Lets [`Allocator`] keep what is freed until the program ends. By default it gives back, once a
/// second, whatever is free at that moment, which costs 3 to 4 % of a training step and saves nothing:
/// the next step asks for as much. Does nothing if the user has set `MIMALLOC_PURGE_DELAY`.
pub fn keep_freed_memory() {
    // SAFETY: both functions read and write one number, at any time.
    #[allow(unsafe_code)]
    unsafe {
        if libmimalloc_sys::mi_option_get(PURGE_DELAY) == DEFAULT {
            libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_with_the_default_that_is_replaced() {
        // SAFETY: as above.
        #[allow(unsafe_code)]
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay(), DEFAULT, "another version of mimalloc?");
        keep_freed_memory();
        assert_eq!(delay(), -1);
    }
}
