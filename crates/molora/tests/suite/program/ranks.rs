//! Runs that several ranks compute: the same as by one, whatever their number. Ranks are threads here.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use molora_train::TrainError;
use molora_train::collective::{Collective, CollectiveError, on_threads};
use molora_train::compare::{TunedKey, Tuning, compare, compare_on, run_folder};
use molora_train::recipe::Recipe;
use molora_train::run::{
    EvalOptions, Event, Request, ResumeOptions, ScoredRecords, evaluate_other, evaluate_run,
    evaluate_run_by, resume_on, train_on,
};

use super::compare::request as comparison;
use super::writer;
use crate::world::{World, assert_same_run, small};

/// Batches of eight rows in micro-batches of one size.
pub(super) fn in_micro_batches(mut recipe: Recipe, rows: usize) -> Recipe {
    recipe.data.sampling.batch_size = 8;
    for stage in &mut recipe.stages {
        stage.micro_batch_size = rows;
    }
    recipe
}

/// Trains on so many ranks; all of them have to end well.
pub(super) fn train_on_ranks(request: &Request, ranks: usize) {
    let ended = on_threads(ranks, |rank| {
        train_on(request, rank, &AtomicBool::new(false), &mut |_| {}).map(drop)
    });
    for (rank, ended) in ended.into_iter().enumerate() {
        ended.unwrap_or_else(|error| panic!("rank {rank} of {ranks}: {error}"));
    }
}

/// Trains a request on 1 to 4 ranks, and compares every file.
pub(super) fn assert_same_on_ranks(request: &Request) {
    let of = |ranks: usize| Request {
        out: request.out.with_file_name(format!("ranks-{ranks}")),
        ..request.clone()
    };
    train_on_ranks(&of(1), 1);
    for ranks in 2..=4 {
        train_on_ranks(&of(ranks), ranks);
        assert_same_run(&of(ranks).out, &of(1).out);
    }
}

#[test]
fn any_number_of_ranks_gives_the_same_run() {
    for name in ["samora", "mosld", "moa", "phatgoose", "mixlora"] {
        let world = World::new();
        let recipe = in_micro_batches(small(name), 2);
        assert_same_on_ranks(&world.request(recipe, "run"));
    }
}

/// Five micro-batches are no power of two, and not as many for every rank.
#[test]
fn a_decoder_with_packed_texts_is_the_same_on_any_number_of_ranks() {
    let world = writer::world();
    let mut recipe = in_micro_batches(writer::recipe("samora", 12), 2);
    recipe.data.sampling.batch_size = 10;
    recipe.data.writing.packing = true;
    assert_same_on_ranks(&writer::request(&world, recipe, &["pets", "sums"], "run"));
}

fn stop_after(step: usize, stop: &AtomicBool) -> impl FnMut(Event<'_>) + '_ {
    move |event| {
        if let Event::Step(record, _) = event
            && record.step == step
        {
            stop.store(true, Ordering::SeqCst);
        }
    }
}

/// One rank of three alone hears a signal, and two go on: the run is as by one.
pub(super) fn assert_goes_on_by_others(recipe: Recipe) {
    let world = World::new();
    let whole = world.request(recipe.clone(), "whole");
    train_on_ranks(&whole, 1);
    let stopped = world.request(recipe, "stopped");
    let ended = on_threads(3, |rank| {
        let stop = AtomicBool::new(false);
        let mut listen = stop_after(4, &stop);
        let mut on_event = |event: Event<'_>| {
            if rank.rank() == 2 {
                listen(event);
            }
        };
        train_on(&stopped, rank, &stop, &mut on_event).map(drop)
    });
    for ended in ended {
        assert!(
            matches!(ended, Err(TrainError::Interrupted { step: 4, .. })),
            "{ended:?}"
        );
    }
    let ended = on_threads(2, |rank| {
        let (part, stop) = (ResumeOptions::default(), AtomicBool::new(false));
        resume_on(&stopped.out, &part, rank, &stop, &mut |_| {}).map(drop)
    });
    assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    assert_same_run(&stopped.out, &whole.out);
}

#[test]
fn a_run_is_resumed_by_another_number_of_ranks() {
    assert_goes_on_by_others(in_micro_batches(small("hydralora"), 2));
}

fn refused(ranks: usize, run: impl Fn(usize) -> Request + Sync) -> Vec<String> {
    let ended = on_threads(ranks, |rank| {
        let request = run(rank.rank());
        train_on(&request, rank, &AtomicBool::new(false), &mut |_| {}).map(drop)
    });
    let text = |ended: Result<(), TrainError>| ended.expect_err("a misuse").to_string();
    ended.into_iter().map(text).collect()
}

#[test]
fn ranks_that_do_not_fit_together_are_refused_on_all_of_them() {
    let world = World::new();
    let recipe = in_micro_batches(small("lora"), 2);
    let many = refused(9, |_| world.request(recipe.clone(), "many"));
    let expected = "9 ranks share batches of 8 rows, expected at most one rank for each row of \
                    data.sampling.batch_size";
    assert!(many.iter().all(|text| text == expected), "{many:?}");

    let others = refused(3, |rank| {
        let mut recipe = recipe.clone();
        if rank == 1 {
            recipe.adapter.bank.rank += 1;
        }
        world.request(recipe, "others")
    });
    let expected = "rank 1 has another recipe than rank 0: all ranks have to be started alike, with the same files";
    assert!(others.iter().all(|text| text == expected), "{others:?}");
    for name in ["many", "others"] {
        assert!(
            !world.path(name).exists(),
            "{name}: a run that does not begin leaves nothing"
        );
    }
}

#[test]
fn a_run_that_a_rank_does_not_see_is_not_gone_on_with() {
    let world = World::new();
    let seen = world.path("model");
    let ended = on_threads(2, |rank| {
        let folder = if rank.rank() == 0 {
            &seen
        } else {
            Path::new("nowhere")
        };
        let (part, stop) = (ResumeOptions::default(), AtomicBool::new(false));
        resume_on(folder, &part, rank, &stop, &mut |_| {}).map(drop)
    });
    for ended in ended {
        let error = ended.expect_err("no run");
        let unseen = matches!(
            &error,
            TrainError::Collective(CollectiveError::Unseen { .. })
        );
        assert!(unseen, "{error}");
    }
}

/// Every rank gets the scores that one process gives, of a run's own tasks and of others.
#[test]
fn an_evaluation_is_shared_by_ranks() {
    let world = writer::world();
    let recipe = in_micro_batches(writer::recipe("samora", 4), 2);
    let request = writer::request(&world, recipe, &["pets", "sums"], "run");
    train_on_ranks(&request, 1);
    let alone = evaluate_run(&request.out, None, None).expect("a finished run");
    let names = ["sums".to_owned()];
    let options = EvalOptions::default();
    let other = evaluate_other(&request.out, &names, &options, &mut |_| {}).expect("scored");
    for ranks in [2, 3] {
        let found = on_threads(ranks, |rank| {
            let options = EvalOptions {
                collective: rank,
                ..EvalOptions::default()
            };
            let own = evaluate_run_by(&request.out, &options, &mut |_| {}).expect("scored");
            let other = evaluate_other(&request.out, &names, &options, &mut |_| {});
            (own, other.expect("scored"))
        });
        for found in found {
            assert_eq!(found, (alone.clone(), other.clone()), "{ranks} ranks");
        }
    }
}

#[test]
fn ranks_that_score_different_records_are_refused() {
    let world = World::new();
    train_on_ranks(&world.request(in_micro_batches(small("lora"), 2), "run"), 1);
    let found = on_threads(2, |rank| {
        let options = EvalOptions {
            scored: ScoredRecords {
                limit: NonZeroUsize::new(3 + rank.rank()),
                ..ScoredRecords::default()
            },
            collective: rank,
            ..EvalOptions::default()
        };
        evaluate_run_by(&world.path("run"), &options, &mut |_| {}).map(drop)
    });
    for found in found {
        let text = found.expect_err("other records").to_string();
        assert!(
            text.starts_with("rank 1 has another record than rank 0"),
            "{text}"
        );
    }
}

/// Runs and trials are dealt to ranks, and to groups of them; every rank gets the result that one process has.
#[test]
fn a_comparison_is_dealt_to_ranks() {
    let world = World::new();
    let request = |out: &str| {
        let mut request = comparison(&world, out);
        let recipes = request.recipes.into_iter();
        request.recipes = recipes.map(|recipe| in_micro_batches(recipe, 2)).collect();
        request.tune = Some(Tuning {
            steps: Some(2),
            keys: vec![TunedKey::parse("learning_rate=1e-3,1e-2").expect("a key")],
        });
        request
    };
    let alone = request("alone");
    let stop = AtomicBool::new(false);
    let expected = compare(&alone, &stop, &mut |_| {}).expect("compared");
    for (ranks, groups) in [(2, 2), (3, 3), (4, 2)] {
        let shared = request(&format!("ranks-{ranks}"));
        let found = on_threads(ranks, |rank| {
            compare_on(&shared, rank, groups, &stop, &mut |_| {}).expect("compared")
        });
        for found in &found {
            for (found, expected) in found.recipes.iter().zip(&expected.recipes) {
                assert_eq!(found.tasks, expected.tasks, "{ranks} ranks");
                assert_eq!(found.gain, expected.gain, "{ranks} ranks");
            }
        }
        for recipe in ["lora", "samora"] {
            for seed in 0..2 {
                let run = |out: &Path| run_folder(out, recipe, seed);
                assert_same_run(&run(&shared.out), &run(&alone.out));
            }
        }
    }
}

/// What a launcher would start: the first rank alone says so.
#[cfg(not(feature = "mpi"))]
#[test]
fn a_program_without_mpi_is_no_rank() {
    let world = World::new();
    for (size, rank) in [
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("PMI_SIZE", "PMI_RANK"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ] {
        let as_rank = |number: &str| {
            let mut command = world.program(&["eval", "run"]);
            let output = command.env(size, "2").env(rank, number).output();
            output.expect("the program starts")
        };
        let (first, second) = (as_rank("0"), as_rank("1"));
        let errors = String::from_utf8_lossy(&first.stderr);
        assert!(!first.status.success(), "{size}");
        assert!(
            errors.starts_with("error: this is one of 2 ranks") && errors.lines().count() == 1,
            "{errors}"
        );
        assert!(
            second.status.success() && second.stderr.is_empty(),
            "{size}"
        );
    }
}
