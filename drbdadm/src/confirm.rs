// SPDX-License-Identifier: GPL-2.0
//! Questions before something is destroyed. Where nobody can answer, the answer is no.

use std::io::{BufRead, IsTerminal, Write};

/// Asks on standard error; only the word `yes` is a yes.
///
/// With `force` the answer is yes. Without a terminal on standard input and output it is no, at once: a script never
/// hangs here.
pub fn confirm(question: &str, force: bool) -> bool {
    eprint!("\n{question}\n[need to type 'yes' to confirm] ");
    let _ = std::io::stderr().flush();
    if force {
        eprintln!("yes, because of --force");
        return true;
    }
    if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        eprintln!("no, because there is no terminal");
        return false;
    }
    let mut answer = String::new();
    match std::io::stdin().lock().read_line(&mut answer) {
        Ok(_) => answer.trim() == "yes",
        Err(_) => false,
    }
}
