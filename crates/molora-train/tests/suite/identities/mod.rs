//! What has to hold for the methods of all recipes, whatever the numbers: identities through a small
//! BERT with random weights, experts, routers and gates.
//!
//! Those that need no recipe stand with their crates: routers alone in `molora-routing`, a MoSLD site
//! in `mosld_site.rs`.

mod banks;
mod experts;
mod methods;
mod parts;
mod rows;
mod small;
