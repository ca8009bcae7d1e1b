//! Losses of tasks that do not count alike.

use std::sync::atomic::AtomicBool;

use molora_train::recipe::Recipe;
use molora_train::report::{StepRecord, read_steps};
use molora_train::run::{Finished, Request, train};

use super::writer;
use crate::world::{World, assert_same_run, resume_to_end, small, train_until};

fn trained(request: &Request) -> (Finished, Vec<StepRecord>) {
    let run = train(request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    let steps = read_steps(&request.out.join("steps.jsonl")).expect("whole records");
    (run, steps)
}

/// A recipe with these weights, whose batches hold all tasks, without auxiliary terms.
fn weighted(mut recipe: Recipe, weights: &[(&str, f64)]) -> Recipe {
    let weights = weights
        .iter()
        .map(|&(task, weight)| (task.to_owned(), weight));
    recipe.data.task_weights = weights.collect();
    recipe.data.sampling.mixed = true;
    recipe.objective.terms.clear();
    // Each micro-batch draws masks of its own.
    recipe.adapter.bank.dropout = 0.0;
    recipe.adapter.bank.weight_dropout = 0.0;
    recipe
}

/// The requests for a recipe on an encoder and on a decoder, which have a task `pets` and another.
fn requests(world: &World, weights: [f64; 2], out: &str) -> [(Request, &'static str); 2] {
    let of = |other| [("pets", weights[0]), (other, weights[1])];
    let tasks = ["pets", "weather"].map(String::from).to_vec();
    let encoder = Request {
        tasks: Some(tasks),
        ..world.request(
            weighted(small("lora"), &of("weather")),
            &format!("{out}-encoder"),
        )
    };
    let recipe = weighted(writer::recipe("lora", 6), &of("sums"));
    let decoder = writer::request(world, recipe, &["pets", "sums"], &format!("{out}-decoder"));
    [(encoder, "weather"), (decoder, "sums")]
}

#[test]
fn equal_weights_are_a_run_without_them() {
    let world = writer::world();
    let without = requests(&world, [1.0, 1.0], "without").map(|(mut request, _)| {
        request.recipe.data.task_weights.clear();
        request
    });
    let equal = requests(&world, [0.1, 0.1], "equal");
    for (without, (equal, _)) in without.iter().zip(&equal) {
        let (losses, found) = (trained(without), trained(equal));
        let of = |steps: &[StepRecord]| steps.iter().map(|step| step.loss).collect::<Vec<_>>();
        assert_eq!(of(&losses.1), of(&found.1));
        assert_eq!(losses.0.eval, found.0.eval);
        assert!(found.0.summary.task_weights.is_empty());
    }
}

#[test]
fn a_weight_multiplies_the_loss_of_its_task() {
    let world = writer::world();
    let equal = requests(&world, [1.0, 1.0], "equal");
    let heavy = requests(&world, [3.0, 1.0], "heavy");
    for ((equal, other), (heavy, _)) in equal.into_iter().zip(heavy) {
        let rows = heavy.recipe.data.sampling.batch_size as f64;
        let mut checkpointed = heavy.clone();
        checkpointed.out = heavy.out.with_extension("checkpointed");
        checkpointed.recipe.stages[0].gradient_checkpointing = true;
        checkpointed.recipe.stages[0].micro_batch_size = 5;
        let (_, equal) = trained(&equal);
        let (run, steps) = trained(&heavy);
        let shown = &run.summary.task_weights;
        assert_eq!((shown["pets"], shown[other]), (1.5, 0.5));
        // Before the first update the tasks' own losses are those of any weights.
        let (first, before) = (&steps[0], &equal[0]);
        for (task, loss) in &first.tasks {
            assert!((loss - before.tasks[task]).abs() < 1e-6, "{task}");
        }
        let (pets, others) = (first.tasks["pets"], first.tasks[other]);
        // So many rows of the batch are of pets.
        let count = rows * (before.task_loss - others) / (pets - others);
        let expected = (1.5 * count * pets + 0.5 * (rows - count) * others) / rows;
        assert!(
            (first.task_loss - expected).abs() < 1e-5,
            "{} {expected}",
            first.task_loss
        );
        assert_eq!(first.loss, first.task_loss);
        assert_ne!(first.gradient_norm, before.gradient_norm);
        let (_, again) = trained(&checkpointed);
        for (step, again) in steps.iter().zip(&again) {
            assert!(
                (step.loss - again.loss).abs() < 1e-4,
                "{} {}",
                step.loss,
                again.loss
            );
        }
    }
}

#[test]
fn a_stopped_run_goes_on_with_its_weights() {
    let world = writer::world();
    let [(whole, _), _] = requests(&world, [3.0, 1.0], "whole");
    trained(&whole);
    let [(cut, _), _] = requests(&world, [3.0, 1.0], "cut");
    train_until(&cut, 3);
    resume_to_end(&cut.out);
    assert_same_run(&cut.out, &whole.out);
}

/// Experts that are trained alone have one task each, whose weight is relative to nothing.
#[test]
fn weights_leave_experts_that_train_alone_as_they_are() {
    let world = World::new();
    let losses = |weights: &[(&str, f64)], out: &str| {
        let mut recipe = weighted(small("moa"), weights);
        recipe.data.sampling.mixed = false;
        let (_, steps) = trained(&world.request(recipe, out));
        let alone = steps.into_iter().filter(|step| step.expert.is_some());
        alone.map(|step| step.loss).collect::<Vec<_>>()
    };
    let plain = losses(&[], "plain");
    assert!(!plain.is_empty());
    assert_eq!(losses(&[("pets", 5.0)], "heavy"), plain);
}

#[test]
fn weights_that_cannot_be_are_refused() {
    let world = World::new();
    for (weights, expected) in [
        (
            [("law", 2.0)],
            "data.task_weights names the task `law`, expected of ",
        ),
        (
            [("pets", 0.0)],
            "data.task_weights.pets is 0, expected a number from 1e-9 to 1e9",
        ),
        (
            [("pets", f64::NAN)],
            "data.task_weights.pets is NaN, expected a number from",
        ),
    ] {
        let request = world.request(weighted(small("lora"), &weights), "refused");
        let error = train(&request, &AtomicBool::new(false), &mut |_| {}).expect_err("refused");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!world.path("refused").exists());
    }
}
