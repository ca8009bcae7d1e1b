//! A template that is compiled once and run within bounds.

use std::collections::HashSet;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, UndefinedBehavior};

use super::bounded::{self, Failure};
use super::{rewritten, set_up};

/// A compiled template, with the settings of transformers: `trim_blocks` and `lstrip_blocks`.
#[derive(Debug, Clone)]
pub(in super::super) struct Template {
    environment: Arc<Environment<'static>>,
    source: String,
}

/// Two of one source and the same settings make the same texts.
impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        let behavior = |template: &Self| template.environment.undefined_behavior();
        self.source == other.source && behavior(self) == behavior(other)
    }
}

/// Why a template makes no text.
#[derive(Debug)]
pub(in super::super) enum TemplateProblem {
    /// It is no valid Jinja, or fails on these values.
    At {
        /// Line, from 1.
        line: usize,
        /// Column within the line, from 1; 1 where only the line is known.
        column: usize,
        /// What is wrong.
        problem: String,
    },
    /// It is larger, or does more, than any that is meant well; what was found and what is allowed.
    Bound(String),
}

/// Name of the only template of an environment.
const NAME: &str = "template";

impl Template {
    /// What it was compiled from.
    pub(in super::super) fn source(&self) -> &str {
        &self.source
    }

    /// Compiles a source. `undefined` says what becomes of a name that has no value.
    ///
    /// # Errors
    /// A source that is no valid Jinja, or too long.
    pub(in super::super) fn new(
        source: String,
        undefined: UndefinedBehavior,
    ) -> Result<Self, TemplateProblem> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.expect("the usual delimiters"));
        environment.set_debug(true);
        environment.set_fuel(Some(bounded::STEPS));
        environment.set_undefined_behavior(undefined);
        set_up(&mut environment);
        bounded::check_source(&source).map_err(TemplateProblem::Bound)?;
        let text = rewritten(&source);
        let compiled = bounded::run(move || {
            let added = environment.add_template_owned(NAME, text);
            added.map(|()| environment)
        });
        let compiled = compiled.map_err(TemplateProblem::Bound)?;
        let environment = Arc::new(compiled.map_err(|error| problem_at(&source, &error))?);
        Ok(Self {
            environment,
            source,
        })
    }

    /// The text for values; the more `parts` and `bytes` they hold, the longer it may be.
    ///
    /// # Errors
    /// If it fails on these values, or takes more steps, memory or time than any text needs.
    pub(in super::super) fn render(
        &self,
        values: Value,
        parts: usize,
        bytes: usize,
    ) -> Result<String, TemplateProblem> {
        let environment = Arc::clone(&self.environment);
        let rendered =
            bounded::run(move || bounded::render(&environment, NAME, values, (parts, bytes)));
        match rendered.map_err(TemplateProblem::Bound)? {
            Ok(text) => Ok(text),
            Err(Failure::Template(error)) => Err(problem_at(&self.source, &error)),
            Err(Failure::Bound(problem)) => Err(TemplateProblem::Bound(problem)),
        }
    }

    /// The names whose values it may read.
    pub(in super::super) fn names(&self) -> HashSet<String> {
        let template = self.environment.get_template(NAME);
        template.map_or_else(
            |_| HashSet::new(),
            |found| found.undeclared_variables(false),
        )
    }
}

fn problem_at(source: &str, error: &Error) -> TemplateProblem {
    let line = error.line().unwrap_or(1);
    let column = error.range().map_or(1, |range| {
        let start = range.start.min(source.len());
        let before = source.get(..start).unwrap_or_default();
        1 + start - before.rfind('\n').map_or(0, |newline| newline + 1)
    });
    let detail = error.detail().map(|detail| format!(": {detail}"));
    TemplateProblem::At {
        line,
        column,
        problem: format!("{}{}", error.kind(), detail.unwrap_or_default()),
    }
}
