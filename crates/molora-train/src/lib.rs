//! Recipes, data, training loop, evaluation, reports and the `molora` program.
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

pub mod base_model;
pub mod bundled;
pub mod checkpoint;
mod checkpointed;
pub mod cli;
pub mod compare;
pub mod data;
pub mod describe;
pub mod device;
mod error;
pub mod eval;
pub mod event;
pub mod exchange;
pub mod expert;
pub mod grow;
pub mod hub;
pub mod instructions;
pub mod language;
pub mod legs;
pub mod machine;
pub mod optimizer;
pub mod overrides;
pub mod parameters;
pub mod recipe;
pub mod report;
pub mod run;
mod setup;
pub mod stage;
pub mod step;
mod task_loss;
pub mod trainer;
mod transform;
pub mod unseen;

pub use error::TrainError;
pub use recipe::Recipe;

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
