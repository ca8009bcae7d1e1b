//! From how many experts on a mixture leaves out those that were not selected.
//!
//! On the CPU backend [`crate::low_rank_mix`] either multiplies the codes of all experts, zeros among
//! them, or adds the rows of the selected ones alone. Both give the same results but for rounding;
//! which is faster depends on the processor.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What two cores of a Zen 5 have.
static RATIO: AtomicUsize = AtomicUsize::new(6);

/// Experts per selected one that are tried, in rising order.
#[cfg(feature = "flex")]
const TRIED: [usize; 8] = [2, 3, 4, 6, 8, 12, 16, 24];

/// Experts per selected one from which on the others are left out.
#[must_use]
pub fn sparse_ratio() -> usize {
    RATIO.load(Ordering::Relaxed)
}

/// Sets [`sparse_ratio`] for the whole program, before anything is computed: results before and after
/// differ in their rounding.
pub fn set_sparse_ratio(ratio: usize) {
    RATIO.store(ratio, Ordering::Relaxed);
}

/// The ratio that suits this processor: the least one tried from which on a forward and backward pass
/// over the selected experts took less time than one over all. Takes about a tenth of a second;
/// without the CPU backend's fast path there is nothing to measure, and the ratio is as it was.
#[must_use]
pub fn measure_sparse_ratio() -> usize {
    #[cfg(feature = "flex")]
    return measure();
    #[cfg(not(feature = "flex"))]
    sparse_ratio()
}

#[cfg(feature = "flex")]
fn measure() -> usize {
    let is_faster = |ratio: &usize| {
        let [dense, sparse] = super::flex::time_mix(*ratio);
        sparse < dense
    };
    // From above, so that one lucky measurement of a small ratio decides nothing.
    let slower = TRIED.iter().rposition(|ratio| !is_faster(ratio));
    let first = slower.map_or(0, |slower| slower + 1);
    TRIED
        .get(first)
        .copied()
        .unwrap_or(2 * TRIED[TRIED.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measured_ratio_is_one_of_those_tried() {
        let ratio = measure_sparse_ratio();
        assert!(TRIED.contains(&ratio) || ratio == 48, "{ratio}");
    }
}
