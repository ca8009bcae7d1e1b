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
    // The fifths of a rank of 4, rounded.
    for (expert, rank) in [("1", 1), ("2", 3)] {
        let out = format!("expert-{expert}");
        let arguments = ["export", "run", "--expert", expert, "--out", &out];
        let output = world.run(&arguments);
        let printed = String::from_utf8_lossy(&output.stdout);
        let expected = format!("a LoRA of rank {rank} on");
        assert!(printed.contains(&expected), "{expert}: {printed}");
    }
    let (done, errors) = run(&world, &["export", "run", "--expert", "3"]);
    assert!(!done && errors.contains("number from 0 to 2"), "{errors}");
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
