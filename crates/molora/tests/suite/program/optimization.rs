//! What a stage sets of its optimisation: smoothed labels, noise on embedded tokens, weight decay by kind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use molora_models::ParameterKind;
use molora_train::recipe::{FinalState, Recipe, StageConfig};
use molora_train::run::{Request, train};

use super::writer;
use crate::world::{
    Tensors, World, assert_same_run, read_json, read_tensors, resume_to_end, small, steps,
    train_until, validations,
};

/// A request on the tiny encoder and one on the tiny decoder.
fn both(change: impl Fn(&mut StageConfig), out: &str) -> [(World, Request); 2] {
    let changed = |mut recipe: Recipe| {
        recipe.set_total_steps(6);
        recipe.adapter.bank.dropout = 0.0;
        change(&mut recipe.stages[0]);
        recipe
    };
    let (encoder, decoder) = (World::new(), writer::world());
    let reads = encoder.request(changed(small("samora")), out);
    let recipe = changed(writer::recipe("samora", 6));
    let writes = writer::request(&decoder, recipe, &["pets", "sky", "sums"], out);
    [(encoder, reads), (decoder, writes)]
}

fn run(request: &Request) -> PathBuf {
    train(request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
    request.out.clone()
}

/// Updates that no weight is changed by.
fn standing(stage: &mut StageConfig) {
    stage.optimizer.learning_rate = 1e-30;
    stage.optimizer.learning_rates.clear();
}

/// The loss is `ce + s * (uniform - ce)`, so a line in `s`; what is scored has nothing of it.
#[test]
fn labels_are_smoothed_in_training_alone() {
    let of = |smoothing: f64| {
        let set = move |stage: &mut StageConfig| {
            standing(stage);
            stage.label_smoothing = smoothing;
        };
        both(set, "run").map(|(world, request)| {
            let folder = run(&request);
            let losses: Vec<f64> = steps(&folder).iter().map(|step| step.task_loss).collect();
            let scores = read_json(&folder.join("eval.json"))["tasks"].clone();
            let scored = validations(&folder);
            drop(world);
            (losses, scores, scored)
        })
    };
    let [plain, some, more] = [0.0, 0.1, 0.3].map(of);
    for ((plain, some), more) in plain.iter().zip(&some).zip(&more) {
        for ((plain, some), more) in plain.0.iter().zip(&some.0).zip(&more.0) {
            let (some, more) = (some - plain, more - plain);
            assert!(some.abs() > 1e-6, "{plain}: {some}");
            assert!((more - 3.0 * some).abs() < 1e-5, "{some} {more}");
        }
        assert_eq!([&some.1, &more.1], [&plain.1; 2]);
        assert_eq!([&some.2, &more.2], [&plain.2; 2]);
    }
}

#[test]
fn numbers_have_no_labels_to_smooth() {
    let world = writer::world();
    let mut recipe = writer::recipe("lora", 6);
    recipe.stages[0].label_smoothing = 0.1;
    let request = writer::request(&world, recipe.clone(), &["length"], "run");
    let error = train(&request, &AtomicBool::new(false), &mut |_| {}).expect_err("refused");
    let expected = "stages.0.label_smoothing is 0.1, but its tasks tell numbers";
    assert!(error.to_string().contains(expected), "{error}");
    assert!(!request.out.exists());
    let request = writer::request(&world, recipe, &["length", "pets"], "run");
    run(&request);
}

#[test]
fn noise_is_the_same_however_a_batch_is_cut_and_a_run_is_stopped() {
    let noisy = |stage: &mut StageConfig| stage.neftune_alpha = 5.0;
    let cut = |stage: &mut StageConfig| {
        noisy(stage);
        stage.micro_batch_size = 3;
    };
    let again = |stage: &mut StageConfig| {
        noisy(stage);
        stage.gradient_checkpointing = true;
    };
    // What balances experts is a product of two means over a micro-batch.
    let losses = |request: &mut Request| {
        request.recipe.objective.terms.clear();
        let steps = steps(&run(request));
        steps.iter().map(|step| step.task_loss).collect::<Vec<_>>()
    };
    let changed: [&dyn Fn(&mut StageConfig); 2] = [&cut, &again];
    let mut plain = both(|_| {}, "plain");
    for (place, (_, request)) in both(noisy, "noisy").iter_mut().enumerate() {
        let expected = losses(request);
        let without = losses(&mut plain[place].1);
        let differ = |(a, b): (&f64, &f64)| (a - b).abs() > 1e-6;
        assert!(expected.iter().zip(&without).all(differ), "{without:?}");
        for change in changed {
            let found = losses(&mut both(change, "other")[place].1);
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 2e-5, "{found} {expected}");
            }
        }
        let whole = request.out.clone();
        request.out.set_file_name("stopped");
        train_until(request, 3);
        resume_to_end(&request.out);
        assert_same_run(&request.out, &whole);
    }
}

#[test]
fn noise_is_not_in_what_is_scored() {
    let scores = |alpha: f64| {
        let set = |stage: &mut StageConfig| {
            standing(stage);
            stage.neftune_alpha = alpha;
        };
        both(set, "run").map(|(_world, request)| {
            let folder = run(&request);
            read_json(&folder.join("eval.json"))["tasks"].clone()
        })
    };
    assert_eq!(scores(15.0), scores(0.0));
}

/// AdamW takes `rate * decay * w` away beside its update, which is the same in the first step.
#[test]
fn each_kind_of_parameter_decays_by_its_own() {
    const DECAY: f32 = 8.0;
    let trained =
        |request: &mut Request, out: &str, steps: usize, set: &dyn Fn(&mut StageConfig)| {
            request.recipe.set_total_steps(steps);
            let stage = &mut request.recipe.stages[0];
            stage.optimizer = Default::default();
            stage.schedule.warmup = 0.0;
            set(stage);
            request.out.set_file_name(out);
            request.force = true;
            request.recipe.checkpoint.final_state = FinalState::Last;
            let folder = run(request);
            let mut tensors = read_tensors(&folder.join("adapter_model.safetensors"));
            tensors.extend(read_tensors(&folder.join("heads.safetensors")));
            tensors
        };
    for (_world, mut request) in both(|_| {}, "run") {
        let plain = trained(&mut request, "plain", 1, &|_| {});
        let kinds = [
            (ParameterKind::Adapters, "lora_A"),
            (ParameterKind::Routers, "router"),
        ];
        for (kind, part) in kinds {
            let decayed = trained(&mut request, "decayed", 1, &|stage| {
                stage.optimizer.weight_decays = BTreeMap::from([(kind, DECAY)]);
            });
            let moved = differing(&plain, &decayed);
            assert!(moved.iter().any(|name| name.contains(part)), "{moved:?}");
            let other = kinds.iter().find(|(other, _)| *other != kind);
            let other = other.expect("two of them").1;
            assert!(!moved.iter().any(|name| name.contains(other)), "{moved:?}");
        }
        // B starts at zero: it has something to lose in the second step.
        let plain = trained(&mut request, "plain-2", 2, &|_| {});
        let decayed = trained(&mut request, "up", 2, &|stage| {
            stage.optimizer.weight_decays = BTreeMap::from([(ParameterKind::Adapters, 0.0)]);
            stage.optimizer.up_weight_decay = Some(DECAY);
        });
        let moved = differing(&plain, &decayed);
        assert!(!moved.is_empty());
        assert!(
            moved.iter().all(|name| name.contains("lora_B")),
            "{moved:?}"
        );
        // A run that was stopped has the groups again.
        let whole = request.out.clone();
        request.out.set_file_name("stopped");
        train_until(&request, 1);
        resume_to_end(&request.out);
        assert_same_run(&request.out, &whole);
    }
}

fn differing<'a>(found: &'a Tensors, expected: &Tensors) -> Vec<&'a String> {
    let names = found.keys().filter(|name| found[*name] != expected[*name]);
    names.collect()
}
