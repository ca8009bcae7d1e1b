//! Methods against golden vectors, worked examples and identities: one binary, which links burn once.

mod cases;
mod common;
mod families;
mod golden_banks;
mod golden_cases;
mod golden_feed_forward;
mod golden_goat;
mod golden_layer;
mod golden_lily;
mod golden_losses;
mod golden_merge;
mod golden_methods;
mod golden_mixtures;
mod golden_mosld;
mod golden_precondition;
mod golden_routers;
mod golden_routing;
mod golden_samora;
mod golden_train;
mod golden_wemoe;
mod golden_xlora;
mod identities;
mod mosld_site;
mod portable;
mod samora_site;
