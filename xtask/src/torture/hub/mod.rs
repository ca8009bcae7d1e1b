//! `cargo xtask torture hub`: a hub that lies about everything.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

mod cases;
mod contents;
mod server;

use cases::{Case, Expected};
use server::{Files, Server, serve};

use super::process::{End, run_within};
use super::report::{Findings, Row};
use super::scenario::{Stage, words};
use super::tree::{self, Tree};
use super::{Draw, Torture};

/// Three times twenty seconds of silence, and as long again for one that trickles.
const LIMIT: Duration = Duration::from_secs(150);
/// The most memory that a command may take, in MiB.
const MEMORY: u64 = 2048;
/// Most cases wait for a time to pass, so that many can run at once.
const AT_ONCE: usize = 8;
/// What only the hub may be told.
const TOKEN: &str = "hf_secret_of_the_hub";
const COMMAND: &str = "generate org/m --raw --max-new-tokens 3 --prompt";

/// The model, and what it writes.
struct Truth {
    files: Files,
    written: String,
}

impl Truth {
    fn find(stage: &Stage, root: &Path) -> Result<Self> {
        let crates = root.join("crates");
        let golden = crates.join("molora-models/tests/golden/llama");
        let tokenizer = crates.join("molora/tests/fixtures/format-0/model/tokenizer.json");
        let mut files = Files::new();
        for (name, path) in [
            ("config.json", golden.join("config.json")),
            ("model.safetensors", golden.join("model.safetensors")),
            ("tokenizer.json", tokenizer),
        ] {
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            files.insert(name.into(), bytes);
        }
        let mut truth = Self {
            files,
            written: String::new(),
        };
        let folder = stage.folder.join("references/hub");
        let server = serve(truth.files.clone(), Vec::new())?;
        std::fs::create_dir_all(&folder)?;
        let end = ask(stage, &folder, &server)?;
        ensure!(end.is_success(), "the model of the hub: {}", end.errors);
        truth.written = end.output;
        Ok(truth)
    }
}

/// Runs the program with this hub.
fn ask(stage: &Stage, folder: &Path, server: &Server) -> Result<End> {
    let mut arguments = words(COMMAND);
    arguments.push("w1 cat w2".into());
    let mut command = stage.program.command(folder, &arguments);
    command
        .env("HF_ENDPOINT", &server.endpoint)
        .env("HF_TOKEN", TOKEN);
    command.env("HF_HOME", folder.join("home"));
    command
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .env("HOME", folder);
    for name in [
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ] {
        command.env_remove(name);
    }
    run_within(command, LIMIT)
}

/// What is wrong after a case; nothing if it is as it has to be.
fn fault(
    truth: &Truth,
    case: &Case,
    folder: &Path,
    end: &End,
    server: &Server,
) -> Result<Option<String>> {
    if let Some(fault) = end.fault() {
        return Ok(Some(fault));
    }
    let steers = |c: char| c.is_control() && c != '\n' && c != '\r';
    if end.errors.chars().any(steers) {
        return Ok(Some(format!("steers the terminal: {:?}", end.errors)));
    }
    if end.memory > MEMORY {
        return Ok(Some(format!("took {} MiB", end.memory)));
    }
    if server.leaked.load(Ordering::SeqCst) {
        return Ok(Some("sent the token to another port".into()));
    }
    if end.errors.contains(TOKEN) || end.output.contains(TOKEN) {
        return Ok(Some("tells the token".into()));
    }
    if let Some(fault) = outside(folder)? {
        return Ok(Some(fault));
    }
    Ok(match (end.is_success(), case.expected) {
        (true, Expected::Refused) => Some("was believed".into()),
        (true, _) if end.output != truth.written => Some("wrote something else".into()),
        (false, Expected::Right) => Some(format!("refused: {}", end.last_line())),
        _ => None,
    })
}

/// Something outside of the cache's folder of this model.
fn outside(folder: &Path) -> Result<Option<String>> {
    let tree = Tree::read(folder)?;
    let is_ours = |path: &&String| {
        let allowed = [
            "home/hub/models--org--m",
            "cache/molora",
            "cache/huggingface",
        ];
        let is_above = |place: &&str| place.starts_with(&format!("{path}/"));
        let is_below = |place: &&str| path.starts_with(place);
        allowed
            .iter()
            .any(|place| is_above(place) || is_below(place))
    };
    let other = tree.paths().find(|path| !is_ours(path));
    let evil = Path::new("/tmp/evil").exists() || Path::new("/tmp/evil.safetensors").exists();
    Ok(match (other, evil) {
        (Some(path), _) => Some(format!("wrote {path}")),
        (None, true) => Some("wrote /tmp/evil".into()),
        _ => None,
    })
}

/// One case, and the same cache with a hub that tells the truth.
fn try_case(
    stage: &Stage,
    truth: &Truth,
    case: &Case,
    folder: &Path,
    rules: Vec<server::Rule>,
) -> Result<(Option<String>, End)> {
    tree::remove(folder)?;
    std::fs::create_dir_all(folder)?;
    let mut files = truth.files.clone();
    if let Some(change) = case.files {
        change(&mut files);
    }
    let server = serve(files, rules)?;
    let end = ask(stage, folder, &server)?;
    if let Some(fault) = fault(truth, case, folder, &end, &server)? {
        return Ok((Some(fault), end));
    }
    drop(server);
    let honest = serve(truth.files.clone(), Vec::new())?;
    let later = ask(stage, folder, &honest)?;
    let fault = match later.is_success() {
        true if later.output == truth.written => None,
        true => Some("a later try wrote something else".into()),
        false => Some(format!("a later try: {}", later.last_line())),
    };
    Ok((fault, end))
}

/// What was seen of all cases.
#[derive(Default)]
struct Seen {
    /// Right, refused, faults.
    counts: [usize; 3],
    longest: (Duration, String),
    most: (u64, String),
}

/// Runs all cases, or some drawn at random.
pub(super) fn run_all(stage: &Stage, root: &Path, options: &Torture) -> Result<Findings> {
    let truth = Truth::find(stage, root)?;
    let mut all = cases::all();
    Draw(options.seed).shuffle(&mut all);
    all.retain(|case| options.only.as_ref().is_none_or(|only| *only == case.name));
    if options.limit > 0 {
        all.truncate(options.limit);
    }
    let rules: Vec<Mutex<Vec<server::Rule>>> = all
        .iter_mut()
        .map(|case| Mutex::new(std::mem::take(&mut case.rules)))
        .collect();
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(Seen::default()));
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::SeqCst);
            let (Some(case), Some(rules)) = (all.get(index), rules.get(index)) else {
                return Ok(());
            };
            let rules = rules
                .lock()
                .map(|mut rules| std::mem::take(&mut *rules))
                .unwrap_or_default();
            let folder = stage.folder.join(format!("hub-{index}"));
            let begin = Instant::now();
            let (fault, end) = try_case(stage, &truth, case, &folder, rules)?;
            let Ok(mut seen) = seen.lock() else {
                return Ok(());
            };
            seen.note(case, fault.as_deref(), &end, begin.elapsed(), &folder);
            drop(seen);
            if fault.is_none() {
                tree::remove(&folder)?;
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.max(1) * AT_ONCE)
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(_) => bail!("a worker panicked"),
            })
    })?;
    let seen = seen.into_inner().ok().context("a worker panicked")?;
    Ok(seen.findings())
}

impl Seen {
    fn note(&mut self, case: &Case, fault: Option<&str>, end: &End, took: Duration, folder: &Path) {
        let place = match (fault, end.is_success()) {
            (Some(_), _) => 2,
            (None, true) => 0,
            (None, false) => 1,
        };
        self.counts[place] += 1;
        if let Some(fault) = fault {
            println!("FAULT {}: {fault}", case.name);
            println!("  kept: {}", folder.display());
            println!("  again: cargo xtask torture hub --only {:?}", case.name);
        }
        if took > self.longest.0 {
            self.longest = (took, case.name.clone());
        }
        if end.memory > self.most.0 {
            self.most = (end.memory, case.name.clone());
        }
    }

    fn findings(self) -> Findings {
        let [right, refused, faults] = self.counts;
        let (longest, most) = (self.longest, self.most);
        println!("longest: {:.0} s ({})", longest.0.as_secs_f32(), longest.1);
        println!("most memory: {} MiB ({})", most.0, most.1);
        let mut findings = Findings::default();
        findings.add(Row {
            name: "generate".into(),
            kind: "hub".into(),
            operations: 0,
            cases: right + refused + faults,
            outcomes: vec![("right", right), ("refused", refused)],
            faults,
        });
        findings
    }
}
