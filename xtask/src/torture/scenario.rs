//! What is tried: commands that write, the states that they begin from, and how one goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::Shell;

use super::process::{End, Fault, Program, run};
use super::tree::{self, Tree};

/// Numbers that make a training as short as can be, with several checkpoints.
const SMALL: &str = "--model model --data data --set data.max_length=24 --set adapter.bank.rank=2 \
                     --set data.sampling.batch_size=4 --set data.sampling.bucket_batches=6";
/// What a training of two stages of experts and one of routers is given beside that.
const MIXTURE: &str = "--tasks answer,pets --steps 8 --set checkpoint_every=2 \
                       --set growth.0.steps=2 --eval-every 1 --set checkpoint.metric=loss \
                       --set checkpoint.keep_best=1";

/// What one does after a command was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GoOn {
    /// The same command again.
    Same,
    /// `train --resume run` if there is a run, else the same command.
    Resume,
    /// `train --resume run` if the run is not finished, else the same command, which has `--force`.
    Force,
    /// The same command again, with `--force` if there is a run.
    Replace,
}

/// A command that writes, and what it is tried on.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// The state that it begins from.
    pub(super) state: &'static str,
    pub(super) command: Vec<String>,
    pub(super) go_on: GoOn,
    /// Whether it changes the folder `run`, which is to be the old one or the new one at all times.
    pub(super) changes_run: bool,
}

/// Words of a refusal that says that all is done already.
const DONE: [&str; 5] = [
    "the run is finished",
    "has an expert of weather already",
    "has no expert of weather",
    "has no expert of answer",
    "exists already and is not empty",
];

/// Arguments of a line of a shell without quotes.
pub(super) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// A training of a mixture in the folder `run`.
pub(super) fn train_line() -> String {
    format!("train moa {SMALL} {MIXTURE} --out run")
}

/// A comparison of two recipes in the folder `compared`.
pub(super) fn compare_line() -> String {
    format!(
        "compare lora,hydralora {SMALL} --tasks answer,pets --seeds 1 --steps 4 --out compared \
             --set checkpoint_every=2"
    )
}

const ASSEMBLE: &str = "assemble --base model --expert answer=adapters/answer --expert \
                        pets=adapters/pets --router arrow --data tasks --out run";

/// All commands that are tried.
pub(super) fn all() -> Vec<Scenario> {
    let train = train_line();
    let scenario = |name, state, line: &str, go_on, changes_run| Scenario {
        name,
        state,
        command: words(line),
        go_on,
        changes_run,
    };
    let lora = format!(
        "train lora {SMALL} --steps 6 --set checkpoint_every=2 --eval-every 1 --set \
         validation.patience=2 --set checkpoint.metric=loss --out run"
    );
    vec![
        scenario("train", "plain", &train, GoOn::Resume, false),
        scenario("train-lora", "plain", &lora, GoOn::Resume, false),
        scenario(
            "train-force",
            "other",
            &format!("{train} --force"),
            GoOn::Force,
            true,
        ),
        scenario(
            "resume",
            "stopped",
            "train --resume run",
            GoOn::Resume,
            false,
        ),
        scenario(
            "resume-stage",
            "stopped",
            "train --resume run --from-stage experts",
            GoOn::Resume,
            false,
        ),
        scenario(
            "add-expert",
            "two",
            "add-expert run --task weather",
            GoOn::Same,
            true,
        ),
        scenario(
            "remove-last",
            "three",
            "remove-expert run --task weather",
            GoOn::Same,
            true,
        ),
        scenario(
            "remove-other",
            "three",
            "remove-expert run --task answer",
            GoOn::Same,
            true,
        ),
        scenario("recover", "pending", "recover run", GoOn::Same, false),
        scenario("compare", "plain", &compare_line(), GoOn::Same, false),
        scenario(
            "export",
            "two",
            "export run --expert pets --out out",
            GoOn::Same,
            false,
        ),
        scenario(
            "export-run",
            "two",
            "export run --expert pets",
            GoOn::Same,
            false,
        ),
        scenario(
            "merge",
            "two",
            "merge run --expert pets --out out",
            GoOn::Same,
            false,
        ),
        scenario(
            "distill",
            "two",
            "distill run --rank 2 --samples 8 --out out",
            GoOn::Same,
            false,
        ),
        scenario("assemble", "adapters", ASSEMBLE, GoOn::Replace, false),
    ]
}

/// A state: the one it is made from, and the commands that make it.
struct State {
    name: &'static str,
    from: &'static str,
    commands: Vec<String>,
    /// The last command is killed before the operation after this one: its call, the end of its path.
    stop: Option<(&'static str, &'static str)>,
}

fn states() -> Vec<State> {
    let state = |name, from, commands: &[&str], stop| State {
        name,
        from,
        commands: commands.iter().map(|line| (*line).to_owned()).collect(),
        stop,
    };
    let train = train_line();
    let other = format!("{train} --seed 7");
    vec![
        state("two", "plain", &[&train], None),
        state("other", "plain", &[&other], None),
        state("three", "two", &["add-expert run --task weather"], None),
        state(
            "stopped",
            "plain",
            &[&train],
            Some(("rename", "/step-00000006")),
        ),
        state(
            "pending",
            "two",
            &["add-expert run --task weather"],
            Some(("rename", "/.swap")),
        ),
        state(
            "adapters",
            "two",
            &[
                "export run --expert answer --out adapters/answer",
                "export run --expert pets --out adapters/pets",
            ],
            None,
        ),
    ]
}

/// The folders that commands are tried on.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) program: Program,
    /// Everything that is written lies below this folder.
    pub(super) folder: PathBuf,
    states: BTreeMap<&'static str, PathBuf>,
}

impl Stage {
    /// Makes all states.
    pub(super) fn build(shell: &Shell, program: Program, folder: &Path) -> Result<Self> {
        let mut stage = Self {
            program,
            folder: folder.to_owned(),
            states: BTreeMap::new(),
        };
        let plain = stage.place("plain");
        let fixtures = shell
            .current_dir()
            .join("crates/molora/tests/fixtures/format-0");
        for name in ["model", "data"] {
            tree::copy(&fixtures.join(name), &plain.join(name))?;
        }
        another_task(&plain.join("data"), "weather", "birds")?;
        stage.states.insert("plain", plain);
        for state in states() {
            stage
                .add(&state)
                .with_context(|| format!("the state `{}`", state.name))?;
        }
        Ok(stage)
    }

    fn place(&self, state: &str) -> PathBuf {
        self.folder.join("states").join(state).join("world")
    }

    /// The folder of a state.
    pub(super) fn state(&self, name: &str) -> Result<&Path> {
        let found = self.states.get(name);
        Ok(found.with_context(|| format!("no state `{name}`"))?)
    }

    fn add(&mut self, state: &State) -> Result<()> {
        let place = self.place(state.name);
        tree::replace(self.state(state.from)?, &place)?;
        for (index, line) in state.commands.iter().enumerate() {
            let is_last = index + 1 == state.commands.len();
            match state.stop.filter(|_| is_last) {
                None => succeed(&self.program, &place, &words(line)).map(drop)?,
                Some(stop) => self.stop_after(&place, state.from, line, stop)?,
            }
            make_relative(&place, &place)?;
        }
        if state.name == "adapters" {
            for task in ["answer", "pets"] {
                tree::copy(
                    &place.join("data").join(task),
                    &place.join("tasks").join(task),
                )?;
            }
            tree::remove(&place.join("run"))?;
        }
        self.states.insert(state.name, place);
        Ok(())
    }

    /// Kills a command right after an operation.
    fn stop_after(&self, place: &Path, from: &str, line: &str, stop: (&str, &str)) -> Result<()> {
        let (_, operations) = self.program.count(place, &words(line), false)?;
        let is_it = |operation: &super::process::Operation| {
            operation.call == stop.0 && operation.path.ends_with(stop.1)
        };
        let at = operations
            .iter()
            .position(is_it)
            .context("no such operation")?
            + 2;
        tree::replace(self.state(from)?, place)?;
        let mut command = self.program.command(place, &words(line));
        self.program
            .inject(&mut command, place, Fault { at, kind: "kill" });
        ensure!(run(command)?.is_killed(), "was not killed");
        Ok(())
    }
}

/// Copies a task under another name.
fn another_task(data: &Path, from: &str, to: &str) -> Result<()> {
    let folder = data.join(to);
    std::fs::create_dir_all(&folder)?;
    for name in ["task.json", "train.jsonl", "validation.jsonl", "test.jsonl"] {
        let text = std::fs::read_to_string(data.join(from).join(name))?;
        std::fs::write(folder.join(name), text.replace(from, to))?;
    }
    Ok(())
}

/// Lets runs name model and data as seen from the folder that has both, so that they can be copied.
fn make_relative(folder: &Path, root: &Path) -> Result<()> {
    let begin = format!("{}/", root.display());
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            make_relative(&path, root)?;
        } else if let Ok(text) = std::fs::read_to_string(&path)
            && text.contains(&begin)
        {
            std::fs::write(&path, text.replace(&begin, ""))?;
        }
    }
    Ok(())
}

/// Runs a command that has to succeed.
pub(super) fn succeed(program: &Program, folder: &Path, arguments: &[String]) -> Result<End> {
    let end = run(program.command(folder, arguments))?;
    ensure!(
        end.is_success(),
        "{}: {}",
        arguments.join(" "),
        end.last_line()
    );
    Ok(end)
}

/// The command that one goes on with in a folder.
pub(super) fn next(scenario: &Scenario, folder: &Path) -> Vec<String> {
    let has = |name: &str| folder.join("run").join(name).exists();
    let resumes = match scenario.go_on {
        GoOn::Same | GoOn::Replace => false,
        GoOn::Resume => has("run.toml"),
        GoOn::Force => has("run.toml") && !has("summary.json"),
    };
    match resumes {
        true => words("train --resume run"),
        false if scenario.go_on == GoOn::Replace && has("run.toml") => {
            [&scenario.command[..], &words("--force")].concat()
        }
        false => scenario.command.clone(),
    }
}

/// Whether a command that went on did so, or says that nothing is left to do.
pub(super) fn is_done(end: &End) -> bool {
    end.is_success() || DONE.iter().any(|words| end.last_line().contains(words))
}

/// What a command has to lead to.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) before: Tree,
    pub(super) after: Tree,
}

impl Expected {
    /// Why the folder `run` is neither the old one nor the new one, nor on the way between them in a
    /// way that is told.
    pub(super) fn fault_of_run(&self, found: &Tree) -> Option<String> {
        let is_pending = found.has("run/.swap");
        let is_begun = found.has("run/run.toml")
            && !found.has("run/summary.json")
            && found.content("run/run.toml") == self.after.content("run/run.toml");
        let mut now = found.recovered("run");
        // Emptied a moment before it goes.
        now.forget_empty("before");
        let is_one = |tree: &Tree| now.difference(&tree.recovered("run")).is_none();
        let is_whole = is_one(&self.before) || is_one(&self.after);
        (!is_pending && !is_begun && !is_whole).then(|| {
            let difference = now.difference(&self.before.recovered("run"));
            format!("neither old nor new: {}", difference.unwrap_or_default())
        })
    }
}
