//! Comparisons of recipes: their files, going on, equal budgets, and refusals.

use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use molora_models::Backbone;
use molora_train::base::DeviceSpec;
use molora_train::compare::{
    Budget, CompareError, Comparison, Counter, Event, Request, State, TunedKey, Tuning, compare,
};
use molora_train::data::PromptStyle;
use molora_train::recipe::Recipe;
use molora_train::report::{StepRecord, Verdict};
use molora_train::run;
use molora_train::store::read_config;

use super::refusal::assert_refused;
use crate::world::{World, entries, own_files, read_json, run_files, small, steps};

const FILES: [&str; 5] = [
    "compare.html",
    "compare.json",
    "compare.md",
    "compare.toml",
    "runs",
];

/// A bundled recipe with six steps.
fn short(name: &str) -> Recipe {
    let mut recipe = small(name);
    recipe.stages[0].steps = 6;
    recipe
}

pub(super) fn request(world: &World, out: &str) -> Request {
    let run = world.request(short("lora"), out);
    Request {
        recipes: vec![run.recipe, short("samora")],
        model: run.model,
        base_dtype: run.base_dtype,
        data: run.data,
        tasks: None,
        unseen: Vec::new(),
        out: run.out,
        seeds: 2,
        budget: Budget::Params,
        alone: false,
        tune: None,
        device: DeviceSpec::Cpu,
    }
}

/// Runs a comparison to its end; also how far each run was when its turn came.
fn finish(request: &Request) -> (Comparison, Vec<State>) {
    let mut states = Vec::new();
    let result = compare(request, &AtomicBool::new(false), &mut |event| {
        if let Event::Run(run) = event {
            let total = request.recipes.len() * request.seeds as usize;
            assert_eq!((run.number, run.total), (states.len() + 1, total));
            states.push(run.state);
        }
    });
    (result.expect("a whole comparison"), states)
}

/// A comparison without its times, which differ from run to run.
fn timeless(mut comparison: Comparison) -> Comparison {
    for recipe in &mut comparison.recipes {
        (recipe.train_seconds, recipe.tokens_per_second) = (0.0, 0.0);
    }
    let trials = comparison
        .tuned
        .iter_mut()
        .flat_map(|tuned| &mut tuned.trials);
    trials.for_each(|trial| trial.seconds = 0.0);
    comparison
}

fn refused(request: &Request) -> String {
    let result = compare(request, &AtomicBool::new(false), &mut |_| {});
    result.expect_err("a refusal").to_string()
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("readable")
}

#[test]
fn a_second_call_trains_nothing_and_writes_the_same() {
    let world = World::new();
    let mut request = request(&world, "both");
    let (first, states) = finish(&request);
    assert_eq!(states, [State::New; 4]);
    assert_eq!(entries(&request.out), FILES);
    let runs = request.out.join("runs");
    assert_eq!(
        entries(&runs),
        ["lora-seed0", "lora-seed1", "samora-seed0", "samora-seed1"]
    );
    for run in entries(&runs) {
        let recipe = run.split('-').next().expect("a name");
        assert_eq!(own_files(&runs.join(&run)), run_files(recipe));
    }
    let written = bytes(&request.out.join("compare.json"));
    let (second, states) = finish(&request);
    assert_eq!(states, [State::Finished; 4]);
    assert_eq!(second, first);
    assert!(written == bytes(&request.out.join("compare.json")));

    request.seeds = 1;
    let error = refused(&request);
    assert!(
        error.contains("compare.toml: seeds is 2, asked now is 1"),
        "{error}"
    );
    request.seeds = 2;
    request.recipes[1].data.sampling.batch_size = 4;
    let error = refused(&request);
    let field = "recipes.1.recipe.data.sampling.batch_size is 8, asked now is 4";
    assert!(error.contains(field) && !error.contains('\n'), "{error}");
}

#[test]
fn the_result_is_that_of_the_runs() {
    let world = World::new();
    let request = request(&world, "both");
    let (comparison, _) = finish(&request);
    assert_eq!(comparison.reference, "lora");
    assert_eq!(comparison.tasks, ["answer", "pets", "weather"]);
    for recipe in &comparison.recipes {
        let mut means = Vec::new();
        for seed in 0..2 {
            let run = request.out.join(format!("runs/{}-seed{seed}", recipe.name));
            let eval = read_json(&run.join("eval.json"));
            means.push(eval["mean_accuracy"].as_f64().expect("a number"));
            for (task, result) in &recipe.tasks {
                let expected = eval["tasks"][task]["value"].as_f64();
                assert_eq!(Some(result.score.values[seed]), expected);
            }
            let predictions = read_json(&run.join("predictions.json"));
            assert_eq!(
                (&predictions["version"], &predictions["split"]),
                (&1.into(), &"test".into())
            );
            let pets = predictions["tasks"]["pets"].as_array().expect("a list");
            assert!(pets.len() == 24 && pets.iter().all(|class| class.as_u64() < Some(2)));
            let config = read_config(&run).expect("a run");
            assert_eq!(config.seed, seed as u64);
            assert_eq!(config.recipe.adapter.bank.rank, recipe.rank);
        }
        assert_eq!(recipe.mean_accuracy.values, means);
    }
    for seed in 0..2 {
        let batches = |name: &str| {
            let steps = steps(&request.out.join(format!("runs/{name}-seed{seed}")));
            let batch = |step: &StepRecord| (step.tokens, step.tasks.keys().cloned().collect());
            steps
                .iter()
                .map(batch)
                .collect::<Vec<(usize, Vec<String>)>>()
        };
        assert_eq!(batches("lora"), batches("samora"), "the same batches");
    }
    let [lora, samora] = &comparison.recipes[..] else {
        panic!("two recipes");
    };
    assert_eq!((lora.gain, lora.gain_by_seed.len()), (None, 0));
    for seed in 0..2 {
        let [found, reference] = [samora, lora].map(|recipe| recipe.mean_accuracy.values[seed]);
        assert_eq!(samora.gain_by_seed[seed], found - reference);
    }
    let gain = samora.gain.expect("compared with lora");
    let expected = samora.mean_accuracy.mean - lora.mean_accuracy.mean;
    assert!((gain.mean_accuracy - expected).abs() < 1e-9);
    assert!(gain.low <= gain.mean_accuracy && gain.mean_accuracy <= gain.high);
    let is_above = gain.low > 0.0;
    assert_eq!(gain.verdict == Verdict::Gain, is_above);
    assert_eq!(lora.num_experts, 0);
    // Two runs of four layers with four sites of three experts.
    assert_eq!(samora.num_experts, 2 * 4 * 4 * 3);
}

#[test]
fn ranks_bring_the_parameters_near_those_of_the_reference() {
    let world = World::new();
    let mut request = request(&world, "both");
    request.recipes.push(short("mosld"));
    request.recipes[0].adapter.bank.rank = 7;
    let device = DeviceSpec::Cpu.open().expect("the processor");
    let base = Backbone::from_folder(&world.path("model"), &device).expect("a model");
    let counter = Counter {
        base: &base,
        num_tasks: 3,
        device: &device,
    };
    let mut plan = None;
    let stop = AtomicBool::new(true);
    let error = compare(&request, &stop, &mut |event| {
        if let Event::Planned(planned) = event {
            plan = Some(planned.clone());
        }
    });
    let error = error.expect_err("stopped before its first run").to_string();
    assert!(error.contains("run 1 of 6"), "{error}");
    let plan = plan.expect("planned");
    let budget = plan.recipes[0].parameters;
    // Four layers, four sites of width 32, A and B of rank 7.
    assert_eq!(budget, 4 * 4 * 2 * 32 * 7);
    for (planned, asked) in plan.recipes.iter().zip(&request.recipes) {
        let at = |rank: usize| {
            let mut spec = asked.adapter.clone();
            spec.bank.rank = rank;
            counter.parameters(&spec).expect("it fits")
        };
        let rank = planned.recipe.adapter.bank.rank;
        assert_eq!(planned.parameters, at(rank));
        let distance = |rank: usize| budget.abs_diff(at(rank));
        let least = (1..=32).map(distance).min();
        assert_eq!(Some(distance(rank)), least, "{}", planned.name);
        // The rest of the recipe stays.
        let mut expected = asked.clone();
        expected.adapter.bank.rank = rank;
        expected.data.writing.prompt = PromptStyle::Plain;
        assert_eq!(planned.recipe, expected);
    }
    request.budget = Budget::Steps;
    request.out = world.path("steps");
    let _ = compare(&request, &stop, &mut |event| {
        if let Event::Planned(planned) = event {
            plan_keeps(planned, &request.recipes);
        }
    });
    request.recipes[2].stages[0].steps = 7;
    request.out = world.path("unequal");
    let error = refused(&request);
    assert!(
        error.contains("lora has 6 steps and mosld has 7"),
        "{error}"
    );
    assert!(!request.out.exists());
}

fn plan_keeps(plan: &molora_train::compare::Plan, recipes: &[Recipe]) {
    for (planned, asked) in plan.recipes.iter().zip(recipes) {
        let mut expected = asked.clone();
        expected.data.writing.prompt = PromptStyle::Plain;
        assert_eq!(planned.recipe, expected);
    }
}

#[test]
fn a_stopped_comparison_goes_on_to_the_same_result() {
    let world = World::new();
    let whole = request(&world, "whole");
    let (expected, _) = finish(&whole);
    let stopped = request(&world, "stopped");
    // In the middle of the second run, then in the last one.
    for (number, expected_states) in [
        (2, vec![State::New; 2]),
        (
            4,
            vec![State::Finished, State::Unfinished, State::New, State::New],
        ),
    ] {
        let (stop, mut states) = (AtomicBool::new(false), Vec::new());
        let error = compare(&stopped, &stop, &mut |event| match event {
            Event::Run(run) => states.push(run.state),
            Event::Inside(run::Event::Step(record, _)) => {
                let is_due = states.len() == number && record.step == 3;
                stop.fetch_or(is_due, Ordering::SeqCst);
            }
            _ => {}
        });
        let error = error.expect_err("it was stopped");
        assert!(
            matches!(error, CompareError::Interrupted { what: "run", number: n, total: 4 } if n == number),
            "{error}"
        );
        assert_eq!(states, expected_states);
        assert!(!stopped.out.join("compare.json").exists());
    }
    let (found, states) = finish(&stopped);
    let mut expected_states = [State::Finished; 4];
    expected_states[3] = State::Unfinished;
    assert_eq!(states, expected_states);
    assert_eq!(timeless(found), timeless(expected));
}

fn rates(text: &str) -> Tuning {
    Tuning {
        steps: Some(5),
        keys: vec![TunedKey::parse(text).expect("a list")],
    }
}

#[test]
fn every_recipe_is_tuned_on_the_validation_split_and_trained_with_its_best() {
    let world = World::new();
    let mut whole = request(&world, "whole");
    // The last one diverges.
    whole.tune = Some(rates("learning_rate=1e-5,1e-2,1e30"));
    let (expected, _) = finish(&whole);
    assert_eq!(expected.tuned.len(), 2);
    for (tuned, asked) in expected.tuned.iter().zip(&whole.recipes) {
        assert_eq!(tuned.trials.len(), 3);
        let values: Vec<Option<f64>> = tuned.trials.iter().map(|trial| trial.value).collect();
        let best = values
            .iter()
            .flatten()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(values[tuned.best], Some(best), "{values:?}");
        let rate = tuned.setting()["learning_rate"]
            .as_float()
            .expect("a number");
        for seed in 0..2 {
            let run = whole.out.join(format!("runs/{}-seed{seed}", asked.name));
            let config = read_config(&run).expect("a run");
            assert_eq!(config.recipe.stages[0].optimizer.learning_rate, rate);
            assert_eq!(config.recipe.stages[0].steps, 6);
        }
        for number in 0..3 {
            let place = whole.out.join(format!("trials/{}-{number}", asked.name));
            assert!(!place.exists(), "only its record stays");
            let record = read_json(&place.with_extension("json"));
            assert_eq!(record["steps"], 5);
        }
    }
    let text = std::fs::read_to_string(whole.out.join("compare.md")).expect("a document");
    assert!(
        text.contains("## Settings that were chosen on the validation split"),
        "{text}"
    );
    // Stopped within a trial, and between two, it goes on to the same.
    let mut stopped = request(&world, "stopped");
    stopped.tune = whole.tune.clone();
    for (trial, step) in [(2, 2), (4, 5)] {
        let (stop, mut now) = (AtomicBool::new(false), 0);
        let error = compare(&stopped, &stop, &mut |event| match event {
            Event::Trial(event) => now = event.number,
            Event::Inside(run::Event::Step(record, _)) => {
                stop.fetch_or(now == trial && record.step == step, Ordering::SeqCst);
            }
            _ => {}
        });
        let error = error.expect_err("it was stopped").to_string();
        assert!(error.starts_with("stopped in trial "), "{error}");
    }
    let (found, _) = finish(&stopped);
    assert_eq!(timeless(found), timeless(expected));
}

#[test]
fn trials_that_make_no_sense_are_refused() {
    let world = World::new();
    let mut request = request(&world, "refused");
    for (text, expected) in [
        (
            "adapter.router.temperature=0.5,1.0",
            "unknown field `router`",
        ),
        ("adapter.bank.rank=0,4", "rank"),
        (
            "adapter.bank.rank=2,4",
            "adapter.bank.rank 2 gives lora 2048 parameters (see --budget steps) instead of 4096",
        ),
        (
            "stages.0.steps=6,12",
            "stages.0.steps 12 gives lora 12 steps instead of 6",
        ),
        ("name=a,b", "name is no setting of the training"),
        (
            "checkpoint.metric=loss,worst_task",
            "checkpoint.metric is no setting of the training",
        ),
        ("stages.0.schedule.warmup=0.1,2.0", "warmup"),
    ] {
        request.tune = Some(rates(text));
        let error = refused(&request);
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!request.out.exists());
    }
    request.tune = Some(rates("learning_rate=1e30,1e29"));
    let error = refused(&request);
    assert!(error.contains("every trial of lora diverged"), "{error}");
}

#[test]
fn one_seed_has_no_verdict() {
    let world = World::new();
    let mut request = request(&world, "one");
    request.seeds = 1;
    let (found, _) = finish(&request);
    let gain = found.recipes[1].gain.expect("compared with lora");
    assert_eq!(gain.verdict, Verdict::OneSeed);
}

#[test]
fn runs_and_data_that_are_not_those_of_the_comparison_are_refused() {
    let world = World::new();
    let request = request(&world, "both");
    finish(&request);
    let test = world.data("pets/test.jsonl");
    let text = std::fs::read_to_string(&test).expect("readable");
    let first = text.lines().next().expect("a record");
    let flipped = first
        .replace("\"label\":0", "\"label\":1")
        .replace("\"output\":\"cat\"", "\"output\":\"dog\"");
    assert_ne!(flipped, first);
    std::fs::write(&test, text.replacen(first, &flipped, 1)).expect("writable");
    let error = refused(&request);
    assert!(
        error.contains("task pets") && error.contains("data have changed"),
        "{error}"
    );
    std::fs::write(&test, text).expect("writable");
    let runs = request.out.join("runs");
    let toml = runs.join("samora-seed1/run.toml");
    std::fs::copy(runs.join("samora-seed0/run.toml"), &toml).expect("writable");
    let error = refused(&request);
    assert!(
        error.contains("samora-seed1") && error.contains("not a run of this comparison"),
        "{error}"
    );
}

/// Two recipes and two seeds in the folder `c`, by the program.
pub(super) fn compared(world: &World) -> Output {
    let arguments = "compare lora,hydralora --model model --data data --seeds 2 --steps 3 --out c \
                     --tasks pets,weather --set data.max_length=24 --set adapter.bank.rank=4";
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    world.run(&arguments)
}

#[test]
fn the_program_compares_and_shows_what_it_found() {
    let world = World::new();
    let output = compared(&world);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    for text in ["lora: rank 4, ", "run 3 of 4: lora, seed 1", "step 3/3"] {
        assert!(errors.contains(text), "{text} is missing in {errors}");
    }
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    let written = std::fs::read_to_string(world.path("c/compare.md")).expect("readable");
    for text in [
        "pets",
        "weather",
        "worst task",
        "reference",
        "95 % interval",
        "dead experts",
    ] {
        assert!(table.contains(text), "{text} is missing in {table}");
        assert!(written.contains(text), "{text} is missing in {written}");
    }
    let before = bytes(&world.path("c/compare.json"));
    let again = compared(&world);
    let errors = String::from_utf8_lossy(&again.stderr);
    assert!(
        errors.contains("run 4 of 4: hydralora, seed 1, finished before"),
        "{errors}"
    );
    assert_eq!(String::from_utf8(again.stdout).expect("UTF-8"), table);
    assert!(before == bytes(&world.path("c/compare.json")));
}

#[test]
fn a_request_that_makes_no_sense_is_refused_in_one_line() {
    let world = World::new();
    let cases: [(&str, &[&str]); 8] = [
        ("lora,samroa", &["no recipe `samroa`", "hydralora, "]),
        ("lora", &["1 recipe to compare, expected at least two"]),
        ("lora,samora,lora", &["recipe `lora` is listed twice"]),
        ("lora,samora --seeds 0", &["0 seeds, expected at least 1"]),
        ("lora,samora --tasks pets,sky", &["sky"]),
        (
            "lora,samora --set data.max_length=9999",
            &["data.max_length"],
        ),
        ("lora,samora --steps 0", &["--steps is 0, expected 1 to "]),
        (
            "lora,samora --out data",
            &["holds files but no compare.toml"],
        ),
    ];
    let before = entries(&world.path("."));
    for (text, expected) in cases {
        let mut arguments = vec!["compare"];
        arguments.extend(text.split_whitespace());
        let defaults = [["--set", "data.max_length=24"], ["--out", "c"]];
        for default in defaults.iter().filter(|default| !text.contains(default[0])) {
            arguments.extend(default);
        }
        arguments.extend(["--model", "model", "--data", "data"]);
        assert_refused(&world, &arguments, text, expected);
        assert_eq!(entries(&world.path(".")), before, "{text} wrote something");
    }
}
