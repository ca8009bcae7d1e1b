//! What the project has promised of its speed.

use super::record::Record;

/// A promise about a case.
#[derive(Debug, Clone, Copy)]
enum Promise {
    /// Time, at most this share of the reference's.
    Time(f64),
    /// Peak memory, at most this share of the reference's.
    Memory(f64),
    /// Tokens per second, at least this multiple of the reference's.
    Throughput(f64),
    /// Share of the machine's matmul peak, at least this.
    Peak(f64),
    /// Time, at most this multiple of another case's of the suite.
    Growth(&'static str, f64),
    /// Tokens per second, at least this multiple of llama.cpp's.
    Llama(f64),
    /// Time, at most this multiple of llama.cpp's.
    LlamaTime(f64),
}

use Promise::{Growth, Llama, LlamaTime, Memory, Peak, Throughput, Time};

/// Suite, case, promise; on the processor.
const BARS: &[(&str, &str, Promise)] = &[
    ("step", "lora", Time(0.7)),
    ("step", "samora-3", Time(0.6)),
    ("step", "samora-8", Time(0.5)),
    ("step", "samora-3-short", Time(0.5)),
    ("step", "samora-3-bf16", Time(0.5)),
    ("step", "samora-3-bf16", Growth("samora-3", 0.5)),
    ("step", "lora", Memory(0.5)),
    ("step", "samora-3", Memory(0.5)),
    ("step", "samora-8", Memory(0.5)),
    ("step", "samora-3-bf16", Memory(0.5)),
    ("step", "lora", Peak(0.65)),
    ("step", "samora-3", Peak(0.65)),
    ("lm-step", "lora-attention", Time(0.5)),
    ("lm-step", "lora-attention-bf16", Time(0.42)),
    ("lm-step", "lora-attention", Memory(0.3)),
    ("lm-step", "lora-attention-bf16", Memory(0.4)),
    ("scale", "experts-64", Growth("experts-3", 1.5)),
    ("scale", "sequence-512", Growth("sequence-64", 1.5)),
    ("decode", "batch-1", Throughput(1.5)),
    ("decode", "batch-8", Throughput(1.5)),
    ("decode", "batch-1-bf16", Throughput(1.5)),
    ("decode", "batch-8-bf16", Throughput(1.5)),
    ("decode", "batch-1", Llama(0.9)),
    ("decode", "batch-1-bf16", Llama(0.9)),
    ("decode", "batch-1-q8", Llama(0.9)),
    ("decode", "batch-1-q4", Llama(0.9)),
    ("decode", "batch-8", Llama(1.1)),
    ("decode", "batch-8-bf16", Llama(1.1)),
    ("decode", "batch-8-q8", Llama(1.1)),
    ("decode", "batch-8-q4", Llama(1.1)),
    ("decode", "prompt-512", LlamaTime(1.1)),
    ("decode", "prompt-512-q4", LlamaTime(1.1)),
    ("decode", "samora-3", Growth("batch-1", 1.15)),
    ("decode", "samora-3-bf16", Growth("batch-1-bf16", 1.15)),
    ("decode", "samora-3-q8", Growth("batch-1-q8", 1.3)),
    ("decode", "samora-3-q4", Growth("batch-1-q4", 1.3)),
];

/// How a promise was kept.
#[derive(Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) case: String,
    pub(crate) promise: String,
    pub(crate) value: f64,
    pub(crate) is_met: bool,
}

/// Judges every promise whose numbers are there.
pub(crate) fn judge(records: &[Record]) -> Vec<Verdict> {
    let find = |suite: &str, case: &str| {
        records
            .iter()
            .find(|record| record.suite == suite && record.case == case && record.device == "flex")
    };
    let verdict = |(suite, case, promise): &(&str, &str, Promise)| {
        let record = find(suite, case)?;
        let (value, limit, is_most) = match *promise {
            Time(limit) => (record.time_ratio()?, limit, true),
            Memory(limit) => (record.memory_ratio()?, limit, true),
            Throughput(limit) => (record.throughput_ratio()?, limit, false),
            Peak(limit) => (record.share_of_peak()?, limit, false),
            Growth(from, limit) => {
                let from = find(suite, from)?.ours.median_ms;
                (record.ours.median_ms / from, limit, true)
            }
            Llama(limit) => (1.0 / record.llama_time_ratio()?, limit, false),
            LlamaTime(limit) => (record.llama_time_ratio()?, limit, true),
        };
        Some(Verdict {
            case: format!("{suite}/{case}"),
            promise: promise.text(),
            value,
            is_met: if is_most {
                value <= limit
            } else {
                value >= limit
            },
        })
    };
    BARS.iter().filter_map(verdict).collect()
}

impl Promise {
    fn text(self) -> String {
        match self {
            Time(limit) => format!("time at most {limit} x the reference"),
            Memory(limit) => format!("peak memory at most {limit} x the reference"),
            Throughput(limit) => format!("tokens/s at least {limit} x the reference"),
            Peak(limit) => format!("at least {limit} of the matmul peak"),
            Growth(from, limit) => format!("time at most {limit} x {from}"),
            Llama(limit) => format!("tokens/s at least {limit} x llama.cpp"),
            LlamaTime(limit) => format!("time at most {limit} x llama.cpp"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{measurement, record};
    use super::*;

    #[test]
    fn promises_are_judged_where_their_numbers_are() {
        let records = [
            record("step", "lora", 69.0, Some(100.0)),
            record("scale", "experts-64", 16.0, None),
            record("scale", "experts-3", 10.0, None),
            record("scale", "sequence-512", 1.0, None),
            record("decode", "batch-1", 50.0, Some(100.0)),
        ];
        let verdicts = judge(&records);
        let short = |v: &Verdict| (v.case.clone(), v.promise.clone(), v.is_met);
        let case = |case: &str, promise: &str, is_met| (case.into(), promise.into(), is_met);
        assert_eq!(
            verdicts.iter().map(short).collect::<Vec<_>>(),
            [
                case("step/lora", "time at most 0.7 x the reference", true),
                case(
                    "step/lora",
                    "peak memory at most 0.5 x the reference",
                    false
                ),
                case("step/lora", "at least 0.65 of the matmul peak", true),
                case("scale/experts-64", "time at most 1.5 x experts-3", false),
                case(
                    "decode/batch-1",
                    "tokens/s at least 1.5 x the reference",
                    true
                ),
            ]
        );
    }

    #[test]
    fn llama_is_a_reference_of_its_own() {
        let with = |case: &str, ours: f64, llama: f64| Record {
            llama: Some(measurement(llama)),
            ..record("decode", case, ours, None)
        };
        let records = [
            with("batch-1-q8", 10.0, 9.2),
            with("prompt-512", 12.0, 10.0),
            record("decode", "batch-1-q4", 1.0, None),
        ];
        let verdicts = judge(&records);
        let met: Vec<_> = verdicts.iter().map(|v| (&*v.promise, v.is_met)).collect();
        let expected = [
            ("tokens/s at least 0.9 x llama.cpp", true),
            ("time at most 1.1 x llama.cpp", false),
        ];
        assert_eq!(met, expected);
    }

    #[test]
    fn other_devices_have_promised_nothing() {
        let mut on_ndarray = record("step", "lora", 69.0, Some(100.0));
        on_ndarray.device = "ndarray".into();
        assert_eq!(judge(&[on_ndarray]), []);
    }
}
