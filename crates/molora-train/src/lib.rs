//! Train, evaluate and compare mixtures of LoRA experts: recipes, data, loop, reports and the molora program.

pub mod data;
pub mod eval;

pub mod report;
