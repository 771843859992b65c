// SPDX-License-Identifier: GPL-2.0
//! `drbdadm`.

/// A word as a shell reads it back: everything that is not plainly harmless gets a backslash.
// spec: commands 1.8
pub fn shell_escape(word: &str) -> String {
    let harmless = |character: char| character.is_ascii_alphanumeric() || "%+-./:=@_".contains(character);
    word.chars().flat_map(|character| (!harmless(character)).then_some('\\').into_iter().chain([character])).collect()
}
