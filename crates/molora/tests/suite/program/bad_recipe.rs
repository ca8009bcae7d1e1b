//! Recipes and options that cannot be used.

use std::fs;

use molora_train::recipe;

use super::refusal::{Mistake, assert_refused, check, check_recipe, nothing};
use crate::world::{World, entries};

/// An objective for recipes that have none.
const KEY_MATCHING: &str = "objective=[{term=\"key_matching\",weight=0.01,within_site=\"mean\",\
                            over_sites=\"sum\"}]";

/// An option at fault.
const fn option(
    name: &'static str,
    arguments: &'static [&'static str],
    expected: &'static [&'static str],
) -> Mistake {
    Mistake {
        name,
        damage: nothing,
        arguments,
        expected,
    }
}

/// A value of the recipe at fault: `--set ASSIGNMENT`, which comes last.
const fn value(
    assignment: &'static [&'static str; 2],
    expected: &'static [&'static str],
) -> Mistake {
    option(assignment[1], assignment, expected)
}

#[test]
fn numbers_out_of_range() {
    check(&[
        value(
            &["--set", "adapter.bank.rank=0"],
            &["adapter.bank: rank is 0, expected at least 1"],
        ),
        value(
            &["--set", "data.task_weights.pets=1e308"],
            &["data.task_weights.pets is", "from 1e-9 to 1e9"],
        ),
        option(
            "a schedule of a new run",
            &["--schedule", "restart"],
            &["--schedule needs --resume and --steps"],
        ),
        value(
            &["--set", "adapter.bank.rank=33"],
            &["adapter.bank: rank 33 exceeds", "32"],
        ),
        value(
            &["--set", "adapter.bank.num_experts=0"],
            &["adapter.bank: num_experts is 0"],
        ),
        value(
            &["--set", "adapter.bank.dropout=1"],
            &["adapter.bank: dropout is 1", "less than 1"],
        ),
        value(
            &["--set", "adapter.bank.dropout=nan"],
            &["adapter.bank: dropout is NaN"],
        ),
        value(
            &["--set", "adapter.bank.scaling={ alpha_over_rank = 0 }"],
            &["adapter.bank: ", "alpha is 0, expected"],
        ),
        value(
            &["--set", "adapter.router.temperature=0"],
            &["adapter.router: temperature is 0"],
        ),
        value(
            &["--set", "adapter.router.temperature=inf"],
            &["adapter.router: temperature is inf"],
        ),
        value(
            &["--set", "adapter.router.selection={ top_k = 4 }"],
            &["adapter.router: top_k 4 exceeds num_experts 3"],
        ),
        value(
            &["--set", "adapter.router.selection={ top_k = 0 }"],
            &["adapter.router: top_k is 0, expected at least 1"],
        ),
        value(
            &["--set", "adapter.gate.width=0"],
            &["adapter.gate: ", "is 0, expected at least 1"],
        ),
        value(
            &["--set", "checkpoint_every=0"],
            &["checkpoint_every is 0, expected at least 1"],
        ),
        value(
            &["--set", "objective.0.weight=nan"],
            &["objective.0.weight is NaN"],
        ),
        value(
            &["--set", "objective.1.weight=-1"],
            &["objective.1.weight is -1"],
        ),
    ]);
}

#[test]
fn stages_out_of_range() {
    check(&[
        option(
            "no steps",
            &["--steps", "0"],
            &["--steps is 0, expected 1 to 1000000000"],
        ),
        value(
            &["--set", "stages.0.optimizer.learning_rate=0"],
            &["stages.0.optimizer.learning_rate is 0, expected a finite number above 0"],
        ),
        value(
            &["--set", "stages.0.optimizer.learning_rate=nan"],
            &["stages.0.optimizer.learning_rate is NaN"],
        ),
        value(
            &["--set", "stages.0.optimizer.learning_rates.heads=-1"],
            &["stages.0.optimizer.learning_rates.heads is -1"],
        ),
        value(
            &["--set", "stages.0.optimizer.beta_2=1"],
            &["stages.0.optimizer.beta_2 is 1"],
        ),
        value(
            &["--set", "stages.0.optimizer.clip_norm=-1"],
            &["stages.0.optimizer.clip_norm is -1"],
        ),
        value(
            &["--set", "stages.0.schedule.warmup=2"],
            &["stages.0.schedule.warmup is 2"],
        ),
        value(
            &["--set", "stages.0.trainable=[]"],
            &["stages.0.trainable is empty"],
        ),
        value(
            &["--set", "stages.0.trainable=[\"base\"]"],
            &["stages.0.trainable has base"],
        ),
        value(&["--set", "stages=[]"], &["stages is empty"]),
    ]);
}

#[test]
fn data_settings_out_of_range() {
    check(&[
        value(
            &["--set", "data.sampling.batch_size=0"],
            &["data.sampling", "batch_size is 0"],
        ),
        value(
            &["--set", "data.sampling.bucket_batches=0"],
            &["data.sampling", "bucket_batches is 0"],
        ),
        value(
            &[
                "--set",
                "data.sampling.strategy={ temperature = { temperature = 0 } }",
            ],
            &["data.sampling", "temperature is 0"],
        ),
        value(
            &["--set", "data.eval_batch_size=0"],
            &["data.eval_batch_size is 0"],
        ),
        value(
            &["--set", "data.max_length=33"],
            &["data.max_length 33 exceeds the model's 32 positions"],
        ),
        value(
            &["--set", "data.max_length=0"],
            &["data.max_length is 0, expected at least 1"],
        ),
        value(
            &["--set", "data.max_length=2"],
            &["max_length 2 leaves no room"],
        ),
    ]);
}

#[test]
fn targets_that_match_nothing() {
    check(&[
        value(
            &["--set", "adapter.targets=[\"qurey\"]"],
            &["target `qurey` matches no linear layer; near names: query"],
        ),
        value(
            &["--set", "adapter.targets=[\"*.nothing\"]"],
            &["target `*.nothing` matches no"],
        ),
        value(
            &["--set", "adapter.targets=[\"regex:(\"]"],
            &["target `regex:(` is not a valid"],
        ),
        value(
            &["--set", "adapter.targets=[\"{query\"]"],
            &["target `{query` is not a valid"],
        ),
        value(
            &["--set", "adapter.targets=[]"],
            &["adapter.targets is empty"],
        ),
    ]);
}

#[test]
fn parts_that_do_not_go_together() {
    check_recipe(
        "lora",
        &[
            value(
                &["--set", KEY_MATCHING],
                &["objective.0: key_matching needs"],
            ),
            value(
                &["--set", "stages.0.trainable=[\"routers\"]"],
                &["stages.0.trainable matches no parameter"],
            ),
            value(
                &["--set", "adapter.router.temperature=1"],
                &["unknown field `router`"],
            ),
        ],
    );
    check(&[
        value(
            &["--set", "adapter.bank.slices=independent"],
            &["adapter.router.route_from is low_rank"],
        ),
        value(
            &["--set", "objective.1.term=orthogonality"],
            &["objective.1: orthogonality is listed twice"],
        ),
    ]);
}

#[test]
fn words_that_nobody_knows() {
    check(&[
        value(
            &["--set", "adapter.bank.rnak=4"],
            &["--set adapter.bank.rnak=4: unknown field `rnak`"],
        ),
        value(
            &["--set", "adaptr.bank.rank=4"],
            &["unknown field `adaptr`", "`adapter`"],
        ),
        value(
            &["--set", "adapter.bank.rank=many"],
            &["--set adapter.bank.rank=many: invalid type"],
        ),
        value(
            &["--set", "adapter.bank.rank=-1"],
            &["--set adapter.bank.rank=-1: invalid value"],
        ),
        value(
            &["--set", "data.sampling.mixed=1"],
            &["--set data.sampling.mixed=1: invalid type"],
        ),
        value(
            &["--set", "stages.1.steps=4"],
            &["no entry `1` in `stages`"],
        ),
        value(&["--set", "adapter.bank.rank"], &["no `=`"]),
        value(
            &["--set", "stages.0.schedule.decay=fast"],
            &["unknown variant `fast`", "`linear`"],
        ),
        option("cuda", &["--device", "cuda"], &["device cuda: "]),
    ]);
    check_recipe(
        "samroa",
        &[option(
            "no such recipe",
            &[],
            &["no recipe `samroa`", "did you mean `samora`?"],
        )],
    );
}

#[test]
fn a_device_that_nobody_knows_is_a_usage_error() {
    let world = World::new();
    let output = world.run(&["train", "samora", "--device", "gpu"]);
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("expected one of cpu, ndarray, wgpu, cuda"),
        "{errors}"
    );
}

/// A file with the recipe `samora` after a change of its text.
fn refuse_file(from: &str, to: &str, expected: &str) {
    let world = World::new();
    let text = recipe::find("samora").expect("listed").to_toml();
    let changed = text.replacen(from, to, 1);
    assert_ne!(text, changed, "`{from}` stands in the file");
    fs::write(world.path("mine.toml"), &changed).expect("writable");
    let arguments = ["train", "mine.toml", "--model", "model", "--data", "data"];
    let line = assert_refused(&world, &arguments, from, &[expected]);
    let number = 1 + changed[..changed.find(to).expect("changed")]
        .matches('\n')
        .count();
    assert!(
        line.starts_with(&format!("error: mine.toml:{number}: ")),
        "{line}"
    );
    assert_eq!(entries(&world.path(".")), ["data", "mine.toml", "model"]);
}

#[test]
fn mistakes_in_a_file_are_named_with_their_line() {
    refuse_file("rank = 8", "rnak = 8", "unknown field `rnak`");
    refuse_file(
        "num_experts = 3",
        "num_experts = \"three\"",
        "invalid type: string \"three\"",
    );
    refuse_file("max_length = 64", "max_length = 64 64", "");
    refuse_file(
        "decay = \"linear\"",
        "decay = \"fast\"",
        "unknown variant `fast`",
    );
    refuse_file(
        "name = \"joint\"",
        "nmae = \"joint\"",
        "unknown field `nmae`",
    );
    refuse_file("steps = 600", "steps = -600", "-600");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let world = World::new();
    assert_refused(
        &world,
        &["train", "mine.toml"],
        "no file",
        &["mine.toml: No such file"],
    );
    fs::create_dir(world.path("folder.toml")).expect("a new folder");
    assert_refused(
        &world,
        &["train", "folder.toml"],
        "a folder",
        &["folder.toml: "],
    );
    let text = recipe::find("samora").expect("listed").to_toml();
    let missing = text.replacen("checkpoint_every = 100\n", "", 1);
    fs::write(world.path("mine.toml"), missing).expect("writable");
    let expected = ["mine.toml", "missing field `checkpoint_every`"];
    assert_refused(&world, &["train", "mine.toml"], "a missing key", &expected);
}
