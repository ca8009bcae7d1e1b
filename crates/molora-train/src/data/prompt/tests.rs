use super::*;
use crate::data::Label;

/// The form that most chat models use, with a system message that stands by default as in SmolLM2.
const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != \
    'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + \
    message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if \
    add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn template(source: &str) -> PromptFormat {
    let template = ChatTemplate::new(
        "t".into(),
        source.into(),
        crate::data::SpecialTokens::of("<s>", "</s>"),
    );
    PromptFormat::Chat(Arc::new(template.unwrap()))
}

fn meta(kind: TaskKind) -> TaskMeta {
    TaskMeta {
        name: "t".into(),
        kind,
        instruction: String::new(),
        labels: vec!["bad".into(), "good".into()],
        ..TaskMeta::default()
    }
}

fn record(instruction: &str, input: &str, input_b: Option<&str>, output: &str) -> Record {
    Record {
        id: "t-train-0".into(),
        instruction: instruction.into(),
        input: input.into(),
        input_b: input_b.map(str::to_owned),
        choices: vec!["yes".into(), "no".into()],
        label: Label::Text,
        output: output.into(),
        ..Record::default()
    }
}

fn chat() -> Record {
    let messages = vec![
        Message::user("1 + 1?"),
        Message::assistant("2"),
        Message::user("Sure?"),
        Message::assistant("Yes"),
    ];
    Record {
        messages,
        ..record("", "Sure?", None, "Yes")
    }
}

/// Prompts and answers in turns, `|` before an answer.
fn shown(record: &Record, format: &PromptFormat) -> String {
    let pieces = pieces(record, &meta(TaskKind::Generation), format).unwrap();
    let mark = |piece: &Piece| match piece.is_answer {
        true => format!("|{}|", piece.text),
        false => piece.text.clone(),
    };
    pieces.iter().map(mark).collect()
}

#[test]
fn plain_prompts_have_no_empty_lines_of_missing_parts() {
    let check = |record: Record, expected: &str| {
        assert_eq!(shown(&record, &PromptFormat::Plain), expected);
    };
    check(record("Do", "a", Some("b"), "c"), "Do\n\na\nb\nAnswer:| c|");
    check(record("Do", "", None, "c"), "Do\nAnswer:| c|");
    check(record("", "a", Some(""), "c"), "a\nAnswer:| c|");
    check(record("", "", None, "c"), "Answer:| c|");
    let verbatim = |input: &str| Record {
        is_verbatim: true,
        ..record("", input, None, " is\n")
    };
    check(verbatim("It"), "It| is\n|");
    check(verbatim(""), "| is\n|");
    check(
        chat(),
        "User: 1 + 1?\n\nAssistant:| 2|\n\nUser: Sure?\n\nAssistant:| Yes|",
    );
}

#[test]
fn a_record_without_instruction_has_its_task_s() {
    let mut meta = meta(TaskKind::Generation);
    meta.instruction = "Add".into();
    let record = record("", "1 + 1", None, "2");
    let found = pieces(&record, &meta, &PromptFormat::Plain).unwrap();
    assert_eq!(found[0], Piece::given("Add\n\n1 + 1\nAnswer:"));
}

#[test]
fn chats_are_rendered_with_every_answer_apart() {
    let chatml = template(CHATML);
    let user = |text: &str| format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
    let system = "<|im_start|>system\nBe kind<|im_end|>\n";
    let expected = format!(
        "{system}{}|2<|im_end|>\n|{}|Yes<|im_end|>\n|",
        user("1 + 1?"),
        user("Sure?")
    );
    assert_eq!(shown(&chat(), &chatml), expected);
    let expected = format!("{system}{}|c<|im_end|>\n|", user("Do\n\na\nb"));
    let found = shown(&record("Do", "a", Some("b"), "c"), &chatml);
    assert_eq!(found, expected);
    let mut told = chat();
    told.messages.insert(0, Message::system("Be brief"));
    let found = shown(&told, &chatml);
    assert!(found.starts_with("<|im_start|>system\nBe brief<|im_end|>\n"));
}

#[test]
fn the_pieces_are_the_whole_rendering() {
    let format = template(CHATML);
    let PromptFormat::Chat(template) = &format else {
        panic!("a chat template");
    };
    let found = pieces(&chat(), &meta(TaskKind::Generation), &format).unwrap();
    let text: String = found.into_iter().map(|piece| piece.text).collect();
    assert_eq!(text, template.render(&chat().messages, false).unwrap());
}

#[test]
fn templates_that_change_what_came_before_are_refused() {
    // Only the last message is shown.
    let last = template("{{ messages[-1]['content'] }}{% if add_generation_prompt %}:{% endif %}");
    let error = pieces(&chat(), &meta(TaskKind::Generation), &last).unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("record t-train-0: the chat template renders message 2 differently"),
        "{error}"
    );
    let failing = template("{% if messages|length > 1 %}\n{{ raise_exception('no') }}{% endif %}");
    let error = pieces(&chat(), &meta(TaskKind::Generation), &failing).unwrap_err();
    let error = error.to_string();
    assert!(
        error.starts_with("record t-train-0: t: chat template, line 2, column "),
        "{error}"
    );
}

#[test]
fn candidates_take_the_place_of_the_last_answer() {
    let record = record("Is it?", "x", None, "yes");
    assert_eq!(
        choices(&record, &meta(TaskKind::MultipleChoice)),
        ["yes", "no"]
    );
    assert_eq!(
        choices(&record, &meta(TaskKind::Classification)),
        ["bad", "good"]
    );
    assert!(choices(&record, &meta(TaskKind::Generation)).is_empty());
    let meta = meta(TaskKind::MultipleChoice);
    for (format, expected) in [
        (PromptFormat::Plain, " no"),
        (template(CHATML), "no<|im_end|>\n"),
    ] {
        let found = pieces_with_answer(&record, &meta, &format, "no").unwrap();
        assert_eq!(found.last(), Some(&Piece::answer(expected)));
        let given = prompt(&record, &meta, &format).unwrap();
        assert_eq!(given, found[..found.len() - 1]);
    }
}

#[test]
fn a_message_that_is_not_to_be_learned_is_given() {
    let mut chat = chat();
    chat.messages[1].is_given = true;
    let found = shown(&chat, &PromptFormat::Plain);
    assert_eq!(
        found,
        "User: 1 + 1?\n\nAssistant: 2\n\nUser: Sure?\n\nAssistant:| Yes|"
    );
    let found = shown(&chat, &template(CHATML));
    assert!(
        !found.contains("|2") && found.ends_with("|Yes<|im_end|>\n|"),
        "{found}"
    );
}

#[test]
fn a_system_text_stands_in_front() {
    let told = Record {
        system: "Be brief".into(),
        ..record("Do", "a", None, "c")
    };
    let found = shown(&told, &PromptFormat::Plain);
    assert_eq!(found, "Be brief\n\nDo\n\na\nAnswer:| c|");
    let found = shown(&told, &template(CHATML));
    assert!(found.starts_with("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nDo"));
}

/// As Qwen3 and DeepSeek-R1 have it: what an assistant thought is left out as soon as a user follows, and
/// the last answer has a place for thoughts even where there are none.
const THINKING: &str = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}\
    {% if loop.last %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}\
    {{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% endif %}";

fn thoughts() -> Record {
    let mut chat = chat();
    for (place, thought) in [(1, "add"), (3, "again")] {
        let more = &mut chat.messages[place].more;
        more.insert("reasoning_content".into(), thought.into());
    }
    chat
}

#[test]
fn each_turn_is_rendered_by_itself_where_later_ones_change_it() {
    let format = template(THINKING);
    let meta = meta(TaskKind::Generation);
    let found = turns(&thoughts(), &meta, &format).expect("two turns");
    let pairs: Vec<[&str; 2]> = found
        .iter()
        .map(|pieces| [&pieces[0].text[..], &pieces[1].text[..]])
        .collect();
    let expected = [
        ["<user>1 + 1?</s><assistant>", "<think>add</think>2</s>"],
        [
            "<user>1 + 1?</s><assistant>2</s><user>Sure?</s><assistant>",
            "<think>again</think>Yes</s>",
        ],
    ];
    assert_eq!(pairs, expected);
    assert!(
        found
            .iter()
            .all(|pieces| !pieces[0].is_answer && pieces[1].is_answer)
    );
    // What is evaluated is the last of them: what is asked there is what is learned.
    let last = pieces(&thoughts(), &meta, &format).expect("the last turn");
    assert_eq!(last, found[1]);
    assert_eq!(
        prompt(&thoughts(), &meta, &format).expect("its prompt"),
        found[1][..1]
    );
    // A turn that is not to be learned is none.
    let mut given = thoughts();
    given.messages[1].is_given = true;
    assert_eq!(turns(&given, &meta, &format).expect("one turn"), found[1..]);
}

#[test]
fn chats_that_later_turns_leave_alone_are_one_text() {
    let meta = meta(TaskKind::Generation);
    for format in [template(CHATML), PromptFormat::Plain] {
        for record in [chat(), record("Do", "a", None, "c")] {
            let whole = pieces(&record, &meta, &format).expect("it renders");
            assert_eq!(turns(&record, &meta, &format).expect("it renders"), [whole]);
        }
    }
    let broken =
        template("{{ messages[-1]['content'] }}{% if add_generation_prompt %}:{% endif %}");
    let error = turns(&chat(), &meta, &broken)
        .expect_err("no prompt of it")
        .to_string();
    assert!(error.contains("renders message 2 differently"), "{error}");
}

#[test]
fn functions_are_given_and_their_calls_are_learned() {
    let source = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}\
        <{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}</s>\
        {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let calls = r#"[{"name": "add", "arguments": {"b": 1, "a": 1}}]"#;
    let asking = Message {
        tool_calls: Some(calls.into()),
        ..Message::assistant("")
    };
    let mut chat = Record {
        messages: vec![
            Message::user("1 + 1?"),
            asking,
            Message::tool("2"),
            Message::assistant("Two"),
        ],
        tools: Some(r#"[{"name": "add", "a": "b"}]"#.into()),
        ..record("", "1 + 1?", None, "Two")
    };
    let format = template(source);
    let tools = r#"{"name": "add", "a": "b"}"#;
    let call = r#"{"name": "add", "arguments": {"b": 1, "a": 1}}"#;
    let expected =
        format!("{tools}<user>1 + 1?</s><assistant>|{call}</s>|<tool>2</s><assistant>|Two</s>|");
    assert_eq!(shown(&chat, &format), expected);
    // Null is null to a template.
    chat.messages[1].is_silent = true;
    assert!(shown(&chat, &format).contains(&format!("|None{call}</s>|")));
    chat.messages[1].is_silent = false;
    // The last answer may be a call.
    chat.messages.truncate(2);
    chat.output = String::new();
    let expected = format!("{tools}<user>1 + 1?</s><assistant>|{call}</s>|");
    assert_eq!(shown(&chat, &format), expected);
}

/// The parts of Qwen3's template about thoughts, as they stand there: an empty place for them in the last answer,
/// those behind the last question alone, and none asked for by `enable_thinking=false`.
const QWEN3: &str = r"
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == 'user' and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == 'user' or message.role == 'tool' %}
        {{- '<' + message.role + '>' + content + '<end>' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<assistant><think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<assistant>' + content }}
        {%- endif %}
        {{- '<end>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}";

/// The parts of the template of models that DeepSeek-R1 was distilled into: it asks for thoughts, and shows none.
const R1: &str = "{%- for message in messages %}{%- if message['role'] == 'user' %}\
    {{'<user>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' %}\
    {% set content = message['content'] %}{% if '</think>' in content %}\
    {% set content = content.split('</think>')[-1] %}{% endif %}\
    {{'<assistant>' + content + '<end>'}}{%- endif %}{% endfor -%}\
    {% if add_generation_prompt %}{{'<assistant><think>\n'}}{% endif %}";

/// Thoughts in the contents, as most data have them.
fn thoughts_inside() -> Record {
    let mut chat = thoughts();
    for message in &mut chat.messages {
        if let Some(thought) = message.more.remove("reasoning_content") {
            message.content = format!("<think>\n{thought}\n</think>\n\n{}", message.content);
        }
    }
    chat.output = chat.messages[3].content.clone();
    chat
}

#[test]
fn thoughts_are_learned_where_the_model_has_to_write_them() {
    let qwen3 = [
        "<user>1 + 1?<end><assistant>",
        "<user>1 + 1?<end><assistant>2<end><user>Sure?<end><assistant>",
    ];
    let r1 = [
        "<user>1 + 1?<assistant><think>\n",
        "<user>1 + 1?<assistant>2<end><user>Sure?<assistant><think>\n",
    ];
    let meta = meta(TaskKind::Generation);
    for (source, prompts, begin) in [(QWEN3, qwen3, "<think>\n"), (R1, r1, "")] {
        let format = template(source);
        let PromptFormat::Chat(chat_template) = &format else {
            panic!("a template");
        };
        for (record, thoughts) in [
            (chat(), ["", ""]),
            (thoughts(), ["add", "again"]),
            (thoughts_inside(), ["add", "again"]),
        ] {
            let found = turns(&record, &meta, &format).expect("two turns");
            assert_eq!(found.len(), 2);
            for (turn, pieces) in found.iter().enumerate() {
                let (thought, word) = (thoughts[turn], ["2", "Yes"][turn]);
                let answer = format!("{begin}{thought}\n</think>\n\n{word}<end>");
                assert_eq!(pieces[1..], [Piece::answer(answer)]);
                // What is given is what the template asks for an answer with, to the last byte.
                let asked = chat_template.render(&record.messages[..2 * turn + 1], true);
                assert_eq!(pieces[0], Piece::given(asked.expect("it renders")));
                let is_inside = record.output.contains("think");
                assert!(is_inside || pieces[0].text == prompts[turn], "{pieces:?}");
            }
            assert_eq!(pieces(&record, &meta, &format).expect("the last"), found[1]);
            assert_eq!(format.answer_of(&found[1][1].text), "Yes<end>");
        }
        assert!(format.shows(Part::Reasoning));
    }
}

#[test]
fn one_question_with_one_answer_is_asked_of_models_that_think() {
    let meta = meta(TaskKind::Classification);
    let record = record("Do", "a", None, "good");
    for (source, asked, answer) in [
        (
            QWEN3,
            "<user>Do\n\na<end><assistant>",
            "<think>\n\n</think>\n\ngood<end>",
        ),
        (
            R1,
            "<user>Do\n\na<assistant><think>\n",
            "\n</think>\n\ngood<end>",
        ),
        (
            // As finetunes that never think ask by default.
            &QWEN3.replace(
                "enable_thinking is defined and enable_thinking is false",
                "true",
            ),
            "<user>Do\n\na<end><assistant><think>\n\n</think>\n\n",
            "good<end>",
        ),
    ] {
        let found = pieces(&record, &meta, &template(source)).expect("it renders");
        assert_eq!(found, [Piece::given(asked), Piece::answer(answer)]);
    }
}
