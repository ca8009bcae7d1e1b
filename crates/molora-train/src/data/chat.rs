//! Chat templates: from messages to the text that a model was tuned on.
//!
//! The template is Jinja in `tokenizer_config.json` or `chat_template.jinja`, rendered by minijinja
//! with the settings of transformers, within bounds: see [`super::jinja`].

use std::path::{Path, PathBuf};

use minijinja::value::{Serde, Value as TemplateValue};
use minijinja::{UndefinedBehavior, context};
use serde::Serialize;
use serde_json::Value;

use super::SpecialTokens;
use super::jinja::{Template, TemplateProblem};

/// A message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Whether an assistant's words are given, and not to be learned.
    #[serde(skip)]
    pub is_given: bool,
}

impl Message {
    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: "user".into(),
            content: content.into(),
            is_given: false,
        }
    }

    /// A message of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self {
            role: "assistant".into(),
            content: content.into(),
            is_given: false,
        }
    }

    /// A message that says how a model is to behave.
    pub fn system(content: impl Into<String>) -> Self {
        Self {
            role: "system".into(),
            content: content.into(),
            is_given: false,
        }
    }
}

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

    /// The text of a chat; with `add_generation_prompt` the model is to say what comes next.
    ///
    /// # Errors
    /// [`ChatError::Template`] with line and column if the template fails on these messages,
    /// [`ChatError::Bound`] if it takes more steps, memory or time than any chat needs.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let values = context! {
            messages => TemplateValue::from(Serde(messages)),
            add_generation_prompt,
            tools => (),
            documents => (),
            ..TemplateValue::from(Serde(self.tokens.all()))
        };
        let bytes = messages.iter().map(|message| message.content.len()).sum();
        let rendered = self.template.render(values, messages.len(), bytes);
        rendered.map_err(|problem| {
            let of_chat = match problem {
                TemplateProblem::Bound(text) => TemplateProblem::Bound(text + " for one chat"),
                other => other,
            };
            failed(&self.path, of_chat)
        })
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
