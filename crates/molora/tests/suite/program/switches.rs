//! Switches that a recipe takes whatever its method (DoRA, LoRA+), the list of all methods, and the schema of
//! their files.

use molora_train::recipe::{self, Recipe};

use crate::world::{
    World, assert_same_run, read_json, read_tensors, resume_to_end, small, steps, train_until,
};

fn with_dora(name: &str) -> Recipe {
    let mut recipe = small(name);
    recipe.adapter.dora = true;
    recipe
}

#[test]
fn dora_starts_at_the_base_and_learns_magnitudes() {
    let world = World::new();
    for name in ["lora", "hydralora", "samora"] {
        let plain = world.train(&small(name), &format!("plain-{name}"));
        let dora = world.train(&with_dora(name), &format!("dora-{name}"));
        let [plain, first] = [&plain, &dora].map(|folder| steps(folder)[0].loss);
        let gap = (plain - first).abs();
        assert!(gap <= 1e-5 * plain.abs(), "{name}: {plain} {first}");
        let tensors = read_tensors(&dora.join("adapter_model.safetensors"));
        let is_magnitude = |name: &&String| name.ends_with(".lora_magnitude_vector");
        assert_eq!(tensors.keys().filter(is_magnitude).count(), 16, "{name}");
        let stopped = world.request(with_dora(name), &format!("stopped-{name}"));
        train_until(&stopped, 3);
        resume_to_end(&stopped.out);
        assert_same_run(&stopped.out, &dora);
    }
}

#[test]
fn a_lora_with_dora_is_peft_s() {
    let world = World::new();
    world.train(&with_dora("lora"), "run");
    let output = world.run(&["export", "run", "--out", "peft"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        read_json(&world.path("peft/adapter_config.json"))["use_dora"],
        true
    );
    let [run, peft] = ["run", "peft"]
        .map(|folder| read_tensors(&world.path(folder).join("adapter_model.safetensors")));
    assert_eq!(run, peft);
    let output = world.run(&["merge", "run", "--out", "merged"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn dora_is_refused_where_experts_train_alone() {
    let world = World::new();
    let output = world.run(&[
        "train",
        "moa",
        "--model",
        "model",
        "--data",
        "data",
        "--out",
        "run",
        "--set",
        "adapter.dora=true",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("adapter.dora = true rules out"), "{text}");
}

/// The first step of AdamW moves every number by its learning rate, and `B` starts at zero.
#[test]
fn lora_plus_gives_up_projections_a_rate_of_their_own() {
    let world = World::new();
    let trained = |ratio: f64, out: &str| {
        let mut recipe = small("lora");
        recipe.set_total_steps(1);
        recipe.stages[0].optimizer.up_rate_ratio = ratio;
        let folder = world.train(&recipe, out);
        read_tensors(&folder.join("adapter_model.safetensors"))
    };
    let (plain, plus) = (trained(1.0, "plain"), trained(4.0, "plus"));
    for (name, (_, values)) in &plain {
        let factor = match name.contains("lora_B") {
            true => 4.0,
            false => 1.0,
        };
        for (value, other) in values.iter().zip(&plus[name].1) {
            let gap = (value * factor - other).abs();
            assert!(gap <= 1e-5 * other.abs(), "{name}: {value} {other}");
        }
    }
}

#[test]
fn the_list_has_every_recipe_and_every_merge_once() {
    let world = World::new();
    let output = world.run(&["list"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let named = |name: &str| {
        let begins = format!("  {name} ");
        text.lines()
            .filter(|line| line.starts_with(&begins))
            .count()
    };
    for name in recipe::names() {
        assert_eq!(named(name), 1, "{name}: {text}");
    }
    for how in ["linear", "svd", "adamerging", "r-mtllmf"] {
        assert_eq!(named(how), 1, "{how}: {text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() <= 130),
        "{text}"
    );
}

#[test]
fn the_schema_is_json_by_itself() {
    let world = World::new();
    let output = world.run(&["schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON alone");
    assert_eq!(schema["title"], "Recipe");
    let rank = &schema["definitions"]["BankConfig"]["properties"]["rank"];
    assert_eq!(
        (&rank["type"], &rank["default"]),
        (&"integer".into(), &8.into())
    );
}
