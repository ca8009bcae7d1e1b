//! Files of runs whose experts are no LoRAs side by side: of different rank, or pairs of vectors.

use crate::world::{World, small};

fn run(world: &World, arguments: &[&str]) -> (bool, String) {
    let output = world.run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), errors)
}

#[test]
fn experts_of_different_rank_are_exported_by_their_choice() {
    let world = World::new();
    let mut recipe = small("duo-lora");
    recipe.adapter.dora = true;
    world.train(&recipe, "dora");
    world.train(&small("duo-lora"), "run");
    let (done, errors) = run(&world, &["export", "run"]);
    assert!(!done && errors.contains("--expert N (0 to 2)"), "{errors}");
    for expert in ["0", "1", "2"] {
        let out = format!("expert-{expert}");
        let (done, errors) = run(
            &world,
            &["export", "run", "--expert", expert, "--out", &out],
        );
        assert!(done, "{expert}: {errors}");
    }
}

#[test]
fn pairs_of_vectors_are_no_experts() {
    let world = World::new();
    world.train(&small("mixlora-cfs"), "run");
    for arguments in [
        &["export", "run", "--expert", "0"][..],
        &["merge", "run", "--expert", "0", "--out", "whole"],
        &["oracle", "run"],
    ] {
        let (done, errors) = run(&world, arguments);
        assert!(
            !done && errors.contains("choose pairs of vectors"),
            "{arguments:?}: {errors}"
        );
    }
}
