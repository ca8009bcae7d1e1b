//! Seeds, micro-batches and mixed batches.

use molora_regularize::{Need, Reduction, RouterZLoss, Term, TermConfig};
use molora_train::recipe;
use molora_train::recipe::{Recipe, StageConfig, StageRouting};
use molora_train::report::StepRecord;

use crate::world::{World, small, steps};

fn run_steps(recipe: &Recipe, seed: u64) -> Vec<StepRecord> {
    let world = World::new();
    let mut request = world.request(recipe.clone(), "run");
    request.seed = seed;
    let stop = std::sync::atomic::AtomicBool::new(false);
    molora_train::run::train(&request, &stop, &mut |_| {}).expect("a whole run");
    steps(&request.out)
}

#[test]
fn a_seed_decides_the_losses() {
    let recipe = small("samora");
    let first = run_steps(&recipe, 3);
    assert_eq!(first, run_steps(&recipe, 3));
    let other = run_steps(&recipe, 4);
    assert!(first.iter().zip(&other).all(|(a, b)| a.loss != b.loss));
}

/// Rounding of losses and norms, relative to the larger of 1 and the value.
const LIMIT: f64 = 1e-5;

fn assert_near(found: f64, expected: f64, limit: f64, what: &str) {
    let limit = limit * expected.abs().max(1.0);
    assert!(
        (found - expected).abs() <= limit,
        "{what}: {found}, expected {expected}"
    );
}

fn assert_near_step(found: &StepRecord, expected: &StepRecord, limit: f64, what: &str) {
    let at = format!("{what}, step {}", expected.step);
    assert_near(found.loss, expected.loss, limit, &format!("{at}: loss"));
    assert_near(
        found.task_loss,
        expected.task_loss,
        limit,
        &format!("{at}: task loss"),
    );
    let norms = (found.gradient_norm, expected.gradient_norm);
    assert_near(norms.0, norms.1, limit, &format!("{at}: gradient norm"));
    assert_eq!(found.tokens, expected.tokens, "{at}");
    for (term, value) in &expected.terms {
        assert_near(found.terms[term], *value, limit, &format!("{at}: {term}"));
    }
    for (task, value) in &expected.tasks {
        assert_near(found.tasks[task], *value, limit, &format!("{at}: {task}"));
    }
}

#[test]
fn micro_batches_give_the_losses_of_the_whole_batch() {
    for name in recipe::names() {
        // 7 leaves a rest of 4 rows.
        for (rows, mixed) in [(8, false), (7, true)] {
            let mut recipe = small(name);
            recipe.adapter.bank.dropout = 0.0;
            recipe.adapter.bank.weight_dropout = 0.0;
            if let Some(router) = &mut recipe.adapter.router {
                // Drawn for every micro-batch anew.
                (router.noise, router.relaxed) = (0.0, false);
            }
            recipe.data.sampling.batch_size = 32;
            recipe.data.sampling.mixed = mixed;
            let trains = |stage: &StageConfig| stage.transform.is_none();
            let first = recipe.stages.iter().position(trains).expect("one trains");
            recipe.stages[first].steps = 10;
            recipe.stages[first].optimizer.learning_rate = 1e-3;
            // Experts at random are drawn for every micro-batch anew, too.
            recipe.stages[first].routing = StageRouting::Router;
            // Terms about experts' outputs are those of the micro-batches.
            let adds_up = |term: &Term| !term.needs_any(Need::Codes);
            recipe
                .objective
                .terms
                .retain(|config| adds_up(&config.term));
            // Weights that are not renormalised, and outputs that are made orthogonal, carry rounding on
            // from step to step.
            let limit = match name {
                "mod-squad" | "omoe" => 10.0 * LIMIT,
                _ => LIMIT,
            };
            let whole = run_steps(&recipe, 0);
            recipe.stages[first].micro_batch_size = rows;
            for (found, expected) in run_steps(&recipe, 0).iter().zip(&whole) {
                assert_near_step(found, expected, limit, &format!("{name}, {rows} rows"));
            }
        }
    }
}

#[test]
fn micro_batches_give_the_mean_over_tokens_of_a_routing_loss() {
    let mut recipe = small("hydralora");
    recipe.adapter.bank.dropout = 0.0;
    recipe.objective.terms = vec![TermConfig {
        term: RouterZLoss.into(),
        weight: 0.1,
        within_site: Reduction::Mean,
        over_sites: Reduction::Mean,
    }];
    let whole = run_steps(&recipe, 0);
    recipe.stages[0].micro_batch_size = 3;
    for (found, expected) in run_steps(&recipe, 0).iter().zip(&whole) {
        let at = format!("step {}", expected.step);
        let terms = [found, expected].map(|step| step.terms["router_z_loss"]);
        assert!(terms[1] > 0.1, "{at}: {terms:?}");
        assert_near(terms[0], terms[1], LIMIT, &at);
        assert_near(found.gradient_norm, expected.gradient_norm, LIMIT, &at);
    }
}

#[test]
fn a_mixed_batch_holds_several_tasks() {
    let mut recipe = small("samora");
    recipe.data.sampling.batch_size = 32;
    recipe.data.sampling.mixed = true;
    // Unsorted: pairs are longer than single texts and would come together.
    recipe.data.sampling.bucket_batches = 1;
    for step in run_steps(&recipe, 0) {
        let tasks: Vec<&String> = step.tasks.keys().collect();
        assert_eq!(tasks, ["answer", "pets", "weather"], "step {}", step.step);
        assert!(
            step.tasks
                .values()
                .all(|loss| loss.is_finite() && *loss > 0.0)
        );
        let (low, high) = step
            .tasks
            .values()
            .fold((f64::MAX, 0.0_f64), |(low, high), &loss| {
                (low.min(loss), high.max(loss))
            });
        assert!(
            low <= step.task_loss && step.task_loss <= high,
            "a mean of the tasks' losses"
        );
    }
}

#[test]
fn a_batch_of_one_task_holds_no_other() {
    let mut recipe = small("samora");
    recipe.data.sampling.mixed = false;
    let steps = run_steps(&recipe, 0);
    assert!(steps.iter().all(|step| step.tasks.len() == 1));
    assert!(steps.iter().any(|step| step.tasks.contains_key("pets")));
}

#[test]
fn auxiliary_terms_are_part_of_the_loss() {
    for step in run_steps(&small("samora"), 0) {
        let terms = 1e-3 * step.terms["orthogonality"] + 1e-2 * step.terms["key_matching"];
        assert_near(step.loss, step.task_loss + terms, LIMIT, "loss");
        assert!(terms > 0.0);
    }
}

#[test]
fn epochs_say_how_many_steps_there_are() {
    let world = World::new();
    // 144 training records in batches of 32.
    for (epochs, expected) in [("1", 5), ("0.5", 3), ("2", 9)] {
        let fixed = [
            "train",
            "lora",
            "--model",
            "model",
            "--data",
            "data",
            "--eval-every",
            "0",
            "--set",
            "data.max_length=24",
        ];
        let output = world.run(&[&fixed[..], &["--epochs", epochs, "--out", epochs]].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        assert_eq!(steps(&world.path(epochs)).len(), expected);
    }
    for wrong in ["0", "-1", "nan", "inf"] {
        let epochs = format!("--epochs={wrong}");
        let output = world.run(&[
            "train", "lora", "--model", "model", "--data", "data", &epochs,
        ]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("expected a finite number above 0"), "{text}");
    }
    for (option, words) in [
        (
            "--epochs=1e30",
            "--epochs: found 1e30, expected at most 222222222 with so many records",
        ),
        ("--steps=0", "--steps is 0, expected 1 to 1000000000"),
        (
            "--steps=1000000001",
            "--steps is 1000000001, expected 1 to 1000000000",
        ),
    ] {
        let output = world.run(&[
            "train", "lora", "--model", "model", "--data", "data", option,
        ]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_dry_run_tells_what_a_run_would_be_and_writes_nothing() {
    let world = World::new();
    let entries = || {
        let names = std::fs::read_dir(world.path(".")).expect("a folder");
        let mut names: Vec<_> = names
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    let before = entries();
    for recipe in ["samora", "moa", "glider"] {
        let recipe = small(recipe);
        std::fs::write(world.path("mine.toml"), recipe.to_toml()).expect("writable");
        let fixed = ["train", "mine.toml", "--model", "model", "--data", "data"];
        let output = world.run(&[&fixed[..], &["--dry-run", "--out", "run"]].concat());
        std::fs::remove_file(world.path("mine.toml")).expect("removed");
        let (text, errors) = (&output.stdout, &output.stderr);
        let [text, errors] = [text, errors].map(|text| String::from_utf8_lossy(text));
        assert!(output.status.success(), "{errors}");
        for words in [
            "encoder.layer.*.attention.self.query",
            "trainable",
            "48 / 6 / 24",
            "peak memory: ",
            "in all: ",
        ] {
            assert!(text.contains(words), "{words} is not in: {text}");
        }
        let trains = |stage: &&molora_train::recipe::StageConfig| stage.transform.is_none();
        for stage in recipe.stages.iter().filter(trains) {
            assert!(text.contains(&format!("| {} ", stage.name)), "{text}");
        }
        assert_eq!(entries(), before);
    }
}

/// Arguments of a short training without validation, on the encoder or on the decoder.
fn short<'a>(model: &'a str, data: &'a str, tasks: &'a str) -> Vec<&'a str> {
    let fixed = [
        "train", "lora", "--model", model, "--data", data, "--tasks", tasks,
    ];
    let more = [
        "--eval-every",
        "0",
        "--steps",
        "3",
        "--set",
        "data.max_length=24",
    ];
    [&fixed[..], &more, &["--set", "data.writing.max_length=40"]].concat()
}

#[test]
fn micro_batches_fit_the_memory_that_there_is() {
    let world = super::writer::world();
    for (model, data, task, rows) in [
        ("model", "data", "pets", 32),
        ("writer", "texts", "sums", 16),
    ] {
        let fixed = short(model, data, task);
        let run = |out: &str, more: &[&str]| {
            let output = world.run(&[&fixed[..], &["--out", out], more].concat());
            let [text, errors] = [output.stdout, output.stderr];
            let [text, errors] = [text, errors].map(|text| String::from_utf8(text).expect("UTF-8"));
            (output.status.success(), text, errors)
        };
        let out = |kind: &str| format!("{model}-{kind}");
        let (is_done, _, errors) = run(&out("plain"), &[]);
        assert!(is_done, "{errors}");
        let auto = ["--batch-size", "auto", "--memory", "64GiB"];
        let (is_done, _, errors) = run(&out("auto"), &auto);
        let chosen =
            format!("stage joint: {rows} of {rows} rows at once (stages.0.micro_batch_size) take ");
        assert!(is_done && errors.contains(&chosen), "{errors}");
        let scores = "scores: 64 of 64 rows at once (data.eval_batch_size) take ";
        assert!(errors.contains(scores), "{errors}");
        let config = std::fs::read_to_string(world.path(&out("auto")).join("run.toml"));
        let kept = format!("micro_batch_size = {rows}\n");
        assert!(config.expect("readable").contains(&kept));
        // The trial leaves no trace in the losses.
        assert_eq!(
            steps(&world.path(&out("auto"))),
            steps(&world.path(&out("plain")))
        );
        // What is free is asked of the system, and a dry run says the same.
        let (is_done, text, errors) = run(&out("dry"), &["--batch-size", "auto", "--dry-run"]);
        assert!(
            is_done && errors.contains(&chosen) && text.contains("peak memory: "),
            "{errors}"
        );
        let (is_done, _, errors) = run(&out("none"), &["--batch-size", "auto", "--memory", "1MiB"]);
        assert!(!is_done);
        let line = errors.lines().last().expect("an error");
        for words in [
            "error: memory: 1 MiB are too little for stage joint: ",
            "stages.0.gradient_checkpointing=true",
            "max_length below ",
            "--base-dtype",
        ] {
            assert!(line.contains(words), "{words}: {line}");
        }
        assert!(!world.path(&out("dry")).exists() && !world.path(&out("none")).exists());
    }
}

#[test]
fn rows_of_a_batch_are_a_number_or_chosen() {
    let world = World::new();
    let fixed = short("model", "data", "pets");
    let run = |out: &str, more: &[&str]| {
        let output = world.run(&[&fixed[..], &["--out", out], more].concat());
        (
            output.status.success(),
            String::from_utf8(output.stderr).expect("UTF-8"),
        )
    };
    let (is_done, errors) = run("run", &["--batch-size", "5"]);
    assert!(is_done, "{errors}");
    let config = std::fs::read_to_string(world.path("run/run.toml")).expect("readable");
    assert!(config.contains("batch_size = 5\n"), "{config}");
    for (wrong, words) in [
        (
            &["--batch-size", "0"][..],
            "expected a number of rows from 1 to 65536, or auto",
        ),
        (&["--memory", "1GiB"], "--batch-size"),
        (
            &["--batch-size", "4", "--memory", "1GiB"],
            "goes with --batch-size auto",
        ),
        (
            &["--batch-size", "70000"],
            "expected a number of rows from 1 to 65536, or auto",
        ),
        (
            &["--batch-size", "auto", "--memory", "much"],
            "`much` is no size, expected a number above 0 with a unit",
        ),
        (
            &["--batch-size", "auto", "--memory", "8"],
            "8 has no unit, expected one such as 8GiB",
        ),
        (
            &["--batch-size", "auto", "--memory", "-1GiB"],
            "-1GiB is no size of a memory, expected a number above 0",
        ),
        (
            &["--batch-size", "auto", "--device", "wgpu"],
            "memory of device wgpu is not measured",
        ),
    ] {
        let (is_done, errors) = run("wrong", wrong);
        assert!(!is_done && errors.contains(words), "{wrong:?}: {errors}");
    }
}
