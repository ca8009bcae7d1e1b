//! An operation with a backward of its own: attention over two sequences, one of them padded, and its
//! gradient.
//!
//! `cargo run -p molora-kernels --example attention`
#![allow(clippy::print_stdout, reason = "an example shows what it computes")]

use burn::tensor::{Bool, Device, Tensor};
use molora_kernels::attention;
use molora_kernels::random::{Seed, normal};

fn main() {
    let (device, seed) = (Device::default().autodiff(), Seed::new(0));
    let draw = |name| normal::<3>([2, 3, 8], 1.0, seed.child(name), &device);
    let query = draw("query").require_grad();
    let mask = Tensor::<2, Bool>::from_data([[true, true, true], [true, true, false]], &device);

    // `[B, T, heads * width]` each, here two heads of width 4.
    let mixed = attention(query.clone(), draw("key"), draw("value"), Some(mask), 2);
    println!("mixed: {:?}", mixed.dims());
    let gradients = mixed.sum().backward();
    if let Some(gradient) = query.grad(&gradients) {
        println!("gradient of the queries: {gradient}");
    }
}
