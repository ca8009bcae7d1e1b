//! `cargo xtask ci`: all checks, cheapest first, stopping at the first that fails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use crate::{bench, tidy, workspace};

/// A check with its name.
type Step = (&'static str, fn(&Shell) -> Result<()>);

/// The checks in their order. Those that compile burn's backends do it with the same features, so
/// that there is one build of each crate to run and one to read.
const STEPS: [Step; 9] = [
    ("fmt", fmt),
    ("tidy", |_| tidy::run()),
    ("clippy", clippy),
    ("test", test),
    ("other backends", backends),
    ("doc", doc),
    ("default features", default_features),
    ("libraries without a backend", libraries),
    ("cuda compiles", cuda),
];

/// The checks on other backends than flex.
const BACKEND_STEPS: [Step; 2] = [("other backends", backends), ("cuda compiles", cuda)];

/// The backends that can run without a graphics processor: wgpu by a Vulkan in software.
const BACKENDS: &str = "molora/ndarray,molora/wgpu";

/// Set where a device that does not answer is an error.
const REQUIRE_DEVICES: &str = "MOLORA_REQUIRE_DEVICES";

/// Runs every step and prints what each took.
pub(crate) fn run() -> Result<()> {
    run_steps(&STEPS)
}

/// Runs the checks on other backends.
pub(crate) fn run_backends() -> Result<()> {
    run_steps(&BACKEND_STEPS)
}

fn run_steps(steps: &[Step]) -> Result<()> {
    let shell = workspace::shell()?;
    let mut times = Vec::new();
    for &(name, step) in steps {
        println!("\n== {name}");
        let start = Instant::now();
        step(&shell).with_context(|| format!("ci stopped at step `{name}`"))?;
        times.push((name, start.elapsed()));
        println!("== {name}: passed in {}", seconds(start.elapsed()));
    }
    println!("\nall {} steps passed", times.len());
    times
        .iter()
        .for_each(|(name, time)| println!("{:>9}  {name}", seconds(*time)));
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn fmt(shell: &Shell) -> Result<()> {
    // Every file by its name: those of an axis' parts are declared by the list of the axis, a macro,
    // behind which `cargo fmt` does not look.
    let files = workspace::files(shell)?;
    let files = files.iter().filter(|file| file.ends_with(".rs"));
    cmd!(shell, "rustfmt --check --edition 2024 {files...}")
        .quiet()
        .run()
        .context("run `cargo xtask fmt` to format")
}

/// Formats every file, those that `cargo fmt` does not see too.
pub(crate) fn format(shell: &Shell) -> Result<()> {
    let files = workspace::files(shell)?;
    let files = files.iter().filter(|file| file.ends_with(".rs"));
    Ok(cmd!(shell, "rustfmt --edition 2024 {files...}")
        .quiet()
        .run()?)
}

fn clippy(shell: &Shell) -> Result<()> {
    let lint = ["-D", "warnings"];
    let targets = "--all-targets";
    Ok(cmd!(
        shell,
        "cargo clippy --release --workspace {targets} --features {BACKENDS} -- {lint...}"
    )
    .run()?)
}

/// Everything on flex; what runs on another backend is for the step `backends`, which knows whether
/// its device is there.
fn test(shell: &Shell) -> Result<()> {
    let others = ["--skip", "backends::"];
    let command = cmd!(
        shell,
        "cargo test --release --workspace --features {BACKENDS} -- {others...}"
    );
    // burn reads an optimizer's state onto its default device: wgpu's, where it is compiled in.
    Ok(command.env("BURN_DEVICE", "flex").run()?)
}

fn doc(shell: &Shell) -> Result<()> {
    let command = cmd!(
        shell,
        "cargo doc --release --no-deps --workspace --features {BACKENDS}"
    );
    Ok(command.env("RUSTDOCFLAGS", "-D warnings").run()?)
}

/// What README.md tells a newcomer to build.
fn default_features(shell: &Shell) -> Result<()> {
    Ok(cmd!(shell, "cargo check --release --workspace --all-targets").run()?)
}

/// The libraries must compile with no backend compiled in: only the program picks one.
fn libraries(shell: &Shell) -> Result<()> {
    let packages = [
        "molora-adapters",
        "molora-routing",
        "molora-regularize",
        "molora-models",
    ];
    let packages = packages.iter().flat_map(|package| ["-p", package]);
    Ok(cmd!(shell, "cargo check --release {packages...}").run()?)
}

/// Golden tests and a short training on the backends beside flex, and on wgpu the kernels that only
/// it has, each against its definition.
fn backends(shell: &Shell) -> Result<()> {
    // The whole workspace, as in the other steps.
    let test = ["test", "--release", "--workspace", "--features", BACKENDS];
    for device in ["ndarray", "wgpu"] {
        if let Some(reason) = bench::absent(shell, device, BACKENDS)? {
            let is_required = std::env::var_os(REQUIRE_DEVICES).is_some();
            ensure!(!is_required, "{device} is required: {reason}");
            println!("{device} is skipped: {reason}");
            continue;
        }
        let golden = cmd!(shell, "cargo {test...} --tests golden");
        golden.env("BURN_DEVICE", device).run()?;
        cmd!(
            shell,
            "cargo {test...} --test suite program::backends::{device}"
        )
        .run()?;
        if device == "wgpu" {
            let kernels = cmd!(
                shell,
                "cargo {test...} --lib equals_the_portable_definition"
            );
            kernels.env("BURN_DEVICE", device).run()?;
        }
    }
    Ok(())
}

/// Everything but the last link, for which LLVM would have to be downloaded.
fn cuda(shell: &Shell) -> Result<()> {
    // The whole workspace, as above.
    let features = "molora/cuda";
    let check = cmd!(
        shell,
        "cargo check --release --workspace --features {features}"
    );
    Ok(check.env("DOCS_RS", "1").run()?)
}
