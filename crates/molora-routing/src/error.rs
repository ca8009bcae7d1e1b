//! What can be wrong with a router's configuration.

/// An invalid value in a router's configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RoutingError {
    /// More experts are to be selected than there are.
    #[error("top_k {top_k} exceeds num_experts {num_experts}")]
    TopKTooLarge {
        /// Configured number of selected experts.
        top_k: usize,
        /// Number of experts.
        num_experts: usize,
    },
    /// No expert would be selected.
    #[error("top_k is 0, expected at least 1")]
    TopKZero,
    /// A temperature that would divide by zero or flip the order.
    #[error("temperature is {0}, expected a finite number above 0")]
    Temperature(f64),
    /// A width of zero.
    #[error("task_width is 0, expected at least 1")]
    TaskWidth,
}
