//! A bounded number of broken files for each reader; more with `MOLORA_FUZZ_CASES`, others with
//! `MOLORA_FUZZ_SEED`.

#![expect(clippy::print_stdout, reason = "figures of a campaign")]

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use molora_fuzz::{READERS, Reader, first_seed, mutate, mutations, read};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

/// Files for each reader where the environment asks for no other number.
const CASES: u32 = 64;
/// What no file may take.
const LONGEST: Duration = Duration::from_secs(20);
const MOST_MIB: u64 = 2048;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}: expected a whole number, found {value}")),
    )
}

/// A line of the process's memory in MiB; 0 where the system does not tell.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// What the process has now, which becomes the most that it has had: the next file is measured alone.
fn begin_measuring() -> u64 {
    drop(std::fs::write("/proc/self/clear_refs", "5"));
    memory("VmRSS:")
}

/// The file of the world, and those of `seeds/NAME` in the order of their names.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(name);
    let entries = std::fs::read_dir(&folder).into_iter().flatten();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.sort();
    let files = paths
        .iter()
        .map(|path| std::fs::read(path).expect("readable"));
    let seeds: Vec<_> = first_seed(name).into_iter().chain(files).collect();
    assert!(!seeds.is_empty(), "{name} has no seeds");
    seeds
}

/// The longest time and the most memory so far.
type Most<'a> = (&'a Cell<Duration>, &'a Cell<u64>);

/// Reads one file within the bounds; whether it was accepted.
fn read_within(reader: &Reader, bytes: &[u8], (slowest, largest): Most<'_>) -> bool {
    let before = begin_measuring();
    let start = Instant::now();
    let found = read(reader.name, bytes);
    let time = start.elapsed();
    slowest.set(slowest.get().max(time));
    assert!(
        time < LONGEST,
        "{}: {time:?} for {} bytes",
        reader.name,
        bytes.len()
    );
    let memory = memory("VmHWM:").saturating_sub(before);
    largest.set(largest.get().max(memory));
    assert!(
        memory < MOST_MIB,
        "{}: {memory} MiB for {} bytes",
        reader.name,
        bytes.len()
    );
    found.is_ok()
}

/// Readers that run programs. One that was given up goes on as long as its process does, so each file
/// gets a process of its own, as it has in the program.
const PROGRAMS: [&str; 3] = ["template", "tokenizer_config", "special_tokens"];
/// The reader that the process of one file tries.
const ONE: &str = "MOLORA_FUZZ_ONE";

/// [`read_within`] in a process of its own, by the test [`one_file`].
fn read_alone(reader: &Reader, bytes: &[u8], (slowest, largest): Most<'_>) -> bool {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "one_file", "--nocapture"])
        .env(ONE, reader.name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut input = child.stdin.take().expect("a pipe");
    // One that dies early reads nothing.
    drop(input.write_all(bytes));
    drop(input);
    let output = child.wait_with_output().expect("its output");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = text.lines().find_map(|line| {
        let mut words = line.strip_prefix("one file: ")?.split(' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        Some((number()?, number()?, number()?))
    });
    let (true, Some((is_accepted, milliseconds, memory))) = (output.status.success(), found) else {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("{}: {}: {text}{errors}", reader.name, output.status);
    };
    slowest.set(slowest.get().max(Duration::from_millis(milliseconds)));
    largest.set(largest.get().max(memory));
    is_accepted == 1
}

/// Tries one file, of standard input, for [`read_alone`]; nothing without its variable.
#[test]
fn one_file() {
    let Ok(name) = std::env::var(ONE) else {
        return;
    };
    let reader = READERS.iter().find(|reader| reader.name == name);
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).expect("a pipe");
    let (slowest, largest) = (Cell::new(Duration::ZERO), Cell::new(0));
    let is_accepted = read_within(reader.expect("a reader"), &bytes, (&slowest, &largest));
    let milliseconds = slowest.get().as_millis();
    println!(
        "\none file: {} {milliseconds} {}",
        u8::from(is_accepted),
        largest.get()
    );
}

fn smoke(name: &str) {
    let reader = READERS
        .iter()
        .find(|reader| reader.name == name)
        .expect("a reader");
    let seeds = seeds(name);
    let (slowest, largest) = (Cell::new(Duration::ZERO), Cell::new(0));
    let most = (&slowest, &largest);
    let try_one = match PROGRAMS.contains(&name) {
        true => read_alone,
        false => read_within,
    };
    let accepted = Cell::new(0);
    for seed in &seeds {
        let is_accepted = try_one(reader, seed, most);
        accepted.set(accepted.get() + u32::from(is_accepted));
    }
    // Else the changes would be those of a file that is refused at its beginning.
    assert!(
        accepted.get() > 0,
        "{name}: no seed is accepted: {:?}",
        read(name, &seeds[0])
    );
    accepted.set(0);
    let cases = number("MOLORA_FUZZ_CASES").map_or(CASES, |cases| cases as u32);
    let mut config = Config::with_cases(cases);
    config.failure_persistence = None;
    config.max_shrink_iters = 200;
    if let Some(seed) = number("MOLORA_FUZZ_SEED") {
        config.rng_seed = RngSeed::Fixed(seed);
    }
    let failed = RefCell::new(Vec::new());
    let result = TestRunner::new(config).run(&(0..seeds.len(), mutations()), |(seed, changes)| {
        let bytes = mutate(&seeds[seed], &seeds, &changes);
        failed.borrow_mut().clone_from(&bytes);
        let is_accepted = try_one(reader, &bytes, most);
        accepted.set(accepted.get() + u32::from(is_accepted));
        Ok::<(), TestCaseError>(())
    });
    if let Err(problem) = result {
        let place = std::env::temp_dir().join(format!("molora-fuzz-{name}"));
        std::fs::write(&place, &*failed.borrow()).expect("writable");
        panic!("{name}: {problem}; the last file: {}", place.display());
    }
    println!(
        "{name}: {cases} files, {} accepted, slowest {:?}, at most {} MiB more",
        accepted.get(),
        slowest.get(),
        largest.get()
    );
}

/// A test and the name of its reader.
macro_rules! readers {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                smoke(stringify!($name));
            }
        )*

        #[test]
        fn every_reader_is_tried() {
            let tried = [$(stringify!($name)),*];
            assert_eq!(tried, READERS.each_ref().map(|reader| reader.name));
            for name in tried {
                let target = format!("{}/fuzz_targets/{name}.rs", env!("CARGO_MANIFEST_DIR"));
                assert!(Path::new(&target).exists(), "{target} is missing");
            }
        }
    };
}

readers!(
    safetensors,
    index,
    config_encoder,
    config_decoder,
    tokenizer,
    tokenizer_config,
    special_tokens,
    template,
    json_lines,
    json,
    csv,
    parquet,
    task_description,
    recipe,
    run,
    adapter_weights,
    heads,
    summary,
    steps,
    scores,
    base_scores,
    state,
    optimizer,
    journal,
    peft_config,
    peft_weights,
    hub_listing,
);
