//! What is measured once for a machine.

use crate::world::World;

/// One step on the tiny model.
const ARGUMENTS: [&str; 12] = [
    "train",
    "lora",
    "--model",
    "model",
    "--data",
    "data",
    "--steps",
    "1",
    "--set",
    "data.max_length=16",
    "--out",
    "OUT",
];

#[test]
fn a_machine_is_measured_once_and_again_if_its_file_is_broken() {
    let world = World::new();
    let cache = world.path("cache");
    let file = cache.join("molora/machine.toml");
    let train = |out: &str| {
        let mut program =
            world.program(&ARGUMENTS.map(|text| if text == "OUT" { out } else { text }));
        let output = program.env("XDG_CACHE_HOME", &cache).output();
        let output = output.expect("the program starts");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        std::fs::read_to_string(&file).expect("the measurements are kept")
    };
    let first = train("first");
    assert!(first.contains("sparse_ratio = "), "{first}");
    assert_eq!(train("second"), first);
    std::fs::write(&file, "sparse_ratio = many\n").expect("can be written");
    assert!(train("third").contains("processor = "));
}

#[test]
fn a_cache_folder_that_cannot_be_written_is_no_error() {
    let world = World::new();
    let file = world.path("file");
    std::fs::write(&file, "").expect("can be written");
    let mut program = world.program(&ARGUMENTS);
    let output = program.env("XDG_CACHE_HOME", &file).output();
    let output = output.expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}
