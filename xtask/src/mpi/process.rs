//! Starts ranks, finds their processes, and waits for their end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// No try takes as long; one that does hangs.
const LIMIT: Duration = Duration::from_secs(180);
/// How often it is looked whether something has happened.
const PAUSE: Duration = Duration::from_millis(5);

/// How ranks are started by an MPI.
pub(super) struct Launcher {
    pub(super) name: &'static str,
    pub(super) is_open_mpi: bool,
    pub(super) program: PathBuf,
}

/// Ranks that run.
pub(super) struct Job {
    child: Child,
    world: PathBuf,
    begun: Instant,
}

/// How a job ended.
pub(super) struct End {
    pub(super) success: bool,
    pub(super) out: String,
    pub(super) errors: String,
}

impl Launcher {
    pub(super) fn new(is_open_mpi: bool, name: &'static str, program: PathBuf) -> Self {
        Self {
            name,
            is_open_mpi,
            program,
        }
    }

    /// The command that starts ranks in a folder, without the program.
    pub(super) fn command(&self, world: &Path) -> Command {
        let mut command = Command::new(self.name);
        command.current_dir(world).env("RAYON_NUM_THREADS", "1");
        if self.is_open_mpi {
            command.args(["--oversubscribe", "--bind-to", "none"]);
            // Who tries this may be root, as in a container.
            command.env("OMPI_ALLOW_RUN_AS_ROOT", "1");
            command.env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        }
        command
    }

    /// Starts so many ranks of the program with the words of a line.
    pub(super) fn start(&self, world: &Path, ranks: usize, line: &str) -> Result<Job> {
        let mut command = self.command(world);
        command.args(["-n", &ranks.to_string()]).arg(&self.program);
        command.args(line.split_whitespace());
        Job::start(command, world)
    }

    /// Runs to the end, which has to be a good one; what was printed.
    pub(super) fn succeed(&self, world: &Path, ranks: usize, line: &str) -> Result<String> {
        let end = self.start(world, ranks, line)?.end()?;
        ensure!(end.success, "`{line}` on {ranks} ranks: {}", end.errors);
        Ok(end.out)
    }
}

impl Job {
    pub(super) fn start(mut command: Command, world: &Path) -> Result<Self> {
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn();
        let program = command.get_program().to_owned();
        Ok(Self {
            child: child.with_context(|| format!("{} cannot be started", program.display()))?,
            world: world.to_owned(),
            begun: Instant::now(),
        })
    }

    /// The processes of the ranks, by rank.
    pub(super) fn ranks(&self) -> BTreeMap<usize, u32> {
        ranks_in(&self.world)
    }

    /// Waits until the run `name` has made so many steps.
    pub(super) fn wait_for_steps(&mut self, name: &str, count: usize) -> Result<()> {
        let file = self.world.join(name).join("steps.jsonl");
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if text
                .lines()
                .filter(|line| line.contains("\"step\""))
                .count()
                >= count
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("ended ({status}) before step {count}");
            }
            ensure!(
                self.begun.elapsed() < LIMIT,
                "no step {count} within {LIMIT:?}"
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits for the end.
    pub(super) fn end(self) -> Result<End> {
        let id = self.child.id();
        let (begun, world) = (self.begun, self.world);
        let waiting = std::thread::spawn(move || self.child.wait_with_output());
        while !waiting.is_finished() {
            if begun.elapsed() > LIMIT {
                send("-KILL", id)?;
                kill_left(&world);
                bail!("no end within {LIMIT:?}");
            }
            std::thread::sleep(PAUSE);
        }
        let output = waiting.join().expect("it only waits")?;
        // A rank that was stopped outlives its launcher.
        kill_left(&world);
        Ok(End {
            success: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// Sends a signal to a process.
pub(super) fn send(name: &str, process: u32) -> Result<()> {
    let status = Command::new("kill")
        .args([name, &process.to_string()])
        .status();
    ensure!(status?.success(), "no process {process}");
    Ok(())
}

/// Ends what is left of a job in a folder.
fn kill_left(world: &Path) {
    for (_, process) in ranks_in(world) {
        drop(send("-KILL", process));
    }
}

/// The processes of ranks that work in a folder, by rank.
fn ranks_in(world: &Path) -> BTreeMap<usize, u32> {
    const NAMES: [&str; 2] = ["OMPI_COMM_WORLD_RANK=", "PMI_RANK="];
    let rank = |process: u32| {
        let file = |name: &str| format!("/proc/{process}/{name}");
        let program = std::fs::read_to_string(file("comm")).ok()?;
        let is_rank = ["molora", "ranks"].contains(&program.trim());
        if !is_rank || std::fs::read_link(file("cwd")).ok()? != world {
            return None;
        }
        let variables = std::fs::read(file("environ")).ok()?;
        let variables = String::from_utf8_lossy(&variables).into_owned();
        let value = |name: &str| {
            let found = variables
                .split('\0')
                .find_map(|text| text.strip_prefix(name));
            found.and_then(|rank| rank.parse().ok())
        };
        Some((NAMES.iter().find_map(|name| value(name))?, process))
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.filter_map(rank).collect()
}
