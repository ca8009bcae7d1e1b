//! Runs the program, with a bound on its time, and reads how it ended.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// No tiny command takes as long; one that does hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// The signal that the kills send.
const KILL: i32 = 9;

/// The program, and what its environment is.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The file that is run.
    pub(super) path: PathBuf,
    /// The library that lets operations go wrong.
    pub(super) library: PathBuf,
    /// The user's cache folder, which is not a part of what is tried.
    pub(super) cache: PathBuf,
}

/// A fault: the number of the operation, and what happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) kind: &'static str,
}

/// The kind of faults that counts operations that read.
pub(super) const UNREADABLE: &str = "unreadable";

impl Program {
    /// The program with arguments, in a folder, with nothing of the caller's environment that it heeds.
    pub(super) fn command(&self, folder: &Path, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(arguments).current_dir(folder);
        command.env("XDG_CACHE_HOME", &self.cache);
        command.env("HOME", &self.cache);
        // Runs name the commit of the repository around them, which git may or may not find among faults.
        command.env("GIT_DIR", self.cache.join("no-repository"));
        for name in ["RUST_LOG", "HF_TOKEN", "HF_HOME", "HF_ENDPOINT"] {
            command.env_remove(name);
        }
        command
    }

    /// Lets an operation below `folder` go wrong.
    pub(super) fn inject(&self, command: &mut Command, folder: &Path, fault: Fault) {
        command.env("LD_PRELOAD", &self.library);
        command.env("TORTURE_ROOT", folder);
        command.env("TORTURE_AT", fault.at.to_string());
        command.env("TORTURE_KIND", fault.kind);
        if fault.kind == UNREADABLE {
            command.env("TORTURE_READS", "1");
        }
    }

    /// Runs without a fault and lists the operations below `folder`, those that read or others.
    pub(super) fn count(
        &self,
        folder: &Path,
        arguments: &[String],
        reads: bool,
    ) -> Result<(End, Vec<Operation>)> {
        let log = folder.with_extension("log");
        drop(std::fs::remove_file(&log));
        let mut command = self.command(folder, arguments);
        command.env("LD_PRELOAD", &self.library);
        command.env("TORTURE_ROOT", folder).env("TORTURE_LOG", &log);
        if reads {
            command.env("TORTURE_READS", "1");
        }
        let end = run(command)?;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        Ok((end, text.lines().filter_map(Operation::parse).collect()))
    }
}

/// One operation on a file, as the library logs it.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) call: String,
    pub(super) path: String,
}

impl Operation {
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, ' ').skip(1);
        Some(Self {
            call: parts.next()?.to_owned(),
            path: parts.next()?.to_owned(),
        })
    }
}

/// How a process ended.
#[derive(Debug, Clone)]
pub(super) struct End {
    status: Option<ExitStatus>,
    /// What it printed.
    pub(super) output: String,
    /// What it wrote to standard error, as far as it is UTF-8.
    pub(super) errors: String,
    /// Most memory that was seen, in MiB.
    pub(super) memory: u64,
}

impl End {
    pub(super) fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    pub(super) fn is_killed(&self) -> bool {
        self.status.and_then(|status| status.signal()) == Some(KILL)
    }

    /// The last line, which says why a command failed.
    pub(super) fn last_line(&self) -> &str {
        self.errors.lines().last().unwrap_or_default()
    }

    /// Why this is no end that a command may have: success, or code 1 with one line that says why.
    pub(super) fn fault(&self) -> Option<String> {
        let Some(status) = self.status else {
            return Some("did not end in time".into());
        };
        if self.errors.contains("panicked at") {
            return Some(format!("panicked: {}", self.last_line()));
        }
        match status.code() {
            Some(0) => None,
            Some(1) if self.is_one_line() => None,
            Some(1) => Some(format!("more or less than one line: {:?}", self.errors)),
            _ => Some(format!("{status}: {}", self.last_line())),
        }
    }

    /// One line `error: ...` at the end, and nothing that steers a terminal.
    fn is_one_line(&self) -> bool {
        let begins = |line: &&str| line.starts_with("error: ");
        let is_plain = |c: char| c == '\n' || !c.is_control();
        self.errors.lines().filter(begins).count() == 1
            && begins(&self.last_line())
            && self.last_line().chars().all(is_plain)
    }
}

/// A process whose output is read while it runs.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    readers: [JoinHandle<String>; 2],
    start: Instant,
    limit: Duration,
}

/// Starts a command.
pub(super) fn start(mut command: Command) -> Result<Running> {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start the program")?;
    let output = child.stdout.take().context("no standard output")?;
    let errors = child.stderr.take().context("no standard error")?;
    Ok(Running {
        readers: [read(output), read(errors)],
        child,
        start: Instant::now(),
        limit: LIMIT,
    })
}

/// Runs a command to its end.
pub(super) fn run(command: Command) -> Result<End> {
    start(command)?.wait()
}

/// Runs a command that may take longer than others.
pub(super) fn run_within(command: Command, limit: Duration) -> Result<End> {
    Running {
        limit,
        ..start(command)?
    }
    .wait()
}

impl Running {
    /// Waits for the end; a process that takes too long is killed.
    pub(super) fn wait(mut self) -> Result<End> {
        let id = self.child.id();
        let mut most = 0;
        let status = loop {
            most = most.max(memory(id, "VmHWM:"));
            if let Some(status) = self.child.try_wait()? {
                break Some(status);
            }
            if self.start.elapsed() > self.limit {
                self.child.kill()?;
                self.child.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let [output, errors] = self.readers.map(|reader| reader.join().unwrap_or_default());
        Ok(End {
            status,
            output,
            errors,
            memory: most,
        })
    }
}

fn read(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(from.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What the system tells of a process in a field of its status, such as `VmHWM:`, in MiB; 0 where it does not.
pub(super) fn memory(process: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) / 1024
}
