//! `cargo xtask …` on the pages: the commands exist.

use clap::Command;
use std::path::Path;

const BEGIN: &str = "cargo xtask ";

/// Commands that a page names and `tree` does not have, with their lines.
pub(super) fn unknown(tree: &Command, path: &Path, text: &str) -> Vec<String> {
    let mut faults = vec![];
    for (at, line) in text.lines().enumerate() {
        for rest in line.split(BEGIN).skip(1) {
            if let Some(word) = first_unknown(tree, rest) {
                faults.push(format!("{}:{}: {BEGIN}{rest}: there is no {word:?}", path.display(), at + 1));
            }
        }
    }
    faults
}

/// Goes down the tree of commands as long as words name some; what is no plain word ends the search.
fn first_unknown<'a>(tree: &Command, rest: &'a str) -> Option<&'a str> {
    let mut command = tree;
    for word in rest.split(' ') {
        let end = word
            .find(|letter: char| !letter.is_ascii_lowercase() && !letter.is_ascii_digit() && letter != '-')
            .unwrap_or(word.len());
        let (plain, after) = word.split_at(end);
        if plain.is_empty() || plain.starts_with('-') || !command.has_subcommands() {
            return None;
        }
        match command.find_subcommand(plain) {
            Some(inner) if after.is_empty() => command = inner,
            Some(_) => return None,
            None => return Some(plain),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_gone_is_found() {
        let bench = Command::new("bench").subcommand(Command::new("l4"));
        let tree = Command::new("xtask").subcommand(bench).subcommand(Command::new("test"));
        let text = "`cargo xtask bench l4`, cargo xtask test words\nand `cargo xtask bench l9`; cargo xtask --help, cargo xtask.";
        let faults = unknown(&tree, Path::new("p"), text);
        assert_eq!(faults, ["p:2: cargo xtask bench l9`; : there is no \"l9\""]);
    }
}
