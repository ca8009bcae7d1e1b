//! Pages of finished runs, written again and side by side.

use std::path::Path;

use molora_train::recipe::Recipe;
use serde_json::{Value, json};

use super::compare::compared;
use super::refusal::assert_refused;
use crate::world::{World, copy_folder, entries, small, train_until};

fn short(name: &str) -> Recipe {
    let mut recipe = small(name);
    recipe.stages[0].steps = 4;
    recipe
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a page")
}

fn reported(world: &World, arguments: &str) -> String {
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let output = world.run(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn one_run_gets_its_page_again() {
    let world = World::new();
    let run = world.train(&short("samora"), "run");
    let page = run.join("report.html");
    let first = read(&page);
    assert!(first.contains("<h2>Settings</h2>") && first.contains("<h2>Records</h2>"));
    std::fs::remove_file(&page).expect("there");
    let before = entries(&run);
    let said = reported(&world, "report run");
    assert_eq!(
        said,
        format!("report: {}\n", Path::new("run/report.html").display())
    );
    assert_eq!(read(&page), first);
    let mut after = entries(&run);
    after.retain(|name| name != "report.html");
    assert_eq!(after, before, "nothing but the page");
    // Elsewhere, twice.
    for _ in 0..2 {
        reported(&world, "report run run --output page.html");
        assert_eq!(read(&world.path("page.html")), first);
    }
}

/// What an earlier molora left out is left out of the page.
#[test]
fn a_run_of_an_earlier_version_gets_a_page() {
    let world = World::new();
    let run = world.train(&short("lora"), "run");
    World::edit(&run.join("summary.json"), |summary| {
        let summary = summary.as_object_mut().expect("an object");
        for key in ["records", "states", "cut_texts", "validation_seconds"] {
            summary.remove(key);
        }
    });
    for file in ["routing.json", "base.json", "examples.json"] {
        std::fs::remove_file(run.join(file)).expect("there");
    }
    reported(&world, "report run");
    let page = read(&run.join("report.html"));
    assert!(!page.contains("<h2>Records") && !page.contains("<h2>Example answers"));
}

#[test]
fn several_runs_and_comparisons_stand_side_by_side() {
    let world = World::new();
    reported_comparison(&world);
    let page = read(&world.path("c/compare.html"));
    for text in [
        "lora, hydralora compared",
        "Mean accuracy against lora",
        "lora-seed1",
        "parameters beside the heads",
        "<h2>Training loss",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("differ in more than their recipe"));
    let said = reported(&world, "report c");
    assert_eq!(said, "report: comparison.html\n");
    assert_eq!(read(&world.path("comparison.html")), page);
    // The runs by themselves have no intervals.
    let runs = "c/runs/lora-seed0 c/runs/lora-seed1 c/runs/hydralora-seed0 c/runs/hydralora-seed1";
    reported(&world, &format!("report {runs} --output several.html"));
    let several = read(&world.path("several.html"));
    assert!(several.contains("lora, hydralora compared") && !several.contains("against lora"));
    // With another recipe of the same name, which has other tasks too.
    world.train(&short("lora"), "mine");
    reported(&world, "report c mine --output more.html");
    let more = read(&world.path("more.html"));
    for text in [
        "differ in more than their recipe",
        "Task answer is left out: lora-seed0, lora-seed1, hydralora-seed0, hydralora-seed1 did not",
        "<th>lora (lora-seed0)</th><th>hydralora</th><th>lora (mine)</th>",
    ] {
        assert!(more.contains(text), "{text}");
    }
}

fn reported_comparison(world: &World) {
    let output = compared(world);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let page = Path::new("c").join("compare.html").display().to_string();
    assert!(said.contains(&page), "{said}");
}

/// Copies of a run, each with a damage of its own.
fn damaged(world: &World, run: &Path) {
    let broken = |name: &str, damage: &dyn Fn(&Path)| {
        copy_folder(run, &world.path(name));
        damage(&world.path(name));
    };
    let write = |path: &Path, text: &str| std::fs::write(path, text).expect("writable");
    broken("unscored", &|run| {
        std::fs::remove_file(run.join("eval.json")).expect("there");
    });
    broken("json", &|run| {
        write(&run.join("eval.json"), "{\"version\": 1,\n\"split\" 2}")
    });
    broken("steps", &|run| {
        write(&run.join("steps.jsonl"), "{\"version\": 1}\n")
    });
    broken("newer", &|run| {
        write(&run.join("summary.json"), "{\"version\": 7}")
    });
    broken("future", &|run| {
        let text = read(&run.join("run.toml"));
        write(
            &run.join("run.toml"),
            &text.replacen("format = ", "format = 9", 1),
        );
    });
    std::fs::create_dir(world.path("planned")).expect("a new folder");
    write(&world.path("planned/compare.toml"), "");
}

#[test]
fn what_is_no_finished_run_is_named() {
    let world = World::new();
    let run = world.train(&short("lora"), "run");
    train_until(&world.request(short("lora"), "half"), 2);
    damaged(&world, &run);
    let before = entries(&world.path("."));
    for (arguments, expected) in [
        (
            "none",
            "none: no such folder, expected one of a run or of a comparison",
        ),
        ("data", "data: holds no run.toml: not a run folder"),
        ("half", "half: the run is not finished"),
        (
            "unscored",
            "unscored: holds no eval.json: the run was not scored",
        ),
        ("json", "eval.json, line 2: expected `:`"),
        ("steps", "steps.jsonl, line 1: missing field"),
        (
            "newer",
            "summary.json: version is 7, but this molora knows up to 1",
        ),
        ("future", "a newer molora wrote the run"),
        (
            "planned",
            "planned: holds no compare.json: the comparison is not finished",
        ),
        ("run half", "half: the run is not finished"),
        (
            "run --output run/eval.json",
            "eval.json: is a file of that run; choose another --output",
        ),
        (
            "run --output run/experts.json",
            "experts.json: is a file of that run; choose another --output",
        ),
        (
            "run --output data",
            "data: is there already and is no page of molora",
        ),
        (
            "run --output nowhere/page.html",
            "nowhere/page.html: lies in no folder that is there; choose another --output",
        ),
    ] {
        let all: Vec<&str> = ["report"].into_iter().chain(arguments.split(' ')).collect();
        assert_refused(&world, &all, arguments, &[expected]);
        assert_eq!(
            entries(&world.path(".")),
            before,
            "{arguments} wrote something"
        );
    }
}

/// A page that somebody else put in the place of molora's, and a score that nobody has.
#[test]
fn what_is_not_of_molora_is_neither_replaced_nor_shown() {
    let world = World::new();
    let run = world.train(&short("lora"), "run");
    let page = run.join("report.html");
    let own = std::fs::read(&page).expect("written");
    std::fs::write(&page, "<!DOCTYPE html><p>mine").expect("writable");
    let words = "report.html: is there already and is no page of molora; move it away";
    assert_refused(&world, &["report", "run"], "a foreign page", &[words]);
    let kept = std::fs::read_to_string(&page).expect("kept");
    assert_eq!(kept, "<!DOCTYPE html><p>mine");
    std::fs::write(&page, own).expect("writable");
    World::edit(&run.join("base.json"), |base| {
        base["scores"]["tasks"]["pets"]["value"] = 1e308.into();
    });
    let words = "base.json: scores.tasks.pets.value is 1e308, expected a fraction";
    assert_refused(&world, &["report", "run"], "a score", &[words]);
    std::fs::create_dir(world.path("compared")).expect("writable");
    for (name, text) in [("compare.toml", ""), ("compare.html", "<p>mine")] {
        std::fs::write(world.path("compared").join(name), text).expect("writable");
    }
    let arguments = [
        "compare",
        "lora,samora",
        "--model",
        "model",
        "--data",
        "data",
    ];
    let arguments = [&arguments[..], &["--seeds", "1", "--out", "compared"]].concat();
    let words = "compare.html: is there already and is no page of molora";
    assert_refused(&world, &arguments, "a foreign comparison", &[words]);
}

/// A result whose parts do not fit together is refused by the part.
#[test]
fn a_broken_comparison_is_named() {
    let world = World::new();
    reported_comparison(&world);
    let whole = read(&world.path("c/compare.json"));
    let recipe = |value: &mut Value, name: &str| value["recipes"][0]["name"] = json!(name);
    type Change<'a> = &'a dyn Fn(&mut Value);
    let cases: [(Change<'_>, &str); 7] = [
        (
            &|v| v["recipes"] = json!([]),
            "recipes is empty, expected at least one",
        ),
        (
            &|v| v["seeds"] = json!(0),
            "seeds is 0, but recipe `lora` has 2 scores",
        ),
        (
            &|v| v["seeds"] = json!(u64::MAX),
            "but recipe `lora` has 2 scores",
        ),
        (
            &|v| v["tasks"][0] = json!("x"),
            "tasks has `x`, but `lora` has no score of it",
        ),
        (
            &|v| v["recipes"][1]["tasks"] = json!({}),
            "has no score of it",
        ),
        (
            &|v| recipe(v, "../../etc"),
            "recipes: `../../etc` is no name of a folder",
        ),
        (&|v| recipe(v, "<b>"), "<b>-seed0"),
    ];
    for (change, expected) in cases {
        World::edit(&world.path("c/compare.json"), change);
        for arguments in [
            "report c --output page.html",
            "report c c --output page.html",
        ] {
            let arguments: Vec<&str> = arguments.split(' ').collect();
            assert_refused(&world, &arguments, expected, &[expected]);
        }
        std::fs::write(world.path("c/compare.json"), &whole).expect("writable");
    }
    assert!(!world.path("page.html").exists());
}
