//! Running the program on something that it has to refuse.

use molora_train::recipe;

use crate::world::{World, entries};

/// One mistake and what the program has to say about it.
pub(crate) struct Mistake {
    /// What it is, for the test's own messages.
    pub(crate) name: &'static str,
    /// Damage to model, data or anything else in the folder.
    pub(crate) damage: fn(&World),
    /// Arguments beside `train RECIPE --model model --data data --out run`.
    pub(crate) arguments: &'static [&'static str],
    /// What the error has to contain.
    pub(crate) expected: &'static [&'static str],
}

/// No damage: the arguments are at fault.
pub(crate) fn nothing(_: &World) {}

/// Runs `train samora` for each mistake.
pub(crate) fn check(mistakes: &[Mistake]) {
    check_recipe("samora", mistakes);
}

/// Runs `train` for each mistake: the program has to say one line, end with code 1 and leave the
/// folder as it was.
pub(crate) fn check_recipe(recipe: &str, mistakes: &[Mistake]) {
    for mistake in mistakes {
        let world = World::new();
        (mistake.damage)(&world);
        let before = entries(&world.path("."));
        let mut arguments = vec!["train", recipe, "--set", "data.max_length=24"];
        let mut defaults = vec![["--model", "model"], ["--data", "data"], ["--out", "run"]];
        // Only a recipe of one stage takes a number of steps.
        if !recipe::find(recipe).is_ok_and(|recipe| recipe.stages.len() > 1) {
            defaults.push(["--steps", "2"]);
        }
        for default in defaults {
            if !mistake.arguments.contains(&default[0]) {
                arguments.extend(default);
            }
        }
        arguments.extend(mistake.arguments);
        assert_refused(&world, &arguments, mistake.name, mistake.expected);
        assert_eq!(
            entries(&world.path(".")),
            before,
            "{} wrote something",
            mistake.name
        );
    }
}

/// The program ends with code 1 and one line that contains all of `expected`; returns the line.
pub(crate) fn assert_refused(
    world: &World,
    arguments: &[&str],
    name: &str,
    expected: &[&str],
) -> String {
    let output = world.run(arguments);
    let errors = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{name}: {errors}");
    assert!(
        output.stdout.is_empty(),
        "{name} printed to standard output"
    );
    let is_phase = |line: &&str| ["loading model and tasks", "training"].contains(line);
    let steps = ["step ", "stage ", "kept the state of step "];
    let is_step = |line: &&str| steps.iter().any(|step| line.starts_with(step));
    let lines: Vec<&str> = errors
        .lines()
        .filter(|line| !is_phase(line) && !is_step(line))
        .collect();
    let [line] = lines[..] else {
        panic!("{name}: expected one line, found {errors}");
    };
    assert!(line.starts_with("error: "), "{name}: {line}");
    for text in expected {
        assert!(
            line.contains(text),
            "{name}: `{text}` is missing in: {line}"
        );
    }
    line.to_owned()
}
