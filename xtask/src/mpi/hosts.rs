//! Two network namespaces with addresses of their own, which are two machines to an MPI.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::Place;
use super::cases::{same, train};
use super::process::{Job, send};

const NAMES: [&str; 2] = ["molora-a", "molora-b"];
const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const NETWORK: &str = "10.77.0.0/24";

/// The two namespaces; they go when this is dropped.
struct Hosts {
    /// What an MPI starts programs on another machine by.
    agent: PathBuf,
}

impl Hosts {
    fn new(place: &Place<'_>) -> Result<Self> {
        let hosts = Self {
            agent: place.folder.join("agent"),
        };
        hosts.remove();
        for name in NAMES {
            ip(&format!("netns add {name}"))
                .context("network namespaces need root and iproute2")?;
        }
        ip(&format!(
            "link add veth-a netns {} type veth peer name veth-b netns {}",
            NAMES[0], NAMES[1]
        ))?;
        for (name, (address, device)) in
            NAMES.iter().zip(ADDRESSES.iter().zip(["veth-a", "veth-b"]))
        {
            ip(&format!("-n {name} addr add {address}/24 dev {device}"))?;
            ip(&format!("-n {name} link set {device} up"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        // As ssh: a host, and the words of a command for its shell. Each machine has a name of its own.
        let script = format!(
            "#!/bin/sh\nwhile [ \"${{1#-}}\" != \"$1\" ]; do shift; done\ncase \"$1\" in {}) host={};; *) host={};; esac\n\
             shift\nexec ip netns exec \"$host\" unshare --uts sh -c \"hostname $host; cd '{}'; $*\"\n",
            ADDRESSES[0],
            NAMES[0],
            NAMES[1],
            place.folder.display()
        );
        std::fs::write(&hosts.agent, script)?;
        run(Command::new("chmod").arg("+x").arg(&hosts.agent))?;
        Ok(hosts)
    }

    fn remove(&self) {
        for name in NAMES {
            let mut command = Command::new("ip");
            drop(command.args(["netns", "delete", name]).output());
        }
    }

    /// Starts two ranks on each machine, from the first.
    fn start(&self, place: &Place<'_>, world: &std::path::Path, line: &str) -> Result<Job> {
        let launcher = place.launcher;
        let own = launcher.command(world);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", NAMES[0], "unshare", "--uts", "sh", "-c"]);
        command
            .arg(format!("hostname {}; exec \"$@\"", NAMES[0]))
            .arg("sh");
        command.arg(own.get_program()).args(own.get_args());
        command.current_dir(world);
        for (name, value) in own.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let agent = self.agent.display().to_string();
        if launcher.is_open_mpi {
            let hosts = ADDRESSES.map(|address| format!("{address}:2")).join(",");
            command.args(["--host", &hosts, "--mca", "plm_rsh_agent", &agent]);
            command.args([
                "--mca",
                "btl",
                "tcp,self",
                "--mca",
                "btl_tcp_if_include",
                NETWORK,
            ]);
            command.args([
                "--mca",
                "oob_tcp_if_include",
                NETWORK,
                "-x",
                "RAYON_NUM_THREADS",
            ]);
            command.args([
                "-x",
                "OMPI_ALLOW_RUN_AS_ROOT",
                "-x",
                "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
            ]);
        } else {
            let hosts = ADDRESSES.map(|address| format!("{address}:2")).join(",");
            command.args([
                "-launcher",
                "ssh",
                "-launcher-exec",
                &agent,
                "-hosts",
                &hosts,
            ]);
            command.args(["-localhost", ADDRESSES[0]]);
        }
        command.args(["-n", "4"]).arg(&launcher.program);
        command.args(line.split_whitespace());
        Job::start(command, world)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(line: &str) -> Result<()> {
    run(Command::new("ip").args(line.split_whitespace())).with_context(|| format!("ip {line}"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => bail!("{}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

pub(super) fn same_run(place: &mut Place<'_>) -> Result<String> {
    let line = train("samora", 1, 12);
    let alone = place.world("hosts-1")?;
    place.launcher.succeed(&alone, 1, &line)?;
    let hosts = Hosts::new(place)?;
    let world = place.world("hosts-2")?;
    let end = hosts.start(place, &world, &line)?.end()?;
    ensure!(end.success, "{}", end.errors);
    same(&world, &alone)?;
    Ok("two ranks on each of two, over TCP".into())
}

pub(super) fn kill(place: &mut Place<'_>) -> Result<String> {
    let line = train("samora", 1, 40);
    let alone = place.world("hosts-kill-1")?;
    place.launcher.succeed(&alone, 1, &line)?;
    let hosts = Hosts::new(place)?;
    let world = place.world("hosts-kill")?;
    let mut job = hosts.start(place, &world, &line)?;
    job.wait_for_steps("run", 3 + place.draw.below(20))?;
    send("-KILL", *job.ranks().get(&3).context("the rank has ended")?)?;
    let end = job.end()?;
    ensure!(!end.success, "the kill was not noticed");
    place.launcher.succeed(&world, 2, "train --resume run")?;
    same(&world, &alone).context("gone on with on one machine")?;
    Ok("rank 3, gone on with by 2 ranks of one machine".into())
}
