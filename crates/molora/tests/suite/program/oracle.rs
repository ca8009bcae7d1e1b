//! The best choice of experts in hindsight, beside what routers decide.

use std::num::NonZeroUsize;
use std::path::Path;

use molora_train::data::Split;
use molora_train::run::{MAX_PATHS, OracleReport, OracleRequest, search_oracle};

use super::language::run;
use super::writer;
use crate::world::{World, small};

fn request() -> OracleRequest {
    OracleRequest {
        split: Split::Test,
        limit: NonZeroUsize::new(6),
        budget: None,
        max_paths: MAX_PATHS,
        beam: NonZeroUsize::MIN,
        device: None,
    }
}

fn search(folder: &Path, request: &OracleRequest) -> OracleReport {
    search_oracle(folder, request, &mut |_| {}).expect("a run with routers")
}

/// One beam for every prefix misses nothing, one alone may; no path is better than the oracle's.
fn check(folder: &Path) {
    let all = search(folder, &request());
    assert!(all.exhaustive);
    let by_beam = |beam: usize| {
        let request = OracleRequest {
            max_paths: 0,
            beam: NonZeroUsize::new(beam).expect("above 0"),
            ..request()
        };
        search(folder, &request)
    };
    let (wide, narrow) = (by_beam(1000), by_beam(1));
    assert!(!wide.exhaustive && !narrow.exhaustive);
    for (task, score) in &all.tasks {
        let mean = score.mean_path.expect("every path was tried");
        assert!(score.oracle <= mean, "{task}: {score:?}");
        assert_eq!(wide.tasks[task].mean_path, None);
        let gap = (wide.tasks[task].oracle - score.oracle).abs();
        assert!(gap < 1e-5, "{task}: {score:?}, {:?}", wide.tasks[task]);
        assert!(narrow.tasks[task].oracle >= score.oracle - 1e-5, "{task}");
        assert_eq!(score.n, 6);
    }
    for layer in &all.layers {
        assert!((layer.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{layer:?}");
    }
}

#[test]
fn the_oracle_of_an_encoder_is_no_worse_than_any_path() {
    let world = World::new();
    let folder = world.train(&small("duo-lora"), "duo");
    check(&folder);
    let within = |budget| {
        let request = OracleRequest {
            budget: Some(budget),
            ..request()
        };
        search_oracle(&folder, &request, &mut |_| {})
    };
    let (nothing, half, all) = (
        within(0.0).expect("to skip all"),
        within(0.5).expect("half"),
        search(&folder, &request()),
    );
    for (task, score) in &all.tasks {
        let [none, half] = [&nothing, &half].map(|report| &report.tasks[task]);
        assert_eq!(none.oracle_cost, Some(0.0), "{task}");
        assert!(half.oracle_cost.expect("a cost") <= 0.5 + 1e-9, "{task}");
        assert!(
            score.oracle <= half.oracle && half.oracle <= none.oracle,
            "{task}"
        );
        assert!(score.routers_cost.expect("a cost") <= 1.0, "{task}");
    }
    let error = within(-0.5).expect_err("no path costs less than nothing");
    assert!(
        error
            .to_string()
            .contains("--budget is -0.5, expected a number from 0 to 1"),
        "{error}"
    );
}

#[test]
fn the_oracle_of_a_model_that_writes_is_no_worse_than_any_path() {
    let world = writer::world();
    run(
        &world,
        writer::recipe("duo-lora", 12),
        &["pets", "sky"],
        "duo",
    );
    check(&world.path("duo"));
}

/// Experts of equal rank have an oracle as well; what has no choice says so.
#[test]
fn the_oracle_is_for_runs_with_a_choice_in_each_layer() {
    let world = World::new();
    let folder = world.train(&small("hydralora"), "hydra");
    let found = search(&folder, &request());
    assert!(
        found
            .tasks
            .values()
            .all(|score| score.oracle_cost.is_none())
    );
    let refused = |name: &str, budget| {
        let folder = world.path(name);
        let request = OracleRequest {
            budget,
            ..request()
        };
        let error = search_oracle(&folder, &request, &mut |_| {}).expect_err("refused");
        error.to_string()
    };
    let message = refused("hydra", Some(0.5));
    assert!(message.contains("experts of equal cost"), "{message}");
    world.train(&small("lora"), "lora");
    let message = refused("lora", None);
    assert!(message.contains("has no routers"), "{message}");
}
