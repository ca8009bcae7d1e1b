//! Training from a recipe as a value: a published method with numbers of one's own, on the small base
//! model and two of the tasks that the repository brings with it.
//!
//! `cargo run --release -p molora-train --example recipe`
#![allow(clippy::print_stdout, reason = "an example shows what it computes")]

use std::sync::atomic::AtomicBool;

use molora_train::base::bundled;
use molora_train::run::{self, Event, Request};
use molora_train::{Recipe, TrainError, recipe};

fn main() -> Result<(), TrainError> {
    let mut hydralora = recipe::find("hydralora")?;
    hydralora.adapter.bank.num_experts = 3;
    hydralora.set_total_steps(20);
    let mine = Recipe {
        name: "hydralora-3".into(),
        ..hydralora
    };
    // A recipe is data: this is the file that `molora train` reads.
    println!("{}", mine.to_toml());

    let out = std::env::temp_dir().join("molora-example");
    let request = Request {
        tasks: Some(vec!["sms_spam".into(), "banking77".into()]),
        force: true,
        ..Request::new(mine, bundled::MODEL, bundled::TASKS, &out)
    };
    let stop = AtomicBool::new(false);
    let finished = run::train(&request, &stop, &mut |event| {
        if let Event::Step(record, _) = event {
            println!("step {}: {:.3}", record.step, record.loss);
        }
    })?;
    for (task, score) in &finished.eval.tasks {
        println!("{task}: {:.3}", score.value);
    }
    Ok(())
}
