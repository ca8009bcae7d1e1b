//! A router alone: for every token it weighs two of four experts.
//!
//! `cargo run -p molora-routing --example router`
#![allow(clippy::print_stdout, reason = "an example shows what it computes")]

use burn::tensor::{Device, Tensor};
use molora_kernels::random::{Seed, normal};
use molora_routing::{RouteInput, RouterConfig, RoutingError, Selection};

fn main() -> Result<(), RoutingError> {
    let (device, seed) = (Device::default(), Seed::new(0));
    let (width, experts) = (16, 4);
    let config = RouterConfig {
        selection: Selection::TopK(2),
        ..RouterConfig::default()
    };
    config.validate(experts)?;
    // The 0 is the number of tasks, which only routers by task read.
    let router = config.init(width, experts, 0, seed.child("router"), &device);

    // Two sequences of three tokens; the last token of the second one is padding.
    let routed = router.route(&RouteInput {
        features: normal([2, 3, width], 1.0, seed.child("features"), &device),
        mask: Tensor::from_data([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]], &device),
        tasks: None,
        columns: None,
    });
    println!("weights of each token's experts: {}", routed.weights);
    let load = routed.sum_counted(routed.weights.clone()) / routed.num_decisions();
    println!("share of each expert over real tokens: {load}");
    Ok(())
}
