//! What has to hold on one machine.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::Place;
use super::process::{Job, send};
use crate::torture::tree::Tree;

/// Numbers that make a training short: batches of eight rows, in micro-batches of two.
const SMALL: &str = "--model model --data data --tasks answer,pets --set data.max_length=24 \
                     --set adapter.bank.rank=2 --set data.sampling.batch_size=8 \
                     --set data.sampling.bucket_batches=6 --set checkpoint_every=2 --out run";
/// A rank that hangs ends the run within so many seconds.
const SECONDS: u64 = 30;

/// A training of a recipe with so many stages.
pub(super) fn train(recipe: &str, stages: usize, steps: usize) -> String {
    let rows = (0..stages).map(|stage| format!("--set stages.{stage}.micro_batch_size=2"));
    let rows = rows.collect::<Vec<_>>().join(" ");
    format!("train {recipe} {SMALL} --steps {steps} {rows}")
}

/// That a run is the one that is expected, but for times.
pub(super) fn same(found: &Path, expected: &Path) -> Result<()> {
    let (found, expected) = (Tree::read_result(found)?, Tree::read_result(expected)?);
    let [found, expected] = [found, expected].map(|tree| tree.recovered("run"));
    match found.difference(&expected) {
        None => Ok(()),
        Some(difference) => bail!("{difference}"),
    }
}

pub(super) fn same_runs(place: &mut Place<'_>) -> Result<String> {
    // The recipe has experts for four layers, and the model two.
    let recipes = [
        ("samora", 1, ""),
        ("mosld", 1, " --set adapter.experts.by_layer=[3,4]"),
        ("moa", 3, ""),
    ];
    for (recipe, stages, also) in recipes {
        let line = train(recipe, stages, 12) + also;
        let alone = place.world(&format!("{recipe}-1"))?;
        place.launcher.succeed(&alone, 1, &line)?;
        for ranks in [2, 4] {
            let world = place.world(&format!("{recipe}-{ranks}"))?;
            place.launcher.succeed(&world, ranks, &line)?;
            same(&world, &alone).with_context(|| format!("{recipe} on {ranks} ranks"))?;
        }
    }
    Ok("samora, mosld, moa".into())
}

pub(super) fn delays(place: &mut Place<'_>) -> Result<String> {
    let alone = place.world("delays-1")?;
    place.launcher.succeed(&alone, 1, &train("samora", 1, 12))?;
    let mut times = Vec::new();
    for delay in [1, 20] {
        let world = place.world(&format!("delays-{delay}ms"))?;
        let mut command = place.launcher.command(&world);
        command.args(["-n", "2"]);
        command.arg(place.launcher.program.with_file_name("ranks"));
        // The example trains what a run says that is there already.
        std::fs::create_dir_all(world.join("asked"))?;
        std::fs::copy(alone.join("run/run.toml"), world.join("asked/run.toml"))?;
        command.args(["train", &delay.to_string(), "asked", "model", "data", "run"]);
        let begun = Instant::now();
        let end = Job::start(command, &world)?.end()?;
        ensure!(end.success, "{delay} ms: {}", end.errors);
        times.push(format!("{delay} ms: {} s", begun.elapsed().as_secs()));
        same(&world, &alone).with_context(|| format!("{delay} ms"))?;
    }
    Ok(times.join(", "))
}

pub(super) fn same_scores(place: &mut Place<'_>) -> Result<String> {
    let world = place.world("scores")?;
    place.launcher.succeed(&world, 2, &train("samora", 1, 4))?;
    let line = "eval run --json";
    let alone = place.launcher.succeed(&world, 1, line)?;
    for ranks in [2, 3] {
        let found = place.launcher.succeed(&world, ranks, line)?;
        ensure!(found == alone, "{ranks} ranks: {found}, expected {alone}");
    }
    Ok("1, 2 and 3 ranks".into())
}

pub(super) fn same_comparison(place: &mut Place<'_>) -> Result<String> {
    let line = train("lora,hydralora", 1, 4).replacen("train", "compare", 1);
    let line = line.replace(
        "--out run",
        "--out run --seeds 2 --tune learning_rate=1e-3,1e-2",
    );
    let alone = place.world("compare-1")?;
    place.launcher.succeed(&alone, 1, &line)?;
    for (ranks, each) in [(2, 1), (4, 2)] {
        let world = place.world(&format!("compare-{ranks}"))?;
        let line = format!("{line} --ranks-per-run {each}");
        place.launcher.succeed(&world, ranks, &line)?;
        same(&world, &alone).with_context(|| format!("{ranks} ranks, {each} each"))?;
    }
    Ok("2 ranks with a run each, 4 with two for each run".into())
}

pub(super) fn misuse(place: &mut Place<'_>) -> Result<String> {
    let cases = [
        (9, train("lora", 1, 4), "9 ranks share batches of 8 rows"),
        (
            2,
            "train lora --dry-run".into(),
            "--dry-run is for one process",
        ),
        (
            3,
            train("lora,samora", 1, 4).replacen("train", "compare", 1) + " --ranks-per-run 2",
            "--ranks-per-run is 2, and there are 3 ranks",
        ),
        (2, "train --resume nowhere".into(), "does not see this run"),
    ];
    for (ranks, line, expected) in &cases {
        let world = place.world("misuse")?;
        let end = place.launcher.start(&world, *ranks, line)?.end()?;
        only_line(&end.errors, expected).with_context(|| format!("`{line}`"))?;
        ensure!(
            !end.success && !world.join("run").exists(),
            "`{line}` went on"
        );
    }
    // Ranks of one job that are started with different recipes.
    let world = place.world("misuse")?;
    let mut command = place.launcher.command(&world);
    for (index, recipe) in ["lora", "samora"].into_iter().enumerate() {
        if index > 0 {
            command.arg(":");
        }
        command.args(["-n", "1"]).arg(&place.launcher.program);
        command.args(train(recipe, 1, 4).split_whitespace());
    }
    let end = Job::start(command, &world)?.end()?;
    only_line(&end.errors, "rank 1 has another recipe than rank 0")?;
    ensure!(
        !end.success && !world.join("run").exists(),
        "different recipes went on"
    );
    Ok(format!("{} cases", cases.len() + 1))
}

/// That molora says one line of error, and that it is this one.
fn only_line(errors: &str, expected: &str) -> Result<()> {
    let lines: Vec<_> = errors
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    match lines[..] {
        [line] if line.contains(expected) => Ok(()),
        _ => bail!("expected one line with `{expected}`, found {lines:?} in {errors}"),
    }
}

pub(super) fn signal(place: &mut Place<'_>) -> Result<String> {
    let line = train("samora", 1, 40);
    let alone = place.world("signal-1")?;
    place.launcher.succeed(&alone, 1, &line)?;
    for name in ["-TERM", "-USR1"] {
        let world = place.world("signal")?;
        let mut job = place.launcher.start(&world, 3, &line)?;
        job.wait_for_steps("run", 3 + place.draw.below(20))?;
        let rank = *job.ranks().get(&1).context("no rank 1")?;
        send(name, rank)?;
        let end = job.end()?;
        let stopped = end
            .errors
            .lines()
            .filter(|line| line.contains("stopped after step"));
        ensure!(stopped.count() == 1, "{name}: {}", end.errors);
        place.launcher.succeed(&world, 2, "train --resume run")?;
        same(&world, &alone).context("gone on with by two ranks")?;
    }
    Ok("SIGTERM and SIGUSR1 to rank 1 of 3, gone on with by 2".into())
}

pub(super) fn kills(place: &mut Place<'_>) -> Result<String> {
    let line = train("samora", 1, 40);
    let alone = place.world("kills-1")?;
    place.launcher.succeed(&alone, 1, &line)?;
    let mut slowest = 0;
    for index in 0..place.kills {
        let world = place.world("kills")?;
        let mut job = place.launcher.start(&world, 3, &line)?;
        job.wait_for_steps("run", 1 + place.draw.below(36))?;
        let rank = place.draw.below(3);
        send(
            "-KILL",
            *job.ranks().get(&rank).context("the rank has ended")?,
        )?;
        let begun = Instant::now();
        let end = job.end()?;
        slowest = slowest.max(begun.elapsed().as_secs());
        ensure!(!end.success, "kill {index} of rank {rank} was not noticed");
        let ranks = 1 + place.draw.below(4);
        let again = if world.join("run").exists() {
            "train --resume run"
        } else {
            &line
        };
        place.launcher.succeed(&world, ranks, again)?;
        same(&world, &alone)
            .with_context(|| format!("kill {index} of rank {rank}, gone on with by {ranks}"))?;
    }
    ensure!(slowest <= SECONDS, "the others ended after {slowest} s");
    Ok(format!(
        "{} times of 3, gone on with by 1 to 4; the others ended within {} s",
        place.kills,
        slowest + 1
    ))
}

pub(super) fn hang(place: &mut Place<'_>) -> Result<String> {
    let line = train("samora", 1, 40);
    let alone = place.world("hang-1")?;
    place.launcher.succeed(&alone, 1, &line)?;
    let mut found = Vec::new();
    for rank in [0, 2] {
        let world = place.world("hang")?;
        let mut job = place.launcher.start(&world, 3, &line)?;
        job.wait_for_steps("run", 4)?;
        send(
            "-STOP",
            *job.ranks().get(&rank).context("the rank has ended")?,
        )?;
        let begun = Instant::now();
        let end = job.end()?;
        let seconds = begun.elapsed().as_secs();
        only_line(&end.errors, &format!("rank {rank} of 3 has given no sign"))?;
        ensure!(seconds <= SECONDS, "{seconds} s");
        place.launcher.succeed(&world, 2, "train --resume run")?;
        same(&world, &alone).context("gone on with")?;
        found.push(format!("rank {rank} of 3 after {seconds} s"));
    }
    Ok(found.join(", "))
}
