//! `molora serve` as a child process.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};

/// A server, which ends with this value at the latest.
#[derive(Debug)]
pub(crate) struct Served {
    child: Child,
    pub(crate) address: SocketAddr,
    said: Option<JoinHandle<String>>,
}

impl Served {
    /// Starts a program that serves, at a free port of the loopback.
    pub(crate) fn start(mut program: Command) -> Result<Self> {
        let program = program.args(["--port", "0"]).stderr(Stdio::piped());
        let mut child = program.spawn().context("cannot start the program")?;
        let mut lines = BufReader::new(child.stderr.take().context("no standard error")?);
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            let count = lines.read_line(&mut line)?;
            said.push_str(&line);
            ensure!(count > 0, "the server did not start: {said}");
            if let Some((_, address)) = line.trim().split_once(" at http://") {
                break address.trim_end_matches("/v1").parse()?;
            }
        };
        // Read all the time: else a server that says much would wait for it.
        let said = std::thread::spawn(move || {
            let mut bytes = said.into_bytes();
            drop(lines.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Ok(Self {
            child,
            address,
            said: Some(said),
        })
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, as systemd does, and gives back how it did and what it said.
    pub(crate) fn end(mut self) -> Result<(ExitStatus, String)> {
        let id = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &id]).status()?;
        ensure!(killed.success(), "the server has ended before");
        let status = self.child.wait()?;
        let said = self.said.take().and_then(|said| said.join().ok());
        Ok((status, said.unwrap_or_default()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
