//! Progress on standard error: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::download::Downloads;
use super::ranks::{Voice, voice};
use super::say;
use super::terminal::line;
use molora_train::report::{StepRecord, ValidationRecord};
use molora_train::train::{Event, Kept, StageEvent};

/// Plain lines come at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows the events of a run.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    downloads: Downloads,
    is_terminal: bool,
    speed: Speed,
    /// The newest score of the validation split, in words.
    validation: String,
    last_line: Option<Instant>,
}

/// Tokens per second since the first step that this process made, and the loss of late.
#[derive(Default)]
struct Speed {
    loss: Option<f64>,
    tokens: usize,
    seconds: f64,
    steps: usize,
}

impl Speed {
    fn add(&mut self, record: &StepRecord) {
        // One step is one task, and tasks differ: a mean over some 20 steps shows the trend.
        let old = self.loss.unwrap_or(record.loss);
        self.loss = Some(0.95 * old + 0.05 * record.loss);
        self.tokens += record.tokens;
        self.seconds += record.seconds;
        self.steps += 1;
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }

    fn left(&self, steps: usize) -> Duration {
        Duration::from_secs_f64(self.seconds / self.steps.max(1) as f64 * steps as f64)
    }
}

impl Progress {
    pub(super) fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal() && voice() == Voice::Whole;
        Self {
            bar: None,
            downloads: Downloads::new(),
            is_terminal,
            speed: Speed::default(),
            validation: String::new(),
            last_line: None,
        }
    }

    pub(super) fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Phase(text) => {
                self.finish();
                say(&line(text));
                self.last_line = None;
            }
            Event::Stage(stage) if stage.total > 1 => self.show_stage(stage),
            Event::Stage(_) => {}
            Event::Download(progress) => self.downloads.show(progress),
            Event::MicroBatch(micro) => {
                self.finish();
                say(&line(&micro.to_string()));
            }
            Event::Step(record, total) => {
                self.speed.add(record);
                let left = self.speed.left(total - record.step);
                let text = format!(
                    "loss {:.4}{}  {:.0} tokens/s  {} left",
                    self.speed.loss.unwrap_or(record.loss),
                    self.validation,
                    self.speed.tokens_per_second(),
                    clock(left)
                );
                self.advance("step", record.step, total, &text);
            }
            Event::Validated(record) => self.validation = validation(record),
            Event::Guard(record) => {
                self.finish();
                say(&line(&record.text()));
            }
            Event::Kept(kept) => self.show_kept(kept),
            Event::Evaluated(done, total) => self.advance("record", done, total, ""),
        }
    }

    fn show_stage(&mut self, stage: StageEvent<'_>) {
        self.finish();
        let expert = stage
            .expert
            .map(|task| format!(", expert of {}", line(task)));
        let (number, total, name) = (stage.number, stage.total, line(stage.name));
        let expert = expert.unwrap_or_default();
        say(&format!("stage {number}/{total} {name}{expert}"));
        self.last_line = None;
    }

    /// Says which state was taken; of a last one that is the best nothing is to be said.
    fn show_kept(&mut self, kept: Kept) {
        self.validation.clear();
        if kept.step == kept.last && !kept.is_early {
            return;
        }
        self.finish();
        let (step, last) = (kept.step, kept.last);
        let early = if kept.is_early {
            ", which ended early"
        } else {
            ""
        };
        say(&format!(
            "kept the state of step {step} of {last}{early}: the best on the validation split"
        ));
        self.last_line = None;
    }

    pub(super) fn finish(&mut self) {
        self.downloads.finish();
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }

    fn advance(&mut self, what: &str, done: usize, total: usize, text: &str) {
        if self.is_terminal {
            let bar = self.bar.get_or_insert_with(|| bar(what, total));
            bar.set_position(done as u64);
            bar.set_message(text.to_owned());
            return;
        }
        let is_due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if is_due || done == total {
            say(format!("{what} {done}/{total}  {text}").trim_end());
            self.last_line = Some(Instant::now());
        }
    }
}

fn bar(what: &str, total: usize) -> ProgressBar {
    let template = format!("{what} {{pos}}/{{len}} [{{bar:30}}] {{msg}}");
    let style = ProgressStyle::with_template(&template).expect("a valid template");
    ProgressBar::new(total as u64).with_style(style.progress_chars("=> "))
}

/// Minutes and seconds, from an hour on with hours.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    match minutes / 60 {
        0 => format!("{minutes}:{seconds:02}"),
        hours => format!("{hours}:{:02}:{seconds:02}", minutes % 60),
    }
}

/// The score of a state by what states are compared by, and whether it is the best so far.
fn validation(record: &ValidationRecord) -> String {
    let value = record.metric.text(record.metric.of(&record.validation));
    let best = if record.is_best {
        ""
    } else {
        " (not the best)"
    };
    format!("  validation {value}{best}")
}
