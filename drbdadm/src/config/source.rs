// SPDX-License-Identifier: GPL-2.0
//! Configuration texts, places in them, and what is shown about such a place.

use annotate_snippets::{Level, Renderer, Snippet};
use std::io::IsTerminal;
use std::ops::Range;

/// A stretch of one of the texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Index into [`Sources`].
    pub file: usize,
    /// Bytes from the start of that text.
    pub range: Range<usize>,
}

impl Span {
    /// The stretch from the start of `self` to the end of `other`; both are in one text.
    pub fn to(&self, other: &Span) -> Span {
        Span { file: self.file, range: self.range.start..other.range.end.max(self.range.start) }
    }
}

/// One configuration text.
#[derive(Clone, Debug)]
struct Source {
    name: String,
    text: String,
}

/// Everything that was read.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    files: Vec<Source>,
}

impl Sources {
    /// Adds a text and gives its index.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> usize {
        self.files.push(Source { name: name.into(), text: text.into() });
        self.files.len() - 1
    }

    /// Name of a text, as messages show it.
    pub fn name(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |source| &source.name)
    }

    /// A text.
    pub fn text(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |source| &source.text)
    }

    /// Line of a place, from 1.
    pub fn line(&self, span: &Span) -> usize {
        let before = self.text(span.file).as_bytes().get(..span.range.start).unwrap_or_default();
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// `FILE:LINE` of a place.
    pub fn place(&self, span: &Span) -> String {
        format!("{}:{}", self.name(span.file), self.line(span))
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can.
    Warning,
}

/// Something to be said about a place in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, one line.
    pub title: String,
    /// The place.
    pub span: Span,
    /// What is said below the marked place.
    pub label: String,
    /// A second place that has to do with it, and what is said there.
    pub other: Option<Box<(Span, String)>>,
    /// What could be done.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(span: &Span, title: impl Into<String>, label: impl Into<String>) -> Self {
        Diagnostic {
            severity: Severity::Error,
            title: title.into(),
            span: span.clone(),
            label: label.into(),
            other: None,
            help: None,
        }
    }

    /// A warning at a place.
    pub fn warning(span: &Span, title: impl Into<String>, label: impl Into<String>) -> Self {
        Diagnostic { severity: Severity::Warning, ..Self::error(span, title, label) }
    }

    /// Adds a second place.
    pub fn and(mut self, span: &Span, label: impl Into<String>) -> Self {
        self.other = Some(Box::new((span.clone(), label.into())));
        self
    }

    /// Adds advice.
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// The text for a terminal or a log: what, file, line, column, the line itself with the place marked.
    pub fn render(&self, sources: &Sources, colours: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::Error,
            Severity::Warning => Level::Warning,
        };
        let snippet =
            |file: usize| Snippet::source(sources.text(file)).origin(sources.name(file)).line_start(1).fold(true);
        let primary = level.span(self.range_in(sources, &self.span)).label(&self.label);
        let mut first = snippet(self.span.file).annotation(primary);
        let mut second = None;
        if let Some((span, label)) = self.other.as_deref() {
            let annotation = Level::Info.span(self.range_in(sources, span)).label(label);
            if span.file == self.span.file {
                first = first.annotation(annotation);
            } else {
                second = Some(snippet(span.file).annotation(annotation));
            }
        }
        let mut message = level.title(&self.title).snippet(first).snippets(second);
        if let Some(help) = &self.help {
            message = message.footer(Level::Help.title(help));
        }
        let renderer = if colours { Renderer::styled() } else { Renderer::plain() };
        format!("{}\n", renderer.render(message))
    }

    /// Prints it on standard error, in colour if somebody looks.
    pub fn print(&self, sources: &Sources) {
        eprint!("{}", self.render(sources, std::io::stderr().is_terminal()));
    }

    /// The marked range, which must lie inside of the text.
    fn range_in(&self, sources: &Sources, span: &Span) -> Range<usize> {
        let len = sources.text(span.file).len();
        span.range.start.min(len)..span.range.end.min(len)
    }
}
