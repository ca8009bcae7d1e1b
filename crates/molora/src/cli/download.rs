//! Downloads on standard error: a bar per file on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::say;
use super::terminal::line;
use molora_train::hub::Progress;

/// Plain lines about one file come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows what a download tells.
pub(super) struct Downloads {
    is_terminal: bool,
    bar: Option<ProgressBar>,
    file: String,
    last_line: Option<Instant>,
}

impl Downloads {
    pub(super) fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            bar: None,
            file: String::new(),
            last_line: None,
        }
    }

    /// Shows it where nothing but a signal stops the download.
    pub(super) fn show_all(&mut self, progress: Progress<'_>) -> ControlFlow<()> {
        self.show(progress);
        ControlFlow::Continue(())
    }

    pub(super) fn show(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Asking { .. } => {}
            Progress::Bytes { file, done, total } => self.bytes(file, done, total),
            Progress::Waiting { file } => {
                if self.is_due() {
                    let file = line(file);
                    say(&format!(
                        "waiting for another process that downloads {file}"
                    ));
                }
            }
            Progress::Retry { problem, .. } => {
                self.finish();
                say(&format!("{}; trying again", line(&problem.to_string())));
            }
        }
    }

    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }

    fn bytes(&mut self, file: &str, done: u64, total: u64) {
        if self.file != file {
            self.finish();
            self.file = file.into();
            self.last_line = None;
        }
        if self.is_terminal {
            let bar = self.bar.get_or_insert_with(|| bar(file, total));
            bar.set_position(done);
        } else if self.is_due() {
            let (done, total) = (HumanBytes(done), HumanBytes(total));
            say(&format!("downloading {}: {done} of {total}", line(file)));
        }
        if done == total {
            self.finish();
        }
    }

    fn is_due(&mut self) -> bool {
        let is_due = |last: Instant| last.elapsed() >= LINE_EVERY;
        let is_due = self.last_line.is_none_or(is_due);
        if is_due {
            self.last_line = Some(Instant::now());
        }
        is_due
    }
}

fn bar(file: &str, total: u64) -> ProgressBar {
    let template = "{msg} {bytes}/{total_bytes} [{bar:30}] {bytes_per_sec} {eta} left";
    let style = ProgressStyle::with_template(template).expect("a valid template");
    let bar = ProgressBar::new(total).with_style(style.progress_chars("=> "));
    bar.with_message(line(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_bar_of_its_own() {
        let mut downloads = Downloads::new();
        downloads.is_terminal = true;
        for (file, done) in [("a", 0), ("a", 1), ("b", 1)] {
            let total = 2;
            downloads.show(Progress::Bytes { file, done, total });
            let bar = downloads.bar.as_ref().expect("not at its end");
            assert_eq!((bar.message().as_str(), bar.position()), (file, done));
        }
        let (file, done, total) = ("b", 2, 2);
        downloads.show(Progress::Bytes { file, done, total });
        assert!(downloads.bar.is_none());
    }
}
