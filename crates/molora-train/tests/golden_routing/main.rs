//! Routing of PHATGOOSE, GLIDER, AT-MoE and Mixture-of-LoRAs against their equations in float64:
//! outputs of a site, weights, choices and gradients, for every variant of the cases; and the adapter
//! files of their scorers.
//!
//! What is written out here, since no crate owns it yet: AT-MoE's blend with the general LoRA and
//! its scaling per expert, the domain cross-entropy of Mixture-of-LoRAs, and its stack of layers.
//! Not compared: `objective`, the sum of two things that are. The bundled `moa` holds only some of
//! the case's training variants, to be small.

mod files;
mod grouped;
mod layers;
mod prototype;
mod site;
