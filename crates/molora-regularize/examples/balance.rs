//! Terms of an objective on a router of one's own: it sends nearly all tokens to one expert, and a load
//! balance brings it to use all four.
//!
//! `cargo run --release -p molora-regularize --example balance`
#![allow(clippy::print_stdout, reason = "an example shows what it computes")]

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use molora_adapters::{BankConfig, SiteDims};
use molora_kernels::random::{Seed, normal};
use molora_regularize::{ObjectiveConfig, SiteView};
use molora_routing::{RouteInput, RouterConfig, Selection};

const EXPERTS: usize = 4;

/// The terms, as they stand in a recipe.
const OBJECTIVE: &str = r#"[
    { "term": "load_balance", "weight": 1.0 },
    { "term": "router_z_loss", "weight": 0.001 }
]"#;

fn main() -> Result<(), serde_json::Error> {
    let objective: ObjectiveConfig = serde_json::from_str(OBJECTIVE)?;
    let (device, seed) = (Device::default().autodiff(), Seed::new(0));
    // Features that all point one way, so that the router prefers one expert.
    let features = normal([8, 16, 6], 1.0, seed.child("features"), &device) + 2.0;
    let config = RouterConfig {
        selection: Selection::TopK(1),
        ..RouterConfig::default()
    };
    let mut router = config.init(6, EXPERTS, 0, seed.child("router"), &device);
    // Terms about weights would read the site's bank.
    let dims = SiteDims {
        d_input: 6,
        d_output: 6,
    };
    let bank = BankConfig::default().init(dims, seed.child("bank"), &device);

    let mut optimizer = AdamWConfig::new().init();
    for step in 0..=200 {
        let input = RouteInput {
            features: features.clone(),
            mask: Tensor::ones([8, 16], &device),
            tasks: None,
            columns: None,
        };
        let routed = router.route(&input);
        let site = SiteView {
            routed: Some(&routed),
            ..SiteView::of_weights(&bank)
        };
        let losses = objective.evaluate(&[site]);
        if step % 50 == 0 {
            for (name, value) in &losses.terms {
                let value = value.clone().into_scalar::<f32>();
                println!("step {step}: {name} {value:.3}");
            }
        }
        if let Some(total) = losses.total {
            let gradients = GradientsParams::from_grads(total.backward(), &router);
            router = optimizer.step(2e-2, router, gradients);
        }
    }
    Ok(())
}
