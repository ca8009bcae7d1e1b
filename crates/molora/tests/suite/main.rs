//! Whole runs, through the library and through the program: one binary, which links burn once.

mod exchange;
#[cfg(feature = "hub")]
mod hub;
mod program;
#[cfg(feature = "serve")]
mod serve;
mod world;
