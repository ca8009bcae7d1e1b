//! Stages, groups, instructions and experts that do not go together.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use molora_train::TrainError;
use molora_train::run::{Request, ResumeOptions, resume, train};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;

use super::refusal::{Mistake, assert_refused, check_recipe, nothing};
use crate::world::{World, entries, read_tensors, small};

/// A value of the recipe at fault: `--set ASSIGNMENT`, which comes last.
const fn value(
    assignment: &'static [&'static str; 2],
    expected: &'static [&'static str],
) -> Mistake {
    Mistake {
        name: assignment[1],
        damage: nothing,
        arguments: assignment,
        expected,
    }
}

#[test]
fn groups_that_do_not_divide_the_tasks() {
    check_recipe(
        "at-moe",
        &[
            value(
                &[
                    "--set",
                    "adapter.groups={ a = [\"pets\", \"answer\"], b = [\"pets\", \"weather\"] }",
                ],
                &["task pets is in groups a and b, expected one group"],
            ),
            value(
                &[
                    "--set",
                    "adapter.groups={ a = [\"pets\"], b = [\"answer\"] }",
                ],
                &["task weather is in no group, expected one"],
            ),
            value(
                &[
                    "--set",
                    "adapter.groups={ a = [\"pets\", \"answer\", \"weather\"], b = [] }",
                ],
                &["group b has no tasks, expected at least one"],
            ),
            value(
                &[
                    "--set",
                    "adapter.groups={ a = [\"pets\", \"answer\", \"weather\", \"food\"] }",
                ],
                &["group a names food, which is no task of this run: answer, pets, weather"],
            ),
            Mistake {
                name: "a group for one task alone",
                damage: |world| {
                    World::edit(&world.data("pets/task.json"), |meta| {
                        meta["group"] = json!("a")
                    });
                },
                arguments: &[],
                expected: &["task answer has no group in its task.json, but others have"],
            },
            Mistake {
                name: "a group that is no word",
                damage: |world| {
                    World::edit(&world.data("pets/task.json"), |meta| {
                        meta["group"] = json!(3)
                    });
                },
                arguments: &[],
                expected: &["pets/task.json", "group"],
            },
        ],
    );
    check_recipe(
        "moa",
        &[value(
            &[
                "--set",
                "adapter.groups={ a = [\"pets\", \"answer\", \"weather\"] }",
            ],
            &["groups needs router.scorer.grouped"],
        )],
    );
}

#[test]
fn labels_and_instructions_that_are_missing() {
    check_recipe(
        "moa",
        &[value(
            &["--set", "stages.2.routing=router"],
            &["stages.2: domain_cross_entropy needs routing = \"label\""],
        )],
    );
    check_recipe(
        "glider",
        &[
            Mistake {
                name: "no instruction",
                damage: |world| {
                    World::edit(&world.data("pets/task.json"), |meta| {
                        meta.as_object_mut()
                            .expect("an object")
                            .remove("instruction");
                    });
                },
                arguments: &[],
                expected: &["pets/task.json", "instruction"],
            },
            Mistake {
                name: "an empty instruction",
                damage: |world| {
                    World::edit(&world.data("pets/task.json"), |meta| {
                        meta["instruction"] = json!(" ");
                    });
                },
                arguments: &[],
                expected: &["task pets has no instruction in its task.json"],
            },
            value(
                &["--set", "instructions.weight=-1"],
                &["instructions.weight is -1, expected at least 0"],
            ),
        ],
    );
}

#[test]
fn stages_that_train_nothing_or_everything() {
    check_recipe(
        "moa",
        &[
            value(
                &["--set", "stages.0.trainable=[]"],
                &["stages.0.trainable is empty"],
            ),
            value(
                &["--set", "stages.0.trainable=[\"routers\"]"],
                &["stages.0.trainable matches no parameter"],
            ),
            value(
                &["--set", "stages.2.trainable=[\"gates\"]"],
                &["stages.2.trainable matches no parameter"],
            ),
            value(
                &[
                    "--set",
                    "stages.2.trainable=[\"base\", \"adapters\", \"routers\", \"heads\"]",
                ],
                &["stages.2.trainable has base, which is always frozen"],
            ),
            value(
                &["--set", "stages.1.steps=3"],
                &["stages.1.transform computes no gradient"],
            ),
            value(
                &["--set", "stages.0.steps=2"],
                &["stages.0.steps is 2 for 3 experts: none is left for weather"],
            ),
            value(
                &["--set", "stages.0.tasks=[\"pets\", \"food\"]"],
                &["stages.0.tasks.1 is food, which is no task of this run"],
            ),
        ],
    );
    check_recipe(
        "phatgoose",
        &[value(
            &["--set", "stages.1.trainable=[\"adapters\"]"],
            &["stages.1.trainable has adapters, but an expert behind its gate is frozen"],
        )],
    );
}

#[test]
fn stages_in_the_wrong_order() {
    check_recipe(
        "phatgoose",
        &[
            value(
                &["--set", "stages.0.gated=true"],
                &["stages.0: gates train on experts of an earlier stage, and there is none"],
            ),
            value(
                &["--set", "stages.2.transform=collect_prototypes"],
                &["stages.2: prototypes are collected from gates, after the experts are assembled"],
            ),
            value(
                &["--set", "stages.3.name=gates"],
                &["stages.3.name is \"gates\", expected a name of its own"],
            ),
            Mistake {
                name: "an unknown last stage",
                damage: nothing,
                arguments: &["--until-stage", "gate"],
                expected: &[
                    "no stage is named gate; there are: experts, gates, assemble, prototypes",
                ],
            },
        ],
    );
    let groups = "adapter.groups={ all = [\"pets\", \"answer\", \"weather\"] }";
    let world = World::new();
    for (assignment, expected) in [
        (
            "stages.0.scope=mixture",
            "stages.2: adapter.general needs a general expert of an earlier stage",
        ),
        (
            "adapter.bank.slices=shared_a",
            "experts that train alone need adapter.bank.slices = \"independent\"",
        ),
    ] {
        let arguments = ["train", "at-moe", "--model", "model", "--data", "data"];
        let length = [
            "--set",
            "data.max_length=24",
            "--set",
            groups,
            "--set",
            assignment,
        ];
        let arguments = [&arguments[..], &length[..]].concat();
        assert_refused(&world, &arguments, assignment, &[expected]);
    }
}

/// A run of `phatgoose` up to its gates, which are trained on the experts in the run folder.
fn experts(world: &World) -> Request {
    let mut request = world.request(small("phatgoose"), "run");
    request.until = Some("experts".into());
    let never = AtomicBool::new(false);
    let stopped = train(&request, &never, &mut |_| {}).expect_err("it stops");
    assert!(
        matches!(stopped, TrainError::Interrupted { .. }),
        "{stopped}"
    );
    request
}

/// Writes tensors of a file again, after a change of shape and values.
fn rewrite(path: &Path, change: impl Fn(&mut Vec<usize>, &mut Vec<f32>)) {
    let mut tensors = read_tensors(path);
    let bytes: Vec<_> = tensors
        .iter_mut()
        .map(|(name, (shape, values))| {
            change(shape, values);
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            (name.clone(), shape.clone(), bytes)
        })
        .collect();
    let old = std::fs::read(path).expect("readable");
    let (_, header) = SafeTensors::read_metadata(&old).expect("a safetensors file");
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (name, view.expect("as long as its shape"))
    });
    serialize_to_file(views, header.metadata().clone(), path).expect("writable");
}

#[test]
fn experts_that_do_not_belong_together_are_named() {
    let world = World::new();
    let request = experts(&world);
    let config = "adapter_config.json";
    type Damage = fn(&Path);
    let damages: [(&str, Damage, &[&str]); 5] = [
        (
            "another base model",
            |expert| {
                World::edit(&expert.join("adapter_config.json"), |config| {
                    config["base_model_name_or_path"] = json!("another");
                });
            },
            &[
                config,
                "base_model_name_or_path is another",
                "another base model",
            ],
        ),
        (
            "another rank",
            |expert| World::edit(&expert.join("adapter_config.json"), |c| c["r"] = json!(2)),
            &[config, "r is 2, expected 4"],
        ),
        (
            "other sites",
            |expert| {
                World::edit(&expert.join("adapter_config.json"), |config| {
                    config["target_modules"] = json!(["query"]);
                });
            },
            &[
                config,
                "target_modules are sites encoder.layer.0.attention.self.query and 3 more",
            ],
        ),
        (
            "another width",
            |expert| {
                rewrite(
                    &expert.join("adapter_model.safetensors"),
                    |shape, values| {
                        shape[1] -= 1;
                        values.truncate(shape.iter().product());
                    },
                );
            },
            &["adapter_model.safetensors", "shape"],
        ),
        (
            "no file",
            |expert| {
                let file = expert.join("adapter_model.safetensors");
                std::fs::remove_file(file).expect("a file");
            },
            &["adapter_model.safetensors", "No such file"],
        ),
    ];
    for (name, damage, expected) in damages {
        let run = world.path(name);
        crate::world::copy_folder(&request.out, &run);
        damage(&run.join("experts/weather"));
        let arguments = ["train", "--resume", name];
        let line = assert_refused(&world, &arguments, name, &["experts/weather"]);
        for text in expected {
            assert!(
                line.contains(text),
                "{name}: `{text}` is missing in: {line}"
            );
        }
    }
}

#[test]
fn an_unknown_last_stage_leaves_a_run_as_it_was() {
    let world = World::new();
    let request = experts(&world);
    let before = entries(&request.out);
    let part = ResumeOptions {
        from: Some("experts".into()),
        until: Some("gate".into()),
        ..ResumeOptions::default()
    };
    let never = AtomicBool::new(false);
    let error = resume(&request.out, &part, &never, &mut |_| {}).expect_err("no such stage");
    assert!(
        error.to_string().contains("no stage is named gate"),
        "{error}"
    );
    assert_eq!(entries(&request.out), before);
}

/// No gradient moves Arrow's directions from their start at zero: every token would get the first
/// experts for ever.
#[test]
fn directions_that_nothing_computes() {
    check_recipe(
        "moa",
        &[value(
            &["--set", "adapter.router.scorer=arrow"],
            &["adapter.router.scorer = \"arrow\" is not trained"],
        )],
    );
    check_recipe(
        "samora",
        &[value(
            &["--set", "adapter.router.scorer=arrow"],
            &["adapter.router.scorer = \"arrow\" is not trained"],
        )],
    );
}
