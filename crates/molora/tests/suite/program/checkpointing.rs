//! Layers that are computed again in the backward pass give the gradients of those that are kept.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use molora_train::recipe;
use molora_train::recipe::Recipe;
use molora_train::report::{StepRecord, read_steps};
use molora_train::run::{Request, train};

use super::writer;
use crate::world::{World, small};

fn steps(folder: &Path) -> Vec<StepRecord> {
    read_steps(&folder.join("steps.jsonl")).expect("whole steps")
}

fn with_groups(mut recipe: Recipe, tasks: &[&str]) -> Recipe {
    if recipe.name == "at-moe" {
        let all = tasks.iter().map(|&task| task.into()).collect();
        *recipe.adapter.task_groups_mut().expect("it has groups") = [("all".into(), all)].into();
    }
    recipe
}

/// Losses, terms and gradient norms of a run with and without checkpointing.
pub(super) fn check(request: &mut Request, what: &str) {
    let mut found = Vec::new();
    for is_on in [false, true] {
        for stage in &mut request.recipe.stages {
            stage.gradient_checkpointing = is_on && stage.transform.is_none();
        }
        request.force = true;
        train(request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
        found.push(steps(&request.out));
    }
    assert_eq!(found[0].len(), found[1].len(), "{what}");
    for (kept, again) in found[0].iter().zip(&found[1]) {
        let at = format!("{what}, step {}", kept.step);
        let close = |kept: f64, again: f64, name: &str| {
            let gap = (kept - again).abs();
            assert!(
                gap <= 2e-4 * kept.abs() + 1e-6,
                "{at}: {name} {kept} {again}"
            );
        };
        close(kept.loss, again.loss, "loss");
        close(kept.gradient_norm, again.gradient_norm, "gradient norm");
        assert_eq!(kept.terms.len(), again.terms.len(), "{at}");
        for (name, value) in &kept.terms {
            close(*value, again.terms[name], name);
        }
    }
}

#[test]
fn an_encoder_learns_the_same() {
    let world = World::new();
    for name in recipe::names() {
        let recipe = with_groups(small(name), &["answer", "pets", "weather"]);
        let mut request = world.request(recipe, "run");
        request.recipe.stages[0].micro_batch_size = 3;
        request.recipe.set_total_steps(12);
        check(&mut request, name);
    }
}

#[test]
fn a_decoder_learns_the_same() {
    let world = writer::world();
    let tasks = ["pets", "sums"];
    for name in ["samora", "mosld", "hydralora", "moa", "at-moe"] {
        let recipe = with_groups(writer::recipe(name, 10), &tasks);
        let mut request = writer::request(&world, recipe, &tasks, "run");
        request.recipe.data.writing.packing = name == "samora";
        check(&mut request, name);
    }
}
