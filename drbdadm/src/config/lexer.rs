// SPDX-License-Identifier: GPL-2.0
//! Splits a configuration text into words and punctuation.
//!
//! spec: drbd-conf 2

use super::source::{Diagnostic, Span};

/// Longest unquoted word, characters.
const MAX_WORD: usize = 128;
/// Longest quoted string, characters.
const MAX_QUOTED: usize = 255;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// One of `{ } ; [ ] : %`.
    Punctuation(char),
    /// An unquoted word or number.
    Word,
    /// A string in double quotes.
    Quoted,
    /// The end of the text.
    End,
}

/// A word or a punctuation mark with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Its text, without quotes and backslashes.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

impl Token {
    /// Is it this punctuation mark?
    pub fn is(&self, mark: char) -> bool {
        self.kind == TokenKind::Punctuation(mark)
    }

    /// Can it be a name or a value?
    pub fn is_text(&self) -> bool {
        matches!(self.kind, TokenKind::Word | TokenKind::Quoted)
    }

    /// For messages: what was found here.
    pub fn found(&self) -> String {
        match self.kind {
            TokenKind::End => "the end of the file".to_owned(),
            TokenKind::Quoted => format!("\"{}\"", self.text),
            _ => format!("`{}`", self.text),
        }
    }
}

/// Splits one text into tokens; the last one is [`TokenKind::End`].
///
/// # Errors
/// A character that has no meaning, a word that is too long, a string that does not end on its line.
pub fn tokens(file: usize, text: &str) -> Result<Vec<Token>, Diagnostic> {
    let mut lexer = Lexer { file, text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        let token = lexer.next()?;
        let end = token.kind == TokenKind::End;
        tokens.push(token);
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    file: usize,
    text: &'a str,
    at: usize,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn span(&self, start: usize) -> Span {
        Span { file: self.file, range: start..self.at }
    }

    fn next(&mut self) -> Result<Token, Diagnostic> {
        self.skip_blanks();
        let start = self.at;
        let Some(first) = self.rest().chars().next() else {
            return Ok(Token { kind: TokenKind::End, text: String::new(), span: self.span(start) });
        };
        match first {
            '{' | '}' | ';' | '[' | ']' | ':' | '%' => {
                self.at += 1;
                Ok(Token { kind: TokenKind::Punctuation(first), text: first.into(), span: self.span(start) })
            }
            '"' => self.quoted(),
            _ if is_word_character(first) => self.word(),
            _ => {
                self.at += first.len_utf8();
                let label = "no name, number, string or punctuation starts like this";
                Err(Diagnostic::error(&self.span(start), format!("unexpected character {first:?}"), label)
                    .help("text that is not plain ASCII has to stand in double quotes or behind a `#`"))
            }
        }
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n', '\u{feff}']);
            let mut skipped = rest.len() - trimmed.len();
            if trimmed.starts_with('#') {
                skipped += trimmed.find('\n').unwrap_or(trimmed.len());
            }
            if skipped == 0 {
                return;
            }
            self.at += skipped;
        }
    }

    fn word(&mut self) -> Result<Token, Diagnostic> {
        let start = self.at;
        let rest = self.rest();
        let len = rest.find(|character| !is_word_character(character)).unwrap_or(rest.len());
        let text = rest[..len].to_owned();
        self.at += len;
        if len > MAX_WORD {
            return Err(Diagnostic::error(
                &self.span(start),
                "word too long",
                format!("{len} characters, at most {MAX_WORD} are possible without quotes"),
            ));
        }
        Ok(Token { kind: TokenKind::Word, text, span: self.span(start) })
    }

    fn quoted(&mut self) -> Result<Token, Diagnostic> {
        let start = self.at;
        let mut text = String::new();
        let mut characters = self.rest().char_indices().skip(1);
        let mut end = None;
        while let Some((offset, character)) = characters.next() {
            match character {
                '"' => {
                    end = Some(offset + 1);
                    break;
                }
                '\n' => break,
                '\\' => match characters.next() {
                    Some((_, escaped)) if escaped != '\n' => text.push(escaped),
                    _ => break,
                },
                other => text.push(other),
            }
        }
        let Some(end) = end else {
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
            let label = "the closing `\"` is missing on this line";
            return Err(Diagnostic::error(&self.span(start), "string without an end", label));
        };
        self.at += end;
        let len = text.chars().count();
        if len > MAX_QUOTED {
            return Err(Diagnostic::error(
                &self.span(start),
                "string too long",
                format!("{len} characters, at most {MAX_QUOTED} are possible"),
            ));
        }
        Ok(Token { kind: TokenKind::Quoted, text, span: self.span(start) })
    }
}

fn is_word_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '/' | '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<(TokenKind, String)> {
        tokens(0, text).unwrap().into_iter().map(|token| (token.kind, token.text)).collect()
    }

    #[test]
    fn words_strings_and_marks() {
        use TokenKind::{End, Punctuation, Quoted, Word};
        let expected: Vec<(TokenKind, String)> = [
            (Word, "address"),
            (Word, "192.168.1.11"),
            (Punctuation(':'), ":"),
            (Word, "7788"),
            (Punctuation(';'), ";"),
            (Quoted, "a \"b\" \\ é"),
            (End, ""),
        ]
        .map(|(kind, text)| (kind, text.to_owned()))
        .into();
        assert_eq!(texts("address 192.168.1.11:7788; # 注释 {\n\t\"a \\\"b\\\" \\\\ é\"\r\n#end"), expected);
    }

    #[test]
    fn spans_count_bytes() {
        let tokens = tokens(3, "# é\n ab {").unwrap();
        assert_eq!(tokens[0].span, Span { file: 3, range: 6..8 });
        assert_eq!(tokens[1].span, Span { file: 3, range: 9..10 });
    }

    #[test]
    fn what_is_no_token() {
        for (text, title) in [
            ("resource é", "unexpected character 'é'"),
            ("a ； b", "unexpected character '；'"),
            ("\"abc\n\"", "string without an end"),
            ("\"abc\\", "string without an end"),
            (&"x".repeat(129), "word too long"),
            (&format!("\"{}\"", "x".repeat(256)), "string too long"),
        ] {
            assert_eq!(tokens(0, text).unwrap_err().title, title);
        }
        assert_eq!(texts(&"x".repeat(128)).len(), 2);
    }
}
