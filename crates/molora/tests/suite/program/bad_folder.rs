//! Run folders that cannot be used, and runs that fail on their way.

use std::fs;
use std::path::Path;

use super::refusal::{Mistake, assert_refused, check};
use crate::world::{World, copy_folder, edit_tensors, entries, resume_to_end, small, train_until};

const TRAIN: [&str; 8] = [
    "train",
    "samora",
    "--model",
    "model",
    "--data",
    "data",
    "--set",
    "data.max_length=24",
];

#[test]
fn output_folders_that_cannot_be_made() {
    check(&[
        Mistake {
            name: "below a file",
            damage: |_| {},
            arguments: &["--out", "model/config.json/run"],
            expected: &["model/config.json: is a file, expected a folder"],
        },
        Mistake {
            name: "a file",
            damage: |_| {},
            arguments: &["--out", "model/config.json", "--force"],
            expected: &["model/config.json: is a file"],
        },
        Mistake {
            name: "a folder that is no run",
            damage: |_| {},
            arguments: &["--out", "data", "--force"],
            expected: &["data: holds files but no run.toml"],
        },
    ]);
}

#[test]
fn a_run_is_replaced_only_by_force_and_only_by_a_run_that_starts() {
    let world = World::new();
    let run = world.train(&small("lora"), "run");
    let read = || fs::read(run.join("run.toml")).expect("a run");
    let before = read();
    let out = [&TRAIN[..], &["--out", "run", "--steps", "4"]].concat();
    assert_refused(
        &world,
        &out,
        "exists",
        &["run: exists already", "--resume", "--force"],
    );
    let forced = [&out[..], &["--force"]].concat();
    let wrong = [&forced[..], &["--set", "adapter.bank.rank=0"]].concat();
    assert_refused(&world, &wrong, "a mistake with --force", &["rank is 0"]);
    assert_eq!(read(), before, "a run that cannot start replaces nothing");
    let output = world.run(&forced);
    assert!(output.status.success());
    assert_ne!(read(), before);
}

#[test]
fn runs_that_cannot_go_on() {
    let world = World::new();
    world.train(&small("lora"), "done");
    let resume = |run| ["train", "--resume", run];
    assert_refused(
        &world,
        &resume("done"),
        "finished",
        &["done: the run is finished"],
    );
    assert_refused(
        &world,
        &resume("data"),
        "no run",
        &["data: holds no run.toml"],
    );
    assert_refused(&world, &resume("nowhere"), "no folder", &["nowhere: "]);
    let broken = world.path("broken");
    copy_folder(&world.path("done"), &broken);
    fs::remove_file(broken.join("summary.json")).expect("a finished run");
    let text = fs::read_to_string(broken.join("run.toml")).expect("readable");
    let line = 1 + text
        .lines()
        .position(|line| line == "seed = 0")
        .expect("a seed");
    fs::write(
        broken.join("run.toml"),
        text.replace("seed = 0", "sede = 0"),
    )
    .expect("writable");
    let expected = format!("broken/run.toml:{line}: unknown field `sede`");
    assert_refused(
        &world,
        &resume("broken"),
        "a changed run.toml",
        &[&expected],
    );
}

#[test]
fn a_run_whose_data_changed_does_not_go_on() {
    let world = World::new();
    let request = world.request(small("lora"), "run");
    train_until(&request, 6);
    let arguments = ["train", "--resume", "run"];
    let path = world.data("pets/train.jsonl");
    let text = fs::read_to_string(&path).expect("readable");
    let shorter: Vec<&str> = text.lines().skip(1).collect();
    fs::write(&path, shorter.join("\n") + "\n").expect("writable");
    assert_refused(
        &world,
        &arguments,
        "fewer records",
        &["run/run.toml: train.jsonl of task pets changed since the run began"],
    );
    fs::write(&path, text).expect("writable");
    resume_to_end(&request.out);
}

/// The newest checkpoint of a run.
fn checkpoint(run: &Path) -> std::path::PathBuf {
    let names = entries(&run.join("checkpoints"));
    run.join("checkpoints")
        .join(names.last().expect("a checkpoint"))
}

#[test]
fn broken_checkpoints_are_named() {
    let world = World::new();
    let request = world.request(small("samora"), "run");
    train_until(&request, 6);
    let files = entries(&checkpoint(&request.out));
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        // Nothing reads the configuration beside the tensors: run.toml has the recipe.
        if file == "adapter_config.json" {
            continue;
        }
        for keep in [0.0, 0.5, 0.99] {
            let run = world.path("broken");
            copy_folder(&request.out, &run);
            let path = checkpoint(&run).join(&file);
            let bytes = fs::read(&path).expect("readable");
            let size = (bytes.len() as f64 * keep) as usize;
            fs::write(&path, &bytes[..size]).expect("writable");
            let name = format!("{size} bytes of {file}");
            assert_refused(&world, &["train", "--resume", "broken"], &name, &[&file]);
            fs::remove_dir_all(&run).expect("a folder");
        }
    }
}

#[test]
fn runs_that_cannot_be_evaluated() {
    let world = World::new();
    let request = world.request(small("samora"), "run");
    train_until(&request, 6);
    let eval = ["eval", "run"];
    assert_refused(
        &world,
        &eval,
        "unfinished",
        &["run: the run is not finished", "--resume"],
    );
    // As a kill between the last step and the last file leaves it.
    fs::write(request.out.join("adapter_model.safetensors"), "half").expect("writable");
    assert_refused(
        &world,
        &eval,
        "unfinished",
        &["run: the run is not finished"],
    );
    resume_to_end(&request.out);
    assert_refused(
        &world,
        &["eval", "data"],
        "no run",
        &["data: holds no run.toml"],
    );
    assert_refused(
        &world,
        &["eval", "run", "--data", "model"],
        "no tasks",
        &["model: no task"],
    );
    World::edit(&world.data("weather/task.json"), |meta| {
        meta["labels"]
            .as_array_mut()
            .expect("a list")
            .push("hail".into());
    });
    let expected = [
        "changed since the run began: task.json of task weather",
        "--anyway",
    ];
    assert_refused(&world, &eval, "more labels", &expected);
    let data = world.path("other");
    fs::rename(world.path("data"), &data).expect("a folder");
    let expected = [
        "weather/task.json: the labels of task weather are not those",
        "4 labels",
    ];
    let eval = ["eval", "run", "--data", "other"];
    assert_refused(&world, &eval, "more labels elsewhere", &expected);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint() {
    let world = World::new();
    // The rate rises over the steps until numbers overflow.
    let rising = [
        "--out",
        "run",
        "--steps",
        "400",
        "--set",
        "checkpoint_every=1",
        "--set",
        "stages.0.schedule.warmup=0.99",
        "--set",
        "stages.0.optimizer.learning_rate=1e30",
    ];
    let line = assert_refused(
        &world,
        &[&TRAIN[..], &rising].concat(),
        "a huge rate",
        &[
            "error: step ",
            "the last good checkpoint is run/checkpoints/step-",
        ],
    );
    let step: usize = line["error: step ".len()..line.find(": the").expect("a step")]
        .parse()
        .expect("a number");
    let kept = checkpoint(&world.path("run"));
    assert_eq!(
        kept.file_name().expect("a name").to_str(),
        Some(&*format!("step-{:08}", step - 1))
    );
    for file in ["adapter_model.safetensors", "heads.safetensors"] {
        let tensors = crate::world::read_tensors(&kept.join(file));
        assert!(
            tensors
                .values()
                .all(|(_, values)| values.iter().all(|value| value.is_finite()))
        );
    }
}

#[test]
fn weights_that_overflow_are_neither_kept_nor_called_a_result() {
    // The first step's loss is good, its update is not.
    for steps in ["1", "9"] {
        let world = World::new();
        let huge = [
            "--out",
            "run",
            "--steps",
            steps,
            "--set",
            "checkpoint_every=1",
            "--set",
            "stages.0.optimizer.learning_rate=1e300",
        ];
        let expected = ["error: step 1: ", "there is no checkpoint yet"];
        assert_refused(
            &world,
            &[&TRAIN[..], &huge].concat(),
            "an infinite rate",
            &expected,
        );
        assert_eq!(entries(&world.path("run")), ["run.toml", "steps.jsonl"]);
    }
}

#[test]
fn a_base_with_a_weight_that_is_no_number_is_noticed() {
    for value in [f32::NAN, f32::INFINITY] {
        let world = World::new();
        edit_tensors(&world, |tensors| {
            let name = "encoder.layer.0.attention.self.value.weight";
            tensors.get_mut(name).expect("a tensor").1[5] = value;
        });
        let arguments = [&TRAIN[..], &["--out", "run", "--steps", "4"]].concat();
        assert_refused(
            &world,
            &arguments,
            "no number",
            &["error: ", "expected finite numbers"],
        );
    }
}
