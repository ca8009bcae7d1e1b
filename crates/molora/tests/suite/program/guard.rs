//! A guard that watches routers: a collapse that is provoked, and what is done about it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use molora_models::ParameterKind;
use molora_routing::Selection;
use molora_train::TrainError;
use molora_train::recipe::{GuardAction, GuardRule, Recipe, Watched};
use molora_train::report::{GuardDone, GuardRecord, Record, read_records};
use molora_train::run::{Request, ResumeOptions, resume, train};

use super::writer;
use crate::world::{World, assert_same_run, read_json, resume_to_end, small, steps, train_until};

fn acts(run: &Path) -> Vec<GuardRecord> {
    let records = read_records(&run.join("steps.jsonl")).expect("whole records");
    let act = |record| match record {
        Record::Guard(record) => Some(record),
        Record::Step(_) | Record::Validation(_) => None,
    };
    records.into_iter().filter_map(act).collect()
}

fn rule(watch: Watched, below: f64, action: GuardAction) -> GuardRule {
    GuardRule {
        watch,
        below: Some(below),
        above: None,
        action,
    }
}

/// Routers that learn far too fast, hard choices of one expert, and nearly nothing that balances.
fn collapsing(mut recipe: Recipe, rules: Vec<GuardRule>) -> Recipe {
    recipe.set_total_steps(24);
    recipe.adapter.router.as_mut().expect("it routes").selection = Selection::TopK(1);
    recipe.objective.terms[0].weight = 1e-3;
    let optimizer = &mut recipe.stages[0].optimizer;
    optimizer.learning_rates.insert(ParameterKind::Routers, 1.0);
    (recipe.guard.every, recipe.guard.rules) = (4, rules);
    recipe
}

/// A request on the tiny encoder and one on the tiny decoder.
fn both(rules: &[GuardRule]) -> [(World, Request); 2] {
    let (encoder, decoder) = (World::new(), writer::world());
    let recipe = |recipe| collapsing(recipe, rules.to_vec());
    let reads = encoder.request(recipe(small("mole-topk")), "run");
    let writes = recipe(writer::recipe("mole-topk", 24));
    let writes = writer::request(&decoder, writes, &["pets", "sky"], "run");
    [(encoder, reads), (decoder, writes)]
}

fn run(request: &Request) {
    train(request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
}

const DEAD: f64 = 0.02;

/// Number of experts that are dead in the test split's routing.
fn dead(run: &Path) -> usize {
    let routing = read_json(&run.join("routing.json"));
    let sites = routing["sites"].as_array().expect("sites");
    let of_site = |site: &serde_json::Value| {
        let mut shares = BTreeMap::<usize, f64>::new();
        let tasks = site["weights"].as_object().expect("tasks");
        for weights in tasks.values() {
            let weights = weights.as_array().expect("experts").iter().enumerate();
            for (expert, weight) in weights {
                let share = weight.as_f64().expect("a number") / tasks.len() as f64;
                *shares.entry(expert).or_default() += share;
            }
        }
        shares.values().filter(|share| **share < DEAD).count()
    };
    sites.iter().map(of_site).sum()
}

#[test]
fn dead_experts_are_restarted_from_the_busiest() {
    let restart = rule(Watched::LoadShare, DEAD, GuardAction::RestartDead);
    for (_world, mut request) in both(&[restart]) {
        run(&request);
        let found = acts(&request.out);
        assert!(!found.is_empty());
        for act in &found {
            let GuardDone::ExpertRestarted { from } = act.guard.done else {
                panic!("{act:?}");
            };
            assert!(act.step.is_multiple_of(4), "{act:?}");
            assert!(
                act.guard.value < DEAD && act.guard.expert != Some(from),
                "{act:?}"
            );
        }
        let page = std::fs::read_to_string(request.out.join("report.html")).expect("a page");
        assert!(page.contains("<h2>Guard</h2>") && page.contains("restarted as a copy of e"));
        // A run that is stopped behind a restart goes on bit for bit.
        let whole = request.out.clone();
        request.out.set_file_name("stopped");
        train_until(&request, found[0].step + 1);
        resume_to_end(&request.out);
        assert_same_run(&request.out, &whole);
        assert_eq!(acts(&request.out), found);
        // Left alone the routers keep fewer experts.
        request.out.set_file_name("alone");
        request.recipe.guard.rules.clear();
        run(&request);
        let [alone, guarded] = [&request.out, &whole].map(|run| dead(run));
        assert!(alone > guarded, "{alone} {guarded}");
    }
}

#[test]
fn the_weight_of_balance_terms_is_raised_up_to_the_most() {
    let raise = GuardAction::RaiseBalance {
        factor: 4.0,
        most: 10.0,
    };
    for (_world, mut request) in both(&[rule(Watched::Entropy, 1.1, raise)]) {
        run(&request);
        let found = acts(&request.out);
        let factors: Vec<GuardDone> = found.iter().map(|act| act.guard.done).collect();
        let raised = |factor| GuardDone::BalanceRaised { factor };
        assert_eq!(factors[..2], [raised(4.0), raised(10.0)]);
        let most = GuardDone::BalanceAtMost { factor: 10.0 };
        assert!(factors[2..].iter().all(|done| *done == most), "{factors:?}");
        for step in steps(&request.out) {
            let factor = match step.step {
                1..=4 => 1.0,
                5..=8 => 4.0,
                _ => 10.0,
            };
            let weight = (step.loss - step.task_loss) / step.terms["load_balance"];
            assert!(
                (weight - 1e-3 * factor).abs() < 1e-9,
                "{}: {weight}",
                step.step
            );
        }
        let whole = request.out.clone();
        request.out.set_file_name("stopped");
        train_until(&request, 6);
        resume_to_end(&request.out);
        assert_same_run(&request.out, &whole);
    }
}

#[test]
fn a_run_is_stopped_with_a_state_to_go_on_from() {
    let warn = rule(Watched::RouterGradientShare, 2.0, GuardAction::Warn);
    let mut stop = rule(Watched::ExpertSimilarity, 0.0, GuardAction::Stop);
    (stop.below, stop.above) = (None, Some(-2.0));
    for (_world, request) in both(&[warn, stop]) {
        let stopped = AtomicBool::new(false);
        let mut error = train(&request, &stopped, &mut |_| {}).expect_err("the guard stops it");
        for step in [4, 8] {
            let text = error.to_string();
            assert!(matches!(error, TrainError::Guard { .. }), "{text}");
            let expected = format!("guard, step {step}: expert_similarity");
            assert!(
                text.starts_with(&expected) && text.contains("above -2"),
                "{text}"
            );
            let again = resume(
                &request.out,
                &ResumeOptions::default(),
                &stopped,
                &mut |_| {},
            );
            error = again.expect_err("it stops again");
        }
        let found = acts(&request.out);
        let watched: Vec<&str> = found.iter().map(|act| &act.guard.watch[..]).collect();
        assert_eq!(watched[..2], ["router_gradient_share", "expert_similarity"]);
        assert_eq!(found[0].guard.done, GuardDone::Warned);
        assert!(
            (0.0..=1.0).contains(&found[0].guard.value),
            "{:?}",
            found[0]
        );
    }
}
