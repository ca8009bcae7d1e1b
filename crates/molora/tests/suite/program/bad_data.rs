//! Task folders that cannot be used.

use std::fs;

use serde_json::json;

use super::refusal::{Mistake, check, nothing};
use crate::world::World;

/// Changes one line (from 1) of the pets' training split.
fn line(world: &World, number: usize, change: impl Fn(&str) -> String) {
    let path = world.data("pets/train.jsonl");
    let text = fs::read_to_string(&path).expect("readable");
    let changed = |(index, line): (usize, &str)| match index + 1 == number {
        true => change(line) + "\n",
        false => line.to_owned() + "\n",
    };
    let text: String = text.lines().enumerate().map(changed).collect();
    fs::write(path, text).expect("writable");
}

fn meta(world: &World, key: &str, value: serde_json::Value) {
    World::edit(&world.data("pets/task.json"), |meta| meta[key] = value);
}

#[test]
fn tasks_that_are_not_there() {
    check(&[
        Mistake {
            name: "no data folder",
            damage: nothing,
            arguments: &["--data", "dtaa"],
            expected: &["dtaa: cannot be read: No such file"],
        },
        Mistake {
            name: "a folder without tasks",
            damage: nothing,
            arguments: &["--data", "model"],
            expected: &["model: no task in it"],
        },
        Mistake {
            name: "a misspelt task",
            damage: nothing,
            arguments: &["--tasks", "weather,pest"],
            expected: &["data: no task \"pest\" (did you mean pets?); there are answer, pets"],
        },
        Mistake {
            name: "a task named twice",
            damage: nothing,
            arguments: &["--tasks", "pets,pets"],
            expected: &["task \"pets\" is named twice"],
        },
        Mistake {
            name: "no training split",
            damage: |world| fs::remove_file(world.data("pets/train.jsonl")).expect("a file"),
            arguments: &[],
            expected: &["data/pets/train.jsonl: cannot be read: No such file"],
        },
        Mistake {
            name: "an empty split",
            damage: |world| fs::write(world.data("pets/test.jsonl"), "").expect("writable"),
            arguments: &[],
            expected: &["data/pets/test.jsonl: holds no records"],
        },
    ]);
}

#[test]
fn tasks_that_say_something_else() {
    check(&[
        Mistake {
            name: "a task of another kind",
            damage: |world| {
                meta(world, "type", json!("generation"));
                meta(world, "labels", json!(null));
                meta(world, "metric", json!("exact_match"));
                for split in ["train", "validation", "test"] {
                    let path = world.data(&format!("pets/{split}.jsonl"));
                    let text = fs::read_to_string(&path).expect("readable");
                    let text = text.replace("\"classification\"", "\"generation\"");
                    let text = text.replace("\"label\":0", "\"label\":null");
                    let text = text.replace("\"label\":1", "\"label\":null");
                    fs::write(path, text).expect("writable");
                }
            },
            arguments: &[],
            expected: &["pets is generation: an encoder writes no answers"],
        },
        Mistake {
            name: "an unknown metric",
            damage: |world| meta(world, "metric", json!("acuracy")),
            arguments: &[],
            expected: &["data/pets/task.json: unknown metric \"acuracy\""],
        },
        Mistake {
            name: "another task's name",
            damage: |world| meta(world, "task", json!("cars")),
            arguments: &[],
            expected: &["data/pets", "\"cars\"", "\"pets\""],
        },
        Mistake {
            name: "one label",
            damage: |world| meta(world, "labels", json!(["cat"])),
            arguments: &[],
            expected: &["data/pets/task.json: key \"labels\" lists 1 labels"],
        },
        Mistake {
            name: "broken task.json",
            damage: |world| fs::write(world.data("pets/task.json"), "{").expect("writable"),
            arguments: &[],
            expected: &["data/pets/task.json", "broken JSON", "line 1"],
        },
    ]);
}

#[test]
fn records_that_cannot_be_used() {
    check(&[
        Mistake {
            name: "broken JSON",
            damage: |world| line(world, 17, |line| line[..40].to_owned()),
            arguments: &[],
            expected: &["data/pets/train.jsonl:17: broken JSON"],
        },
        Mistake {
            name: "label out of range",
            damage: |world| line(world, 17, |line| line.replace("\"label\":0", "\"label\":2")),
            arguments: &[],
            expected: &[
                "data/pets/train.jsonl:17: label 2 is out of range",
                "(0 to 1)",
            ],
        },
        Mistake {
            name: "negative label",
            damage: |world| line(world, 3, |line| line.replace("\"label\":0", "\"label\":-1")),
            arguments: &[],
            expected: &["data/pets/train.jsonl:3: label -1 is out of range"],
        },
        Mistake {
            name: "label by name",
            damage: |world| {
                line(world, 3, |line| {
                    line.replace("\"label\":0", "\"label\":\"cat\"")
                })
            },
            arguments: &[],
            expected: &["train.jsonl:3: key \"label\" holds the string \"cat\""],
        },
        Mistake {
            name: "missing key",
            damage: |world| line(world, 17, |line| line.replace("\"input\":", "\"inptu\":")),
            arguments: &[],
            expected: &["data/pets/train.jsonl:17: key \"input\" is missing"],
        },
        Mistake {
            name: "no UTF-8",
            damage: |world| {
                let path = world.data("pets/train.jsonl");
                let mut bytes = fs::read(&path).expect("readable");
                let place = bytes.iter().position(|&byte| byte == b'w').expect("a word");
                bytes[place] = 0xff;
                fs::write(path, bytes).expect("writable");
            },
            arguments: &[],
            expected: &["data/pets/train.jsonl:1: "],
        },
        Mistake {
            name: "a blank line",
            damage: |world| line(world, 5, |_| String::new()),
            arguments: &[],
            expected: &["data/pets/train.jsonl:5: blank line"],
        },
    ]);
}
