//! A folder with one small file of each kind that molora reads.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Small files that the project's tests have.
const CRATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates");
const OLD_RUNS: &str = "molora/tests/fixtures/format-0";
const GOLDEN: &str = "molora-models/tests/golden";

thread_local! {
    static WORLD: OnceCell<World> = const { OnceCell::new() };
}

/// Gives a function this thread's world.
pub(crate) fn with<T>(work: impl FnOnce(&World) -> T) -> T {
    WORLD.with(|world| work(world.get_or_init(World::new)))
}

/// Models, tasks, runs and adapters in a temporary folder.
///
/// `model` is an encoder with a tokenizer, `llama` a decoder, `sharded` the same in shards, `adapter` a
/// folder of PEFT, `data` classification tasks, `finished` and `stopped` runs on them.
#[derive(Debug)]
pub struct World {
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let world = Self { folder };
        let runs = Path::new(CRATES).join(OLD_RUNS);
        let golden = Path::new(CRATES).join(GOLDEN);
        copy(&runs.join("model"), &world.path("model"));
        copy(&runs.join("data"), &world.path("data"));
        copy(&golden.join("llama"), &world.path("llama"));
        copy(&golden.join("llama"), &world.path("sharded"));
        copy(&golden.join("peft_lora"), &world.path("adapter"));
        copy(&runs.join("samora/finished"), &world.path("finished"));
        copy(&runs.join("samora/stopped"), &world.path("stopped"));
        copy(&runs.join("samora/finished"), &world.path("changed"));
        let template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{{ eos_token }}\
                        {% endfor %}";
        fs::write(world.path("model/chat_template.jinja"), template).expect("writable");
        let weights = world.path("sharded/model.safetensors");
        fs::rename(weights, world.path("sharded/1.safetensors")).expect("a file");
        for run in ["finished", "stopped", "changed"] {
            let place = world.path(run).join("run.toml");
            let text = fs::read_to_string(&place).expect("a configuration");
            // The fixtures name these as seen from their own folder.
            let inside = |text: String, key: &str| {
                let place = world.path(key).display().to_string();
                text.replacen(
                    &format!("{key} = \"{key}\""),
                    &format!("{key} = \"{place}\""),
                    1,
                )
            };
            fs::write(&place, inside(inside(text, "model"), "data")).expect("writable");
        }
        world
    }

    /// A path in the world.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A copy of a folder of the world, made anew.
    pub(crate) fn copy_of(&self, name: &str) -> PathBuf {
        let place = self.path("copy");
        drop(fs::remove_dir_all(&place));
        copy(&self.path(name), &place);
        place
    }

    /// Puts bytes at a place, and keeps what was there.
    pub(crate) fn put(&self, place: &str, bytes: &[u8]) {
        let path = self.path(place);
        fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        if path.exists() {
            fs::rename(&path, kept(&path)).expect("writable");
        }
        fs::write(&path, bytes).expect("writable");
    }

    /// Undoes [`Self::put`].
    pub(crate) fn restore(&self, place: &str) {
        let path = self.path(place);
        drop(fs::remove_file(&path));
        if kept(&path).exists() {
            fs::rename(kept(&path), &path).expect("writable");
        }
    }
}

fn kept(path: &Path) -> PathBuf {
    path.with_extension("kept")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("writable");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("readable");
        let place = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &place),
            false => drop(fs::copy(entry.path(), place).expect("writable")),
        }
    }
}
