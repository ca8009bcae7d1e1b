//! Recipes, data, training loop, evaluation and reports; the program `molora` is built on it.
//!
//! A [`Recipe`] is data: which layers get which experts, router and gate, which terms the
//! objective has, and which stages train what. [`run::train`] takes a recipe, a base model and task
//! folders, and leaves a run folder behind; [`run::evaluate_run`] reads it back.
//!
//! ```
//! use molora_train::recipe;
//!
//! let samora = recipe::find("samora").expect("a recipe of that name");
//! let text = samora.to_toml();
//! assert_eq!(recipe::Recipe::from_toml(&text, "samora.toml").expect("its own text"), samora);
//! ```

pub mod base;
pub mod collective;
pub mod compare;
pub mod data;
mod error;
pub mod eval;
pub mod exchange;
pub mod generate;
pub mod grow;
pub mod guide;
pub mod hub;
pub mod model;
pub mod predict;
pub mod recipe;
pub mod report;
pub mod run;
pub mod store;
pub mod suite;
pub mod train;
pub mod unseen;
pub mod verify;

pub use error::{GrowthProblem, RunProblem, TrainError};
pub use recipe::Recipe;

/// Compiles the examples of the repository's README, and of this crate's.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../README.md")]
pub struct Readme;
