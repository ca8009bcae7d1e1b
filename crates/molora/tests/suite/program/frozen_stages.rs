//! What stays bit for bit from one stage of a recipe to the next.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use molora_models::ParameterKind;
use molora_train::recipe::Recipe;
use molora_train::run::train;
use molora_train::train::Event;

use super::frozen::kind;
use crate::world::{World, assert_same_files, copy_folder, entries, read_tensors, small};

/// Trains a recipe in the folder `run`, and copies its experts whenever a stage begins, into folders
/// named by the stage.
fn watch(world: &World, recipe: &Recipe) -> Vec<String> {
    let request = world.request(recipe.clone(), "run");
    let mut begun: Vec<String> = Vec::new();
    let never = AtomicBool::new(false);
    train(&request, &never, &mut |event| {
        let Event::Stage(stage) = event else { return };
        if begun.iter().any(|name| name == stage.name) {
            return;
        }
        begun.push(stage.name.into());
        for folder in ["experts", "general"] {
            let from = request.out.join(folder);
            if from.exists() {
                copy_folder(&from, &world.path(stage.name).join(folder));
            }
        }
    })
    .expect("a whole run");
    begun
}

/// The files of an expert without its gate, which a later stage adds.
fn assert_same_expert(found: &Path, expected: &Path) {
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
    ] {
        let read = |folder: &Path| std::fs::read(folder.join(file)).expect("a file of an expert");
        assert!(
            read(found) == read(expected),
            "{file} of {}",
            found.display()
        );
    }
}

/// The tensors of the mixture's banks are those of the experts in the folder, in their order.
fn assert_assembled(mixture: &Path, run: &Path, has_general: bool) {
    let mut folders: Vec<_> = entries(&run.join("experts"))
        .into_iter()
        .map(|name| run.join("experts").join(name))
        .collect();
    folders.extend(has_general.then(|| run.join("general")));
    let experts: Vec<_> = folders
        .iter()
        .map(|folder| read_tensors(&folder.join("adapter_model.safetensors")))
        .collect();
    let mut banks = 0;
    for (name, (_, values)) in read_tensors(&mixture.join("adapter_model.safetensors")) {
        if kind(&name) != ParameterKind::Adapters {
            continue;
        }
        let of_expert = name.replace(".experts.", ".") + ".weight";
        let expected: Vec<f32> = experts
            .iter()
            .flat_map(|expert| expert[&of_expert].1.clone())
            .collect();
        assert!(values == expected, "{name}");
        banks += 1;
    }
    assert_eq!(banks, experts[0].len(), "A and B of every site");
}

/// Only kinds in `trainable` differ between two folders with adapter and heads.
fn assert_only_changed(before: &Path, after: &Path, trainable: &[ParameterKind]) {
    let mut changed = Vec::new();
    for file in ["adapter_model.safetensors", "heads.safetensors"] {
        let (before, after) = (
            read_tensors(&before.join(file)),
            read_tensors(&after.join(file)),
        );
        assert_eq!(before.len(), after.len());
        for (name, (_, values)) in &after {
            let kind = kind(name);
            if before[name].1 != *values {
                assert!(trainable.contains(&kind), "{name} changed");
                changed.push(kind);
            }
        }
    }
    for kind in trainable {
        assert!(changed.contains(kind), "{kind:?} did not change");
    }
}

#[test]
fn experts_stay_as_they_were_trained() {
    for name in ["at-moe", "moa", "phatgoose", "glider"] {
        let world = World::new();
        let begun = watch(&world, &small(name));
        let run = world.path("run");
        let after = begun
            .iter()
            .position(|stage| stage == "experts")
            .expect("listed")
            + 1;
        for stage in &begun[after..] {
            for expert in entries(&run.join("experts")) {
                let folder = |root: &Path| root.join("experts").join(&expert);
                assert_same_expert(&folder(&run), &folder(&world.path(stage)));
            }
        }
        for stage in begun
            .iter()
            .filter(|_| run.join("general").exists())
            .skip(1)
        {
            assert_same_files(&run.join("general"), &world.path(stage).join("general"));
        }
    }
}

#[test]
fn a_mixture_is_made_of_the_experts_bit_for_bit() {
    for (name, begins_with) in [
        ("at-moe", "run/stages/routers"),
        ("moa", "run/stages/routers"),
        ("phatgoose", "run"),
        ("glider", "run"),
    ] {
        let world = World::new();
        world.train(&small(name), "run");
        assert_assembled(
            &world.path(begins_with),
            &world.path("run"),
            name == "at-moe",
        );
    }
}

#[test]
fn the_last_stage_changes_what_it_trains_and_nothing_else() {
    use ParameterKind::{Adapters, Heads, Routers};
    for (name, trainable) in [
        ("at-moe", vec![Routers, Heads]),
        ("moa", vec![Adapters, Routers, Heads]),
        ("moa", vec![Routers]),
    ] {
        let world = World::new();
        let mut recipe = small(name);
        let last = recipe.stages.last_mut().expect("stages");
        last.trainable.clone_from(&trainable);
        let run = world.train(&recipe, "run");
        assert_only_changed(&run.join("stages/routers"), &run, &trainable);
    }
}
