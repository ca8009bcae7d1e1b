//! Every reader of molora, as a function of the bytes of one file.
//!
//! The functions are tried twice: by `tests/smoke.rs`, a bounded number of cases on stable Rust and a
//! part of `cargo test`, and by cargo-fuzz, for as long as one likes (nightly Rust, `cargo install
//! cargo-fuzz`):
//!
//! ```text
//! cargo +nightly fuzz run --fuzz-dir xtask/fuzz --features libfuzzer recipe xtask/fuzz/seeds/recipe
//! MOLORA_FUZZ_CASES=2000 MOLORA_FUZZ_SEED=7 cargo test --release --workspace --test smoke -- --nocapture
//! ```
//!
//! A template that breaks its bounds is given up, but its thread goes on: where many are tried in one
//! process, as cargo-fuzz does, `-rss_limit_mb` may be reached that way.
//!
//! A reader may refuse any bytes. It must not panic, and must neither take long nor much memory.

mod mutate;
mod readers;
mod world;

pub use mutate::{Mutation, mutate, mutations};
pub use readers::{READERS, Reader};
pub use world::World;

/// The file that the world has where a reader's bytes lie, if there is one: its first seed.
///
/// # Panics
/// If there is no such reader.
#[must_use]
pub fn first_seed(name: &str) -> Option<Vec<u8>> {
    world::with(|world| std::fs::read(world.path(find(name).place)).ok())
}

fn find(name: &str) -> &'static Reader {
    let reader = READERS.iter().find(|reader| reader.name == name);
    reader.unwrap_or_else(|| panic!("no reader `{name}`"))
}

/// Lets a reader read `bytes`, in a folder of this thread.
///
/// # Errors
/// The reader's own message, if it refuses them.
///
/// # Panics
/// If the reader panics, or refuses without a word; if there is no such reader.
pub fn read(name: &str, bytes: &[u8]) -> Result<(), String> {
    let reader = find(name);
    world::with(|world| {
        world.put(reader.place, bytes);
        let found = (reader.read)(world);
        world.restore(reader.place);
        if let Err(message) = &found {
            assert!(!message.trim().is_empty(), "{name}: refused without a word");
        }
        found
    })
}
