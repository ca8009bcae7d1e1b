//! A folder with a tiny BERT and tiny tasks that it can learn, and ways to run and compare.

mod tiny;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use molora_models::ExpertCount;
use molora_train::recipe::{Recipe, Transform};
use molora_train::report::{Record, StepRecord, ValidationRecord, read_records, read_steps};
use molora_train::run::{Finished, Request, ResumeOptions, resume, train};
use molora_train::train::Event;
use molora_train::{TrainError, recipe};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const VOCABULARY: usize = 32;
/// As many as the longest list of experts by layer in a bundled recipe.
pub(crate) const LAYERS: usize = 4;

/// What a run has beside that by its stages: the state that its last one ended with, what several leave.
const STAGE_FILES: [&str; 5] = [
    "clusters.json",
    "experts",
    "general",
    "instructions.json",
    "stages",
];

/// Files of a finished run, sorted.
pub(crate) const RUN_FILES: [&str; 14] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "base.json",
    "eval.json",
    "examples.json",
    "experts.json",
    "heads.safetensors",
    "manifest.json",
    "predictions.json",
    "report.html",
    "routing.json",
    "run.toml",
    "steps.jsonl",
    "summary.json",
];

/// Those of a run of a recipe: a single expert is compared with none, nor are experts that no site has
/// for itself.
pub(crate) fn run_files(recipe: &str) -> Vec<&'static str> {
    let alone = ["lora", "pissa", "olora", "lily"].contains(&recipe);
    let mut files = RUN_FILES.to_vec();
    files.retain(|file| !alone || *file != "experts.json");
    files
}

/// Tensors as they stand in a file: shape and values, by name.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A temporary folder with `model`, `data` and room for runs.
pub(crate) struct World {
    folder: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        let model = world.path("model");
        std::fs::create_dir(&model).expect("a new folder");
        write_json(&model.join("config.json"), &tiny::config());
        write_json(&model.join("tokenizer.json"), &tiny::tokenizer());
        write_tensors(&model.join("model.safetensors"), &tiny::weights());
        world.write_task("pets", &["cat", "dog"], &["purr", "bark"], false);
        let sky = ["sun", "rain", "snow"];
        world.write_task("weather", &sky, &sky, false);
        world.write_task("answer", &["no", "yes"], &["never", "surely"], true);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file below the model's folder.
    pub(crate) fn model(&self, file: &str) -> PathBuf {
        self.path("model").join(file)
    }

    /// A file below the tasks' folder.
    pub(crate) fn data(&self, file: &str) -> PathBuf {
        self.path("data").join(file)
    }

    /// Changes a JSON file.
    pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
        let text = std::fs::read(path).expect("readable");
        let mut value = serde_json::from_slice(&text).expect("JSON");
        change(&mut value);
        write_json(path, &value);
    }

    /// A task whose label is decided by one word, in the second text if there are two.
    fn write_task(&self, name: &str, labels: &[&str], words: &[&str], is_pair: bool) {
        let folder = self.data(name);
        std::fs::create_dir_all(&folder).expect("a new folder");
        let meta = json!({"task": name, "type": "classification", "instruction": "Which?",
            "labels": labels, "metric": "accuracy"});
        write_json(&folder.join("task.json"), &meta);
        let mut draw = Draw(labels.len() as u64 + u64::from(is_pair));
        for (split, records) in [("train", 48), ("validation", 6), ("test", 24)] {
            let line = |index: usize| {
                let label = index % labels.len();
                let (text, other) = (draw.text(words[label]), draw.text("w0"));
                let (input, input_b) = match is_pair {
                    true => (other, json!(text)),
                    false => (text, Value::Null),
                };
                json!({"id": format!("{name}-{split}-{index}"), "task": name,
                    "type": "classification", "instruction": "Which?", "input": input,
                    "input_b": input_b, "choices": null, "label": label,
                    "output": labels[label]})
            };
            let lines: String = (0..records)
                .map(line)
                .map(|line| format!("{line}\n"))
                .collect();
            std::fs::write(folder.join(format!("{split}.jsonl")), lines).expect("writable");
        }
    }

    /// A request for a run in the folder `out`.
    pub(crate) fn request(&self, mut recipe: Recipe, out: &str) -> Request {
        let text = |name| self.path(name).to_str().expect("UTF-8").to_owned();
        for stage in &mut recipe.stages {
            // The tiny model reads every text in no time.
            if let Some(Transform::Cluster(config)) = &mut stage.transform {
                config.encoder = text("model");
            }
        }
        Request::new(recipe, &text("model"), &text("data"), &self.path(out))
    }

    /// Trains in the folder `out` and returns it.
    pub(crate) fn train(&self, recipe: &Recipe, out: &str) -> PathBuf {
        let request = self.request(recipe.clone(), out);
        train(&request, &AtomicBool::new(false), &mut |_| {}).expect("a whole run");
        request.out
    }

    /// The program in this folder.
    pub(crate) fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_molora"));
        command.args(arguments).current_dir(self.folder.path());
        command.env_remove("RUST_LOG");
        command
    }

    /// Runs the program in this folder to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.program(arguments)
            .output()
            .expect("the program starts")
    }
}

/// A bundled recipe with numbers that fit the tiny model: 20 steps of 8 rows, no checkpoint of its
/// own within them but at every fifth step.
pub(crate) fn small(name: &str) -> Recipe {
    let mut recipe = recipe::find(name).expect("a bundled recipe");
    recipe.checkpoint_every = 5;
    recipe.data.max_length = 24;
    recipe.data.sampling.batch_size = 8;
    recipe.data.sampling.bucket_batches = 6;
    // What tests expect of scores was found with batches of one task.
    recipe.data.sampling.mixed = false;
    recipe.adapter.bank.rank = 4;
    if let ExpertCount::ByLayer(list) = &mut recipe.adapter.experts {
        list.truncate(LAYERS);
    }
    let is_one = recipe.stages.len() == 1;
    let stages = recipe.stages.iter_mut().chain(&mut recipe.growth);
    for stage in stages.filter(|stage| stage.transform.is_none()) {
        stage.steps = if is_one { 20 } else { 8 };
        stage.schedule.warmup = 0.2;
    }
    recipe
}

/// Stops a run after a step, as Ctrl-C does.
pub(crate) fn train_until(request: &Request, step: usize) {
    let stop = AtomicBool::new(false);
    expect_stop(train(request, &stop, &mut stop_after(&stop, step)), step);
}

/// Goes on with a run up to a step.
pub(crate) fn resume_until(folder: &Path, step: usize) {
    let stop = AtomicBool::new(false);
    let part = ResumeOptions::default();
    let stopped = resume(folder, &part, &stop, &mut stop_after(&stop, step));
    expect_stop(stopped, step);
}

/// Goes on with a run to its end.
pub(crate) fn resume_to_end(folder: &Path) {
    let stop = AtomicBool::new(false);
    resume(folder, &ResumeOptions::default(), &stop, &mut |_| {}).expect("the rest of the run");
}

fn stop_after(stop: &AtomicBool, step: usize) -> impl FnMut(Event<'_>) {
    move |event| {
        if let Event::Step(record, _) = event
            && record.step == step
        {
            stop.store(true, Ordering::SeqCst);
        }
    }
}

fn expect_stop(result: Result<Finished, TrainError>, step: usize) {
    let error = result.expect_err("the run was stopped");
    assert!(
        matches!(error, TrainError::Interrupted { step: found, .. } if found == step),
        "{error}"
    );
}

/// The step records of a run without their times.
pub(crate) fn steps(run: &Path) -> Vec<StepRecord> {
    let mut steps = read_steps(&run.join("steps.jsonl")).expect("whole records");
    steps.iter_mut().for_each(|step| step.seconds = 0.0);
    steps
}

/// The scores of the validation split in a run without their times.
pub(crate) fn validations(run: &Path) -> Vec<ValidationRecord> {
    let records = read_records(&run.join("steps.jsonl")).expect("whole records");
    let scored = |record| match record {
        Record::Validation(mut record) => {
            record.seconds = 0.0;
            Some(record)
        }
        Record::Step(_) | Record::Guard(_) => None,
    };
    records.into_iter().filter_map(scored).collect()
}

/// Two runs have the same losses, weights, scores and routing, bit for bit.
pub(crate) fn assert_same_run(found: &Path, expected: &Path) {
    assert_eq!(
        steps(found),
        steps(expected),
        "steps of {}",
        found.display()
    );
    assert_eq!(
        validations(found),
        validations(expected),
        "validation of {}",
        found.display()
    );
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "heads.safetensors",
        "eval.json",
        "routing.json",
    ] {
        let bytes = |run: &Path| std::fs::read(run.join(file)).expect("a file of a finished run");
        assert!(
            bytes(found) == bytes(expected),
            "{file} of {}",
            found.display()
        );
    }
    for key in ["steps", "padding_share", "parameters", "tasks", "states"] {
        let value = |run: &Path| read_json(&run.join("summary.json"))[key].clone();
        assert_eq!(
            value(found),
            value(expected),
            "{key} of {}",
            found.display()
        );
    }
    assert_eq!(entries(found), entries(expected));
    for folder in ["experts", "general"] {
        assert_same_files(&found.join(folder), &expected.join(folder));
    }
}

/// Compares all files below two folders, byte by byte; neither may be there.
pub(crate) fn assert_same_files(found: &Path, expected: &Path) {
    assert_eq!(found.exists(), expected.exists(), "{}", found.display());
    if !expected.exists() {
        return;
    }
    assert_eq!(entries(found), entries(expected), "{}", found.display());
    for name in entries(expected) {
        let (found, expected) = (found.join(&name), expected.join(&name));
        if expected.is_dir() {
            assert_same_files(&found, &expected);
            continue;
        }
        let bytes = |path: &Path| std::fs::read(path).expect("a file");
        assert!(bytes(&found) == bytes(&expected), "{}", found.display());
    }
}

/// Scores without their losses, which differ in the last digits between a model that trains and one that
/// was read.
pub(crate) fn without_losses(mut eval: Value) -> Value {
    let tasks = eval["tasks"].as_object_mut().expect("tasks");
    for score in tasks.values_mut() {
        score.as_object_mut().expect("a score").remove("loss");
    }
    eval
}

/// Names of what is in a folder, sorted.
pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let read = std::fs::read_dir(folder).expect("a folder");
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = read.map(|entry| name(entry.expect("an entry"))).collect();
    names.sort();
    names
}

/// Names of what is in a run folder beside what its stages have left.
pub(crate) fn own_files(run: &Path) -> Vec<String> {
    let mut names = entries(run);
    names.retain(|name| !STAGE_FILES.contains(&&name[..]));
    names
}

/// Copies a folder with everything in it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a new folder");
    for name in entries(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        match from.is_dir() {
            true => copy_folder(&from, &to),
            false => {
                std::fs::copy(&from, &to).expect("writable");
            }
        }
    }
}

pub(crate) fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).expect("writable");
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("JSON")
}

pub(crate) fn read_tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let values = |view: &TensorView<'_>| {
        assert_eq!(view.dtype(), Dtype::F32);
        let (numbers, _) = view.data().as_chunks::<4>();
        numbers
            .iter()
            .map(|&bytes| f32::from_le_bytes(bytes))
            .collect()
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.shape().to_vec(), values(&view))))
        .collect()
}

pub(crate) fn write_tensors(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), &bytes[name]);
        (name, view.expect("as many values as the shape says"))
    });
    serialize_to_file(views, None, path).expect("writable");
}

/// The tensors of the base model, changed.
pub(crate) fn edit_tensors(world: &World, change: impl FnOnce(&mut Tensors)) {
    let path = world.model("model.safetensors");
    let mut tensors = read_tensors(&path);
    change(&mut tensors);
    write_tensors(&path, &tensors);
}

/// SplitMix64: the same texts and weights in every run of the tests.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in -1 to 1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// A whole number below a limit.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    /// Up to three of some words, and one with meaning.
    pub(crate) fn words(&mut self, fillers: &[&str], word: &str) -> String {
        let count = 1 + self.below(3);
        let mut words: Vec<&str> = (0..count)
            .map(|_| fillers[self.below(fillers.len())])
            .collect();
        words.insert(self.below(count + 1), word);
        words.join(" ")
    }

    /// Up to eight words without meaning, and one with.
    fn text(&mut self, word: &str) -> String {
        let count = 1 + self.next() as usize % 8;
        let mut words: Vec<String> = (0..count)
            .map(|_| format!("w{}", self.next() % 20))
            .collect();
        words.insert(self.next() as usize % (count + 1), word.to_owned());
        words.join(" ")
    }
}
