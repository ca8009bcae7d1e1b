//! Chat templates: from messages to the text that a model was tuned on.
//!
//! The template is Jinja in `tokenizer_config.json` or `chat_template.jinja`, rendered by minijinja
//! with the settings of transformers, within bounds: see [`super::jinja`].

use std::path::{Path, PathBuf};

use minijinja::value::{Serde, Value as TemplateValue};
use minijinja::{UndefinedBehavior, context};
use serde_json::{Value, json};

use super::SpecialTokens;
use super::jinja::{Template, TemplateProblem};
use super::message::{Message, Part};
use super::thought;

/// What can go wrong with a chat template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The tokenizer's configuration is not what is expected.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        problem: String,
    },
    /// The template is no valid Jinja, or fails on these messages.
    #[error("{}: chat template, line {line}, column {column}: {problem}", path.display())]
    Template {
        /// The file that it is from.
        path: PathBuf,
        /// Line within the template, from 1.
        line: usize,
        /// Column within the line, from 1; 1 where only the line is known.
        column: usize,
        /// What is wrong.
        problem: String,
    },
    /// The template, or what it does with these messages, is larger than any that is meant well.
    #[error("{}: chat template {problem}", path.display())]
    Bound {
        /// The file that it is from.
        path: PathBuf,
        /// What was found and what is allowed.
        problem: String,
    },
}

/// The chat template of a model folder.
#[derive(Debug)]
pub struct ChatTemplate {
    template: Template,
    path: PathBuf,
    tokens: SpecialTokens,
}

/// Words of an assistant that no template writes itself.
const MARK: &str = "Q7mark7Q";

impl ChatTemplate {
    /// The template of a model folder, if it has one; of several named ones, `default`.
    ///
    /// # Errors
    /// [`ChatError`] for files that cannot be read or a template that is no valid Jinja.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>, ChatError> {
        let config_path = folder.join("tokenizer_config.json");
        let config = match config_path.is_file() {
            true => read_config(&config_path)?,
            false => Value::Null,
        };
        let file = folder.join("chat_template.jinja");
        let (path, source) = match file.is_file() {
            true => {
                let text = read(&file)?;
                (file, Some(text))
            }
            false => (config_path.clone(), in_config(&config, &config_path)?),
        };
        let Some(source) = source else {
            return Ok(None);
        };
        Self::new(path, source, SpecialTokens::from_folder(folder)?).map(Some)
    }

    /// A template from its Jinja source; `path` is named in errors.
    ///
    /// # Errors
    /// [`ChatError::Template`] if it is no valid Jinja, [`ChatError::Bound`] if it is too long.
    pub(crate) fn new(
        path: PathBuf,
        source: String,
        tokens: SpecialTokens,
    ) -> Result<Self, ChatError> {
        let template = Template::new(source, UndefinedBehavior::Lenient);
        let template = template.map_err(|problem| failed(&path, problem))?;
        Ok(Self {
            template,
            path,
            tokens,
        })
    }

    /// The template itself, in Jinja.
    pub(crate) fn source(&self) -> &str {
        self.template.source()
    }

    /// The text of a chat without functions; with `add_generation_prompt` the model is to say what comes
    /// next.
    ///
    /// # Errors
    /// As [`render_with`](Self::render_with).
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        self.render_with(messages, None, add_generation_prompt)
    }

    /// The text of a chat in which an assistant may call `tools`, a JSON list of schemas.
    ///
    /// # Errors
    /// [`ChatError::Template`] with line and column if the template fails on these messages,
    /// [`ChatError::Bound`] if it takes more steps, memory or time than any chat needs.
    pub fn render_with(
        &self,
        messages: &[Message],
        tools: Option<&str>,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let size = tools.map_or(0, str::len);
        let tools: Option<TemplateValue> = match tools.map(serde_json::from_str).transpose() {
            Ok(tools) => tools,
            Err(error) => {
                let path = self.path.clone();
                let problem = format!("tools are no JSON: {error}");
                return Err(ChatError::Config { path, problem });
            }
        };
        let values = context! {
            messages => TemplateValue::from(Serde(messages)),
            add_generation_prompt,
            tools,
            documents => (),
            ..TemplateValue::from(Serde(self.tokens.all()))
        };
        let bytes = size + messages.iter().map(Message::size).sum::<usize>();
        let rendered = self.template.render(values, messages.len(), bytes);
        rendered.map_err(|problem| {
            let of_chat = match problem {
                TemplateProblem::Bound(text) => TemplateProblem::Bound(text + " for one chat"),
                other => other,
            };
            failed(&self.path, of_chat)
        })
    }

    /// What of a text that a model wrote, or is to write, is its answer: of a template that has a place for
    /// thoughts, what stands behind them.
    pub(crate) fn answer_of<'a>(&self, text: &'a str) -> &'a str {
        match thought::is_in(self.source()) {
            true => thought::without(text),
            false => text,
        }
    }

    /// Whether a part of messages beside their content is seen in the text of a chat, or where it is learned.
    pub(crate) fn shows(&self, part: Part) -> bool {
        let asks = || self.render(&[Message::user(MARK)], true);
        if part == Part::Reasoning && asks().is_ok_and(|asked| thought::is_open(&asked)) {
            return true;
        }
        // Templates differ in what calls they take: with null or an empty content, with an object or a text.
        let forms = [
            (true, json!({})),
            (false, json!({})),
            (true, json!("{}")),
            (false, json!("{}")),
        ];
        let mut forms = forms.into_iter();
        forms.any(|(is_silent, arguments)| self.shows_form(part, is_silent, &arguments))
    }

    fn shows_form(&self, part: Part, is_silent: bool, arguments: &Value) -> bool {
        let marked = |is_asked: bool, other: &str| match is_asked {
            true => MARK.to_owned(),
            false => other.to_owned(),
        };
        let tools = json!([{"type": "function", "function": {"name": MARK, "description": "d",
            "parameters": {"type": "object", "properties": {}}}}]);
        // Of a length that all templates take.
        let id = "call00001";
        let calls = json!([{"id": id, "type": "function",
            "function": {"name": marked(part == Part::Calls, "f"), "arguments": arguments}}]);
        let asking = Message {
            is_silent,
            tool_calls: Some(calls.to_string()),
            ..Message::assistant("")
        };
        let told = Message::tool(marked(part == Part::Results, "r"))
            .with("tool_call_id", id)
            .with("name", "f");
        let answer = Message::assistant("a");
        let (user, tools) = (Message::user("q"), tools.to_string());
        let (messages, tools) = match part {
            Part::Tools => (vec![user], Some(&tools[..])),
            Part::Calls | Part::Results => (vec![user, asking, told, answer], None),
            Part::Reasoning => (vec![user, answer.with("reasoning_content", MARK)], None),
            Part::Names => (vec![user.with("name", MARK), answer], None),
        };
        let text = self.render_with(&messages, tools, false);
        text.is_ok_and(|text| text.contains(MARK))
    }

    /// What stands right behind an assistant's message, where the template shows it.
    pub(crate) fn answer_end(&self) -> Option<String> {
        let messages = [Message::user(MARK), Message::assistant(MARK)];
        let text = self.render(&messages, false).ok()?;
        let end = text.rfind(MARK)? + MARK.len();
        Some(text[end..].trim_start().to_owned())
    }
}

fn failed(path: &Path, problem: TemplateProblem) -> ChatError {
    let path = path.into();
    match problem {
        TemplateProblem::Bound(problem) => ChatError::Bound { path, problem },
        TemplateProblem::At {
            line,
            column,
            problem,
        } => ChatError::Template {
            path,
            line,
            column,
            problem,
        },
    }
}

fn read(path: &Path) -> Result<String, ChatError> {
    std::fs::read_to_string(path).map_err(|source| ChatError::Io {
        path: path.into(),
        source,
    })
}

pub(super) fn read_config(path: &Path) -> Result<Value, ChatError> {
    serde_json::from_str(&read(path)?).map_err(|error| ChatError::Config {
        path: path.into(),
        problem: error.to_string(),
    })
}

/// The template in `tokenizer_config.json`: a text, or a list of named ones.
fn in_config(config: &Value, path: &Path) -> Result<Option<String>, ChatError> {
    let named = match &config["chat_template"] {
        Value::Null => return Ok(None),
        Value::String(text) => return Ok(Some(text.clone())),
        Value::Array(named) => named,
        _ => &Vec::new(),
    };
    let default = named.iter().find(|entry| entry["name"] == "default");
    match default.and_then(|entry| entry["template"].as_str()) {
        Some(text) => Ok(Some(text.into())),
        None => Err(ChatError::Config {
            path: path.into(),
            problem: "chat_template is neither a text nor a list with one named default".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for message in messages %}\n{{ '<|' + message['role'] + '|>' \
                          + message['content'].strip() + eos_token }}\n{% endfor %}\n\
                          {% if add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}";

    fn template(source: &str) -> Result<ChatTemplate, ChatError> {
        ChatTemplate::new(
            "t.json".into(),
            source.into(),
            SpecialTokens::of("<s>", "</s>"),
        )
    }

    #[test]
    fn messages_become_text_as_in_transformers() {
        let chat = template(CHATML).expect("valid");
        let messages = [Message::user(" Hi ")];
        let text = chat.render(&messages, true).expect("renders");
        assert_eq!(text, "<|user|>Hi</s>\n<|assistant|>\n");
        assert_eq!(
            chat.render(&messages, false).expect("renders"),
            "<|user|>Hi</s>\n"
        );
    }

    #[test]
    fn what_ends_an_answer_is_found() {
        let end = |source: &str| template(source).expect("valid").answer_end();
        assert_eq!(end(CHATML).as_deref(), Some("</s>\n"));
        let open = "{% for m in messages %}{{ m.content }} <|end|>{% endfor %}";
        assert_eq!(end(open).as_deref(), Some("<|end|>"));
        assert_eq!(end("{{ raise_exception('no') }}"), None);
    }

    #[test]
    fn tools_and_calls_are_shown_in_their_order() {
        let source = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}\
            {% for m in messages %}[{{ m.role }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}\
            {% endfor %}{{ m.content }}{{ m.tool_call_id }}]{% endfor %}";
        let chat = template(source).expect("valid");
        let calls = r#"[{"function": {"name": "add", "arguments": {"b": 1, "a": 2}}}]"#;
        let asking = Message {
            tool_calls: Some(calls.into()),
            ..Message::assistant("")
        };
        let result = Message::tool("3").with("tool_call_id", "x");
        let text = chat
            .render_with(&[asking, result], Some(r#"[{"type": "f", "a": 1}]"#), false)
            .expect("renders");
        assert_eq!(
            text,
            r#"{"type": "f", "a": 1}[assistant{"name": "add", "arguments": {"b": 1, "a": 2}}][tool3x]"#
        );
        let parts = [
            Part::Tools,
            Part::Calls,
            Part::Results,
            Part::Reasoning,
            Part::Names,
        ];
        assert_eq!(
            parts.map(|part| chat.shows(part)),
            [true, true, true, false, false]
        );
        // As DeepSeek's, which take arguments as a text.
        let source = "{% for m in messages %}{% for c in m.tool_calls or [] %}\
            {{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}";
        assert!(template(source).expect("valid").shows(Part::Calls));
        let plain = template(CHATML).expect("valid");
        assert_eq!(
            parts.map(|part| plain.shows(part)),
            [false, false, true, false, false]
        );
    }

    #[test]
    fn there_are_neither_tools_nor_documents() {
        let source =
            "{% if tools is not none or documents is not none %}x{% endif %}{{ pad_token }}";
        let chat = template(source).expect("valid");
        assert_eq!(chat.render(&[], false).expect("renders"), "");
    }

    #[test]
    fn a_broken_template_is_named_with_line_and_column() {
        let error = template("{{ bos_token }}\n  {% for %}")
            .expect_err("broken")
            .to_string();
        assert!(
            error.starts_with("t.json: chat template, line 2, column "),
            "{error}"
        );
        let chat = template("a\n{{ raise_exception('no system role') }}").expect("valid");
        let error = chat.render(&[], false).expect_err("fails").to_string();
        assert!(
            error.starts_with("t.json: chat template, line 2, column "),
            "{error}"
        );
        assert!(error.ends_with("no system role"), "{error}");
    }

    #[test]
    fn the_default_of_named_templates_is_taken() {
        let path = Path::new("t.json");
        let named = serde_json::json!({"chat_template": [
            {"name": "tools", "template": "a"}, {"name": "default", "template": "b"},
        ]});
        assert_eq!(
            in_config(&named, path).expect("valid").as_deref(),
            Some("b")
        );
        assert_eq!(
            in_config(&serde_json::json!({}), path).expect("valid"),
            None
        );
        let error = in_config(&serde_json::json!({"chat_template": 3}), path);
        assert!(error.is_err());
    }
}
