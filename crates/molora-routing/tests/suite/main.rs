//! Routers as a whole: one binary, which links burn once.

mod properties;
mod worked_examples;
