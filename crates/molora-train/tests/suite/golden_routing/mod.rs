//! Routing of PHATGOOSE, GLIDER, AT-MoE and Mixture-of-LoRAs against their equations in float64:
//! outputs of a site, weights, choices and gradients, for every variant of the cases; and the adapter
//! files of their scorers.
//!
//! Sites are made from the recipes, as a user's are. Scalings that differ by expert are multiplied
//! into `B`, since a bank has one; the layers of Mixture-of-LoRAs' case are no transformer, so their
//! stack and the rules that reconcile its routers are put together here. Not compared: `objective`,
//! the sum of two things that are. The bundled `moa` holds only some of the case's training variants,
//! to be small.

mod files;
mod grouped;
mod layers;
mod prototype;
pub(crate) mod site;
