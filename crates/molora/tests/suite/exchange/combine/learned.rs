//! Merges that learn, from records with and without labels.

use crate::world::{World, copy_folder, read_json, read_tensors, small};

use super::world;

/// The entropies that the program prints.
fn entropies(text: &str) -> [f64; 2] {
    let line = text
        .lines()
        .find(|line| line.starts_with("mean entropy of predictions: "));
    let line = line.unwrap_or_else(|| panic!("no entropy: {text}"));
    let numbers: Vec<f64> = line
        .split([' ', ','])
        .filter_map(|word| word.parse().ok())
        .collect();
    numbers.try_into().expect("two numbers")
}

/// Coefficients and masks make an encoder surer, the same ones each time, and do not read labels.
#[test]
fn an_encoder_learns_coefficients_without_labels() {
    let world = World::new();
    world.train(&small("phatgoose"), "run");
    let experts = ["answer", "pets", "weather"].map(|name| format!("run/experts/{name}"));
    let combine = |how: &str, data: &str, out: &str| {
        let mut arguments = vec!["combine"];
        arguments.extend(experts.iter().map(String::as_str));
        arguments.extend(["--how", how, "--steps", "8", "--data", data, "--out", out]);
        let output = world.run(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let [before, after] = entropies(&combine("adamerging", "data", "ada"));
    assert!(after < before, "{before} {after}");
    let tensors =
        |folder: &str| read_tensors(&world.path(folder).join("adapter_model.safetensors"));
    // Adam's first steps move every coefficient by about its rate.
    let even = [
        "combine",
        &experts[0],
        &experts[1],
        &experts[2],
        "--how",
        "task-arithmetic",
    ];
    let output = world.run(&[&even[..], &["--out", "even"]].concat());
    assert!(output.status.success());
    assert_ne!(tensors("ada"), tensors("even"));
    // Labels of the training split are not read.
    copy_folder(&world.path("data"), &world.path("unlabelled"));
    for (task, label) in [("answer", "no"), ("pets", "cat"), ("weather", "sun")] {
        let path = world.path("unlabelled").join(task).join("train.jsonl");
        let text = std::fs::read_to_string(&path).expect("records");
        let relabelled = text.lines().map(|line| {
            let mut record: serde_json::Value = serde_json::from_str(line).expect("JSON");
            record["label"] = 0.into();
            record["output"] = label.into();
            format!("{record}\n")
        });
        let relabelled: String = relabelled.collect();
        assert_ne!(text, relabelled, "{task}");
        std::fs::write(&path, relabelled).expect("writable");
    }
    combine("adamerging", "unlabelled", "again");
    assert_eq!(
        tensors("again"),
        tensors("ada"),
        "twice the same, whatever the labels"
    );
    let text = combine("concrete", "data", "masked");
    let [before, after] = entropies(&text);
    assert!(after < before, "{before} {after}");
    assert!(text.contains("masked: a whole model with "), "{text}");
    assert!(world.path("masked/heads.safetensors").is_file());
}

/// Of a model that writes it is the distribution over the labels behind the prompt.
#[test]
fn a_decoder_learns_coefficients_without_labels() {
    let world = world();
    let folder = world.path("data/side");
    std::fs::create_dir_all(&folder).expect("a new folder");
    let meta = serde_json::json!({"task": "side", "type": "classification",
        "instruction": "w7", "labels": ["w1", "w2"], "metric": "accuracy"});
    crate::world::write_json(&folder.join("task.json"), &meta);
    for (split, count) in [("train", 12), ("validation", 4), ("test", 4)] {
        let line = |index: usize| {
            let output = ["w1", "w2"][index % 2];
            let record = serde_json::json!({"id": format!("{split}-{index}"), "task": "side",
                "type": "classification", "instruction": "w7",
                "input": format!("w{} w{}", 10 + index, 30 + 3 * index), "input_b": null,
                "choices": null, "label": index % 2, "output": output});
            format!("{record}\n")
        };
        let lines: String = (0..count).map(line).collect();
        std::fs::write(folder.join(format!("{split}.jsonl")), lines).expect("writable");
    }
    let mut arguments = vec![
        "combine", "law", "other", "--base", "base", "--data", "data",
    ];
    arguments.extend(["--steps", "8", "--how"]);
    for (more, words) in [
        (vec!["adamerging", "--out", "ada"], "ada: a LoRA of rank 8"),
        (
            vec!["adamerging", "--density", "0.3", "--out", "pp"],
            "pp: a whole model",
        ),
        (vec!["concrete", "--out", "masked"], "masked: a whole model"),
    ] {
        let text = world.done(&[&arguments[..], &more].concat());
        let [before, after] = entropies(&text);
        // Two labels.
        assert!(
            after < before && before <= std::f64::consts::LN_2,
            "{before} {after}"
        );
        assert!(text.contains(words), "{text}");
    }
}

/// Gates make a run like any other, whose experts are the given ones.
#[test]
fn gates_make_a_run() {
    let world = World::new();
    world.train(&small("phatgoose"), "run");
    let experts = ["answer", "pets", "weather"].map(|name| format!("run/experts/{name}"));
    let done = |arguments: &[&str]| {
        let output = world.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let combine = |how: &str, out: &str| {
        let mut arguments = vec!["combine"];
        arguments.extend(experts.iter().map(String::as_str));
        arguments.extend(["--how", how, "--steps", "4", "--data", "data", "--out", out]);
        done(&arguments)
    };
    for how in ["wemoe", "e-wemoe"] {
        let text = combine(how, how);
        let [before, after] = entropies(&text);
        assert!(after < before, "{how}: {before} {after}");
        assert!(
            text.contains(&format!("{how}: a run of 3 experts of rank 4 on ")),
            "{text}"
        );
        // It is scored again in a fresh process as it was when it was made.
        let output = world.run(&["eval", how, "--json"]);
        let scores: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let own = read_json(&world.path(how).join("eval.json"));
        assert_eq!(scores["mean"], own["mean"], "{how}");
        let tensors = read_tensors(&world.path(how).join("adapter_model.safetensors"));
        let gates = tensors
            .iter()
            .filter(|(name, _)| name.ends_with("router.hidden"));
        let gates: Vec<_> = gates.map(|(_, value)| value).collect();
        assert_eq!(gates.len(), 4, "one for each layer");
        let is_shared = gates.iter().all(|gate| *gate == gates[0]);
        assert_eq!(is_shared, how == "e-wemoe");
        let words = "its routers weigh the experts anew for each sequence";
        let output = world.run(&["export", how, "--out", "peft"]);
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(words),
            "{how}"
        );
        done(&[
            "export",
            how,
            "--expert",
            "pets",
            "--out",
            &format!("{how}-pets"),
        ]);
    }
    combine("wemoe", "again");
    let tensors = |run: &str| read_tensors(&world.path(run).join("adapter_model.safetensors"));
    assert_eq!(tensors("again"), tensors("wemoe"), "twice the same");
}

/// The mean accuracy in a printed table, in per cent.
fn mean_score(text: &str) -> f64 {
    let line = text.lines().find(|line| line.contains("mean"));
    let words = line.map(|line| line.split([' ', '|']).filter_map(|word| word.parse().ok()));
    words
        .and_then(|mut words| words.next())
        .expect("a table with a mean")
}

/// One contributor's factors arrive with noise: what a few labelled records recover.
#[test]
fn realignment_recovers_what_noise_has_spoilt() {
    let world = World::new();
    let mut recipe = small("phatgoose");
    for stage in recipe
        .stages
        .iter_mut()
        .filter(|stage| stage.transform.is_none())
    {
        stage.steps = 90;
    }
    world.train(&recipe, "run");
    for name in ["answer", "pets", "weather"] {
        copy_folder(&world.path("run/experts").join(name), &world.path(name));
    }
    let combine = |more: &[&str]| {
        let experts = ["combine", "answer", "pets", "weather", "--base", "model"];
        let output = world.run(&[&experts, &["--data", "data"][..], more].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{more:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let weights = ["--weights", "0.6,0.6,0.6"];
    let fused = |out: &str| {
        let how = ["--how", "task-arithmetic", "--out", out];
        mean_score(&combine(&[&how[..], &weights].concat()))
    };
    let clean = fused("clean");
    let path = world.path("pets/adapter_model.safetensors");
    let mut tensors = read_tensors(&path);
    let mut draw = crate::world::Draw(11);
    for (_, values) in tensors.values_mut() {
        values
            .iter_mut()
            .for_each(|value| *value += 0.5 * draw.number());
    }
    crate::world::write_tensors(&path, &tensors);
    let noisy = fused("noisy");
    let how = [
        "--how",
        "r-mtllmf",
        "--shots",
        "8",
        "--steps",
        "40",
        "--out",
        "realigned",
    ];
    let text = combine(&[&how[..], &weights].concat());
    let realigned = mean_score(&text);
    let line = text
        .lines()
        .find(|line| line.starts_with("mean loss of the labelled records"));
    let line = line.unwrap_or_else(|| panic!("no loss: {text}"));
    let numbers = line
        .split([' ', ','])
        .filter_map(|word| word.parse::<f64>().ok());
    let [before, after] = numbers.collect::<Vec<_>>()[..] else {
        panic!("two numbers: {line}");
    };
    let report = format!("clean {clean} %, noisy {noisy} %, realigned {realigned} %; {line}");
    // Scores of 24 records are reported; what is asserted is the loss.
    assert!(after < 0.5 * before, "{report}");
    // A lost note is no reason to fail the test.
    drop(std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("{report}\n").as_bytes(),
    ));
    assert!(text.contains("realigned: a LoRA of rank"), "{text}");
}
