use std::fs;
use std::path::PathBuf;

use crate::data::{Label, Split, Task, TaskKind, load_task};

/// Files of the same 24 records in each format. The Parquet files are pyarrow 26's: snappy with a
/// dictionary, zstd in three row groups, gzip in pages of version 2, lz4 with categories and labels
/// as floats.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/formats")
        .join(name)
}

fn all_records(task: &Task) -> usize {
    task.train.len() + task.validation.len() + task.test.len()
}

/// The error for one file of that name and text, without the folder's path.
fn message(name: &str, text: impl AsRef<[u8]>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    let message = load_task(&path).unwrap_err().to_string();
    assert!(!message.contains('\n'), "one line: {message}");
    message.replace(&format!("{}/", folder.path().display()), "")
}

fn endings() -> Vec<&'static str> {
    let parquet = cfg!(feature = "parquet").then_some("parquet");
    ["json", "csv"].into_iter().chain(parquet).collect()
}

#[test]
fn all_formats_give_the_same_records() {
    for name in ["alpaca", "chat", "quiz", "pets"] {
        let expected = load_task(&fixture(&format!("{name}.jsonl"))).unwrap();
        assert_eq!(all_records(&expected), 24);
        for ending in endings() {
            let found = load_task(&fixture(&format!("{name}.{ending}"))).unwrap();
            assert_eq!(found, expected, "{name}.{ending}");
        }
    }
}

#[test]
fn columns_decide_what_records_are() {
    let quiz = load_task(&fixture("quiz.csv")).unwrap();
    assert_eq!(quiz.meta.kind, TaskKind::MultipleChoice);
    assert_eq!(quiz.meta.metric.as_ref().unwrap().to_string(), "accuracy");
    let record = &quiz.split(Split::Train)[0];
    assert_eq!((&record.label, &record.output[..]), (&Label::Index(0), "0"));
    let chat = load_task(&fixture("chat.csv")).unwrap();
    assert_eq!(
        (&chat.meta.name[..], chat.meta.kind),
        ("chat", TaskKind::Generation)
    );
    assert_eq!(chat.train[1].messages.len(), 5);
    assert_eq!(chat.train[1].messages[3].content, "And one more?\n");
    let pets = load_task(&fixture("pets.csv")).unwrap();
    assert_eq!(pets.meta.labels, ["cat", "dog"]);
    assert_eq!(pets.meta.kind, TaskKind::Classification);
}

#[test]
fn broken_csv_is_located() {
    let found = message("a.csv", "prompt,completion\na,b\n\"c\nd\",e,f\n");
    assert_eq!(
        found,
        "a.csv:3: broken CSV: found 3 fields, expected 2 as in the header"
    );
    let found = message("a.csv", b"prompt,completion\na,\xff\n");
    assert_eq!(found, "a.csv:2: broken CSV: field 2 is no UTF-8 text");
    let found = message("a.csv", "prompt,prompt\na,b\n");
    assert_eq!(found, "a.csv:1: column \"prompt\" stands twice");
    assert_eq!(message("a.csv", ""), "a.csv: holds no records");
    assert_eq!(message("a.csv", "text\n"), "a.csv: holds no records");
    let found = message("a.csv", "messages\n[{\n");
    assert!(
        found.starts_with("a.csv:2: broken JSON: column \"messages\": EOF"),
        "{found}"
    );
}

#[test]
fn broken_json_is_located() {
    assert_eq!(
        message("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xe9\"}"),
        "a.jsonl:2: no UTF-8 text: byte 11 belongs to no character"
    );
    let found = message("a.json", "[{\"text\": \"a\"}, {\"text\"");
    assert!(found.starts_with("a.json: broken JSON: EOF"), "{found}");
    let found = message("a.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}");
    assert!(
        found.starts_with("a.json: broken JSON: found an object, expected a list"),
        "{found}"
    );
    assert_eq!(
        message("a.json", "[{\"text\": \"a\"}, 3]"),
        "a.json: broken JSON: invalid type: integer `3`, expected an object at line 1 column 17"
    );
    assert_eq!(message("a.json", "[]"), "a.json: holds no records");
    assert_eq!(
        message("a.jsonl", "{\"text\": \"a\", \"text\": \"b\"}"),
        "a.jsonl:1: broken JSON: key \"text\" stands twice at column 20"
    );
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("a.csv", "text\na\nb\nc\n"),
        (
            "a.jsonl",
            "{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \"c\"}",
        ),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, format!("\u{feff}{text}")).unwrap();
        assert_eq!(all_records(&load_task(&path).unwrap()), 3);
    }
}

#[test]
fn files_that_are_too_wide_or_too_long_are_refused() {
    let header: Vec<String> = (0..1_000_000).map(|n| format!("c{n}")).collect();
    let found = message("a.csv", format!("{}\na\n", header.join(",")));
    assert_eq!(
        found,
        "a.csv:1: found 1000000 columns, expected at most 4096"
    );
    let turn = r#"{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}"#;
    let turns = vec![turn; 5000].join(", ");
    let found = message("a.jsonl", format!("{{\"messages\": [{turns}]}}"));
    let expected = "a.jsonl:1: column \"messages\" holds 10000 entries, expected at most 1000";
    assert_eq!(found, expected);
    let choices = vec!["\"a\""; 2000].join(", ");
    let found = message(
        "a.jsonl",
        format!("{{\"question\": \"a?\", \"choices\": [{choices}], \"answer\": 0}}"),
    );
    let expected = "a.jsonl:1: column \"choices\" holds 2000 entries, expected at most 1000";
    assert_eq!(found, expected);
}

/// One text a hundred million times, in less than a kilobyte.
#[cfg(all(feature = "parquet", target_os = "linux"))]
#[test]
fn a_parquet_file_that_is_packed_to_hurt_is_given_up() {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    let schema = parse_message_type("message m { required binary text (UTF8); }").unwrap();
    let properties = WriterProperties::builder()
        .set_data_page_row_count_limit(usize::MAX)
        .build();
    let mut file = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut file, schema.into(), properties.into()).unwrap();
    let texts = vec![ByteArray::from("a"); 1 << 20];
    for _ in 0..4 {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    assert!(file.len() < 10_000, "{}", file.len());
    let found = message("a.parquet", &file);
    let expected = "a.parquet: broken Parquet: the file takes more than 512 MiB of memory";
    assert_eq!(found, expected);
}

#[test]
fn other_endings_are_refused() {
    let found = message("a.txt", "text");
    assert_eq!(
        found,
        "a.txt: unknown format, expected a name that ends in .jsonl, .json, .csv or .parquet"
    );
}

#[cfg(feature = "parquet")]
#[test]
fn broken_parquet_is_an_error() {
    let whole = fs::read(fixture("chat.parquet")).unwrap();
    let end = message("a.parquet", &whole[..whole.len() - 9]);
    assert!(end.starts_with("a.parquet: broken Parquet: "), "{end}");
    let empty = message("a.parquet", "");
    assert!(empty.starts_with("a.parquet: broken Parquet: "), "{empty}");
    // The footer is there, but pages before it are not: bytes cut out of the middle.
    let cut = [&whole[..100], &whole[whole.len() / 2..]].concat();
    let pages = message("a.parquet", &cut);
    assert!(pages.starts_with("a.parquet"), "{pages}");
    assert!(pages.contains("broken Parquet: "), "{pages}");
}

#[cfg(not(feature = "parquet"))]
#[test]
fn without_the_feature_parquet_files_are_refused() {
    let found = message("a.parquet", "");
    assert!(found.contains("built without Parquet"), "{found}");
}

/// Reads ranges of the records of a split, in this order, and what `read_rows` has there.
fn assert_read_by_numbers(files: &[PathBuf], ranges: &[std::ops::Range<usize>]) {
    let is_wanted: super::Wanted = std::sync::Arc::new(|_: &str| true);
    let whole = files
        .iter()
        .flat_map(|file| super::read_rows(file, is_wanted.clone()).unwrap().1);
    let whole: Vec<super::Row> = whole.collect();
    let index = std::sync::Arc::new(super::Index::of(files).unwrap());
    assert_eq!(index.records(), whole.len());
    let mut reader = super::Reader::new(index, is_wanted);
    for range in ranges {
        let found = reader.read(range.clone()).unwrap();
        assert_eq!(found.len(), range.len());
        for (found, expected) in found.iter().zip(&whole[range.clone()]) {
            assert_eq!(found.place, expected.place);
            assert_eq!(found.columns, expected.columns);
        }
    }
}

#[test]
fn records_are_read_by_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let lines = |count: usize, end: &str| -> String {
        let line = |n| {
            format!(
                "{{\"input\": \"{}\", \"n\": {n}}}{end}",
                "\u{e9}".repeat(n % 50)
            )
        };
        (0..count).map(line).collect()
    };
    // With a mark in front, another end of lines, blank lines at the end, and no end of the last line.
    let last = lines(7, "\n");
    let files = [
        file("train-0.jsonl", format!("\u{feff}{}", lines(2500, "\r\n"))),
        file("train-1.jsonl", lines(1030, "\n") + " \n\n"),
        file("train-2.jsonl", last.trim_end().into()),
    ];
    let all = 3537;
    let ranges = [
        0..5,
        5..9,
        20..40,
        2490..2520,
        1024..1025,
        1023..1026,
        3529..all,
        0..1,
        0..all,
        2048..2048,
        all - 1..all,
    ];
    assert_read_by_numbers(&files, &ranges);
    if cfg!(feature = "parquet") {
        // Several row groups, and files that follow each other.
        let files = [fixture("chat.parquet"), fixture("alpaca.parquet")];
        assert_read_by_numbers(&files, &[0..3, 3..4, 9..30, 8..9, 0..48, 47..48, 20..21]);
    }
}

#[test]
fn what_is_wrong_with_a_streamed_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl");
    let index = |text: &str| {
        fs::write(&path, text).unwrap();
        super::Index::of(std::slice::from_ref(&path)).map(std::sync::Arc::new)
    };
    let error = |text: &str| index(text).unwrap_err().to_string();
    assert!(error("").ends_with("train.jsonl: holds no records"));
    assert!(error(" \n\n").ends_with("train.jsonl: holds no records"));
    let blank = error("{\"a\": 1}\n\n \n{\"a\": 2}\n");
    assert!(
        blank.ends_with("train.jsonl:2: blank line between records"),
        "{blank}"
    );
    let csv = super::Index::of(&[fixture("pets.csv")])
        .unwrap_err()
        .to_string();
    assert!(
        csv.contains("pets.csv: data.streaming reads .jsonl and .parquet"),
        "{csv}"
    );
    let broken = "{\"a\": 1}\n{\"a\": }\n{\"a\": 3}\n";
    let mut reader = super::Reader::new(index(broken).unwrap(), std::sync::Arc::new(|_| true));
    assert_eq!(reader.read(0..1).unwrap().len(), 1);
    let error = reader.read(1..3).unwrap_err().to_string();
    assert!(error.contains("train.jsonl:2: broken JSON"), "{error}");
    assert_eq!(reader.read(2..3).unwrap().len(), 1, "records behind it");
    let long = fs::File::create(folder.path().join("long.jsonl")).unwrap();
    long.set_len((64 << 20) + 2).unwrap();
    let long = super::Index::of(&[folder.path().join("long.jsonl")]);
    let long = long.unwrap_err().to_string();
    assert!(
        long.contains("long.jsonl:1: the line is longer than 64 MiB"),
        "{long}"
    );
    fs::write(&path, "{\"a\": 1}\n").unwrap();
    let error = reader.read(2..3).unwrap_err().to_string();
    assert!(error.contains("it has become shorter"), "{error}");
}
