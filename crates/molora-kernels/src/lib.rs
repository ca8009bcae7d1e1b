//! Tensor operations with their own backward pass, and seeded random draws, for molora.
pub mod random;
