//! Logs of a training for other programs.

use std::path::Path;

use molora_train::recipe::LogFormat;
use molora_train::report::{Record, read_records};

use super::writer;
use crate::world::{World, resume_to_end, small, train_until};

/// The steps of an event file's events behind the first: each event begins with its time, 9 bytes, and the
/// number of the step behind its key, 7 bits a byte.
fn steps(run: &Path) -> Vec<usize> {
    let path = run.join("tensorboard/events.out.tfevents.molora");
    let data = std::fs::read(path).expect("an event file");
    let (mut place, mut found) = (0, Vec::new());
    while place < data.len() {
        let length = data[place..place + 8].try_into().expect("eight bytes");
        let length = u64::from_le_bytes(length) as usize;
        let event = &data[place + 12..place + 12 + length];
        if event[9] == 0x10 {
            let low = usize::from(event[10] & 0x7f);
            let high = usize::from(event[10] >> 7) * usize::from(event[11]);
            found.push(low + (high << 7));
        }
        place += length + 16;
    }
    found
}

/// The steps of the records of a run.
fn recorded(run: &Path) -> Vec<usize> {
    let records = read_records(&run.join("steps.jsonl")).expect("whole records");
    records.iter().map(Record::step).collect()
}

#[test]
fn an_event_file_has_every_record_once() {
    let (encoder, decoder) = (World::new(), writer::world());
    let requests = [
        encoder.request(small("samora"), "run"),
        writer::request(
            &decoder,
            writer::recipe("lora", 12),
            &["pets", "sky"],
            "run",
        ),
    ];
    for mut request in requests {
        request.recipe.report.log = vec![LogFormat::Tensorboard];
        // Stopped behind its checkpoint, it makes some steps again.
        train_until(&request, 7);
        assert_eq!(steps(&request.out), recorded(&request.out));
        let checkpoints = request.out.join("checkpoints");
        std::fs::remove_dir_all(checkpoints.join("step-00000007")).expect("it is there");
        resume_to_end(&request.out);
        let found = steps(&request.out);
        assert!(found.len() >= 12);
        assert_eq!(found, recorded(&request.out));
    }
}

#[test]
fn programs_that_nothing_is_written_for_are_refused() {
    let world = World::new();
    for (program, expected) in [
        ("wandb", "offline files of wandb; expected tensorboard"),
        (
            "tensorboard,mlflow",
            "offline files of mlflow; expected tensorboard",
        ),
        ("aim", "expected tensorboard"),
    ] {
        let output = world.run(&["train", "lora", "--log", program, "--out", "run"]);
        assert_eq!(output.status.code(), Some(2), "{program}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(expected), "{text}");
        assert!(!world.path("run").exists());
    }
}
