// SPDX-License-Identifier: GPL-2.0
//! Why a program ends early: a sentence for standard error and the exit code.

/// An error on its way to `main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code, 1 to 255.
    pub code: i32,
    /// What to print on standard error; empty when everything has been said already.
    pub message: String,
}

impl Failure {
    /// A failure that still has to be explained.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }

    /// A failure whose explanation has been printed.
    pub fn silent(code: i32) -> Self {
        Failure { code, message: String::new() }
    }

    /// Prints the sentence, if there is one, and gives the exit code.
    pub fn report(self) -> i32 {
        if !self.message.is_empty() {
            eprintln!("{}", self.message);
        }
        self.code
    }
}
