//! Sizes and choices that go to a fast path beside the tensors.

/// What the shapes of the operands of a fast path do not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct MixShape {
    /// Rank R of an expert.
    pub(super) rank: usize,
    /// The constant factor.
    pub(super) factor: f32,
    /// Whether the base tensor is one, rather than a stand-in.
    pub(super) has_base: bool,
    /// Whether a weight of 0 stands for an expert that was not selected, and has no gradient.
    pub(super) is_selection: bool,
    /// Experts per selected one from which on to leave out the others, on flex.
    pub(super) sparse_ratio: usize,
}
