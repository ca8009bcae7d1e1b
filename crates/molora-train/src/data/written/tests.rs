use super::*;
use crate::data::TaskKind;
use serde_json::json;

const WORDS: [&str; 12] = [
    "<unk>", "<s>", "</s>", "answer", ":", "name", "it", "cat", "dog", "purr", "bark", "big",
];

/// Whole words behind `<s>`, texts of at most `max_length` tokens.
fn writing(max_length: usize, start: Option<usize>) -> Writing {
    let vocab: serde_json::Map<_, _> = (0..)
        .zip(WORDS)
        .map(|(id, w): (u32, _)| (w.into(), id.into()))
        .collect();
    let first = if start.is_some() {
        json!([])
    } else {
        json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}])
    };
    let mut single = first.as_array().unwrap().clone();
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    if start.is_some() {
        single.push(json!({"SpecialToken": {"id": "</s>", "type_id": 0}}));
    }
    let special =
        |id: u32| json!({"id": WORDS[id as usize], "ids": [id], "tokens": [WORDS[id as usize]]});
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "single": single,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": special(1), "</s>": special(2)}},
        "decoder": null, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}});
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    let config = WritingConfig {
        max_length,
        max_new_tokens: 2,
        ..WritingConfig::default()
    };
    let tokenizer = TextTokenizer::from_folder(dir.path()).unwrap();
    Writing::new(tokenizer, PromptFormat::Plain, &config, vec![2], start)
}

fn meta(kind: TaskKind) -> TaskMeta {
    TaskMeta {
        name: "pets".into(),
        kind,
        instruction: "name it".into(),
        labels: vec!["cat".into(), "big dog".into()],
        ..TaskMeta::default()
    }
}

fn record(input: &str, output: &str, label: Label) -> Record {
    Record {
        id: "pets-0".into(),
        instruction: "name it".into(),
        input: input.into(),
        input_b: None,
        choices: Vec::new(),
        label,
        output: output.into(),
        ..Record::default()
    }
}

#[test]
fn answers_and_the_end_are_learned_behind_the_prompt() {
    let record = record("purr", "cat", Label::Index(0));
    let example = writing(20, None)
        .example(&record, &meta(TaskKind::Classification), 3)
        .unwrap();
    // <s> name it purr answer : cat </s>
    assert_eq!(example.ids, [1, 5, 6, 9, 3, 4, 7, 2]);
    let is_answer = [false, false, false, false, false, false, true, true];
    assert_eq!(example.target, Target::Answer(is_answer.to_vec()));
    assert_eq!((example.task, example.type_ids.len()), (3, 8));
}

#[test]
fn a_long_text_loses_the_beginning_of_its_prompt() {
    let record = record("purr purr purr", "cat", Label::Text);
    let writing = writing(6, None);
    let example = writing
        .example(&record, &meta(TaskKind::Generation), 0)
        .unwrap();
    assert_eq!(example.ids, [1, 9, 3, 4, 7, 2]);
    let question = writing
        .question(&record, &meta(TaskKind::Generation))
        .unwrap();
    // Two new tokens fit behind it.
    assert_eq!(question.prompt, [1, 9, 3, 4][..].to_vec());
    assert!(question.is_asked && question.choices.is_empty());
    assert_eq!((question.right, &question.output[..]), (None, "cat"));
}

#[test]
fn an_answer_that_is_too_long_itself_loses_its_end() {
    let record = record("purr", &"dog ".repeat(9), Label::Text);
    let example = writing(6, None)
        .example(&record, &meta(TaskKind::Generation), 0)
        .unwrap();
    assert_eq!(example.ids.len(), 6);
    assert_eq!(example.ids[2..], [8; 4]);
}

#[test]
fn candidates_follow_the_prompt() {
    let record = record("bark", "big dog", Label::Index(1));
    let question = writing(20, None)
        .question(&record, &meta(TaskKind::Classification))
        .unwrap();
    assert_eq!(question.prompt, [1, 5, 6, 10, 3, 4]);
    let ids: Vec<&[u32]> = question
        .choices
        .iter()
        .map(|choice| &choice.ids[..])
        .collect();
    assert_eq!(ids, [&[7][..], &[11, 8]]);
    assert_eq!(question.choices[1].characters, 7);
    assert_eq!(question.right, Some(1));
    let text = writing(3, None).question(&record, &meta(TaskKind::Classification));
    let text = text.map(|question| question.choices).unwrap();
    assert_eq!(text[1].ids, [11, 8]);
    let error = writing(2, None)
        .question(&record, &meta(TaskKind::Classification))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("candidate \"big dog\" has 2 tokens"),
        "{error}"
    );
}

#[test]
fn an_encoder_decoder_reads_the_prompt_and_writes_the_answer() {
    let record = record("purr", "cat", Label::Text);
    let example = writing(20, Some(0))
        .example(&record, &meta(TaskKind::Generation), 0)
        .unwrap();
    assert_eq!(example.ids, [5, 6, 9, 3, 4, 2]);
    assert_eq!(example.target, Target::Text(vec![0, 7, 2]));
}

#[test]
fn a_number_is_told_from_the_prompt_alone() {
    let record = record("purr", "", Label::Number(2.5));
    let example = writing(20, None)
        .example(&record, &meta(TaskKind::Regression), 0)
        .unwrap();
    assert_eq!(example.ids, [1, 5, 6, 9, 3, 4]);
    assert_eq!(example.target, Target::Number(2.5));
}

/// A tokenizer whose words take the space in front of them, and which ends texts by `</s>`.
fn spaced(prompt: &str, output: &str) -> (Writing, Record) {
    let vocab: serde_json::Map<_, _> = ["<s>", "</s>", "C", ":", " ", " P", "P", " PP", "<unk>"]
        .iter()
        .zip(0..)
        .map(|(word, id): (_, u32)| ((*word).into(), id.into()))
        .collect();
    let special = |word: &str, id: u32| json!({"id": word, "ids": [id], "tokens": [word]});
    let token = |word: &str| json!({"SpecialToken": {"id": word, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [token("<s>"), text, token("</s>")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": special("<s>", 0), "</s>": special("</s>", 1)}},
        "decoder": null, "model": {"type": "BPE", "vocab": vocab, "unk_token": "<unk>",
            "merges": [[" ", "P"], [" P", "P"]]}});
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = TextTokenizer::from_folder(dir.path()).unwrap();
    let config = WritingConfig::default();
    let writing = Writing::new(tokenizer, PromptFormat::Plain, &config, vec![1], None);
    let record = Record {
        instruction: String::new(),
        is_verbatim: true,
        ..record(prompt, output, Label::Text)
    };
    (writing, record)
}

#[test]
fn a_prompt_ends_where_the_answers_tokens_begin() {
    // The space is the answer's, wherever the record has it.
    for (prompt, output) in [("C: ", "P"), ("C:", " P")] {
        let (writing, record) = spaced(prompt, output);
        let meta = meta(TaskKind::Generation);
        let question = writing.question(&record, &meta).unwrap();
        // Nor does a prompt hold the end that the tokenizer puts behind texts.
        assert_eq!(question.prompt, [0, 2, 3], "{prompt}");
        let example = writing.example(&record, &meta, 0).unwrap();
        assert_eq!(example.ids, [0, 2, 3, 5, 1]);
        let is_answer = vec![false, false, false, true, true];
        assert_eq!(example.target, Target::Answer(is_answer));
    }
}

#[test]
fn candidates_are_scored_behind_what_all_of_them_share() {
    let (writing, mut record) = spaced("C: ", "P");
    record.choices = vec!["P".into(), "PP".into(), "C".into()];
    let meta = meta(TaskKind::MultipleChoice);
    let question = writing.question(&record, &meta).unwrap();
    assert_eq!(question.prompt, [0, 2, 3]);
    let ids: Vec<&[u32]> = question.choices.iter().map(|c| &c.ids[..]).collect();
    assert_eq!(ids, [&[5][..], &[7], &[4, 2]]);
}

#[test]
fn a_prompt_leaves_its_last_space_to_the_next_word() {
    let (writing, _) = spaced("", "");
    let found = |text: &str| writing.tokenizer.encode_prompt(text, true).unwrap();
    // No word of this tokenizer begins with ` a`, so that nothing is left out.
    assert_eq!(found("C: "), (vec![0, 2, 3, 4], 0));
    assert_eq!(found("C:"), (vec![0, 2, 3], 0));
    assert_eq!(writing.tokenizer.front(), [0]);
}
