//! docs/cli.md, from the tree of verbs.

use clap::{Arg, Command};
use std::fmt::Write;

/// What the page begins with.
const HEAD: &str = "# karst, command by command

This page is generated from the program (`karst reference > docs/cli.md`). Called by the name `istioctl`, the program
takes the same verbs.

## Options of every verb
";

/// Exit statuses ([`crate::problem::Exit`]).
const STATUSES: &str = "
## Exit statuses
| status | meaning |
|---|---|
| 0 | done |
| 1 | something failed |
| 2 | it cannot be said: what becomes of a call (`explain`), or what a policy would do (`policy test`, `policy suggest`) |
| 64 | the command line is wrong |
| 65 | a file cannot be read, or is not a valid manifest |
| 79 | what was checked has findings |
| 141 | whoever reads the output has ended before its end, as `head` does; nothing is said of it |
";

/// The page.
pub fn page(mut tree: Command) -> String {
    tree.build();
    let mut out = String::from(HEAD);
    table(&mut out, tree.get_arguments().filter(|argument| argument.is_global_set()));
    out.push_str(STATUSES);
    for verb in tree.get_subcommands() {
        section(&mut out, &format!("karst {}", verb.get_name()), verb, 2);
    }
    out
}

fn section(out: &mut String, name: &str, verb: &Command, level: usize) {
    if verb.is_hide_set() || verb.get_name() == "help" {
        return;
    }
    let _ = writeln!(out, "\n{} {name}", "#".repeat(level.min(6)));
    let _ = writeln!(out, "{}.", text(verb.get_about().map(ToString::to_string)));
    let aliases: Vec<&str> = verb.get_visible_aliases().collect();
    if !aliases.is_empty() {
        let _ = writeln!(out, "\nAlso: `{}`.", aliases.join("`, `"));
    }
    let own = || verb.get_arguments().filter(|a| !a.is_global_set() && !a.is_hide_set() && a.get_id() != "help");
    if own().next().is_some() {
        let _ = writeln!(out);
        table(out, own());
    }
    if let Some(after) = verb.get_after_help() {
        let _ = writeln!(out, "\n```text\n{after}\n```");
    }
    for inner in verb.get_subcommands() {
        section(out, &format!("{name} {}", inner.get_name()), inner, level + 1);
    }
}

fn table<'a>(out: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let _ = writeln!(out, "| option | meaning | default |\n|---|---|---|");
    for argument in arguments {
        let value = || {
            let names = argument.get_value_names().unwrap_or_default();
            names.first().map(|name| name.to_string()).unwrap_or_default()
        };
        let takes = argument.get_action().takes_values();
        let name = match (argument.get_short(), argument.get_long()) {
            (Some(short), Some(long)) => format!("`-{short}`, `--{long}`"),
            (None, Some(long)) => format!("`--{long}`"),
            (Some(short), None) => format!("`-{short}`"),
            (None, None) => format!("`{}`", value()),
        };
        let defaults: Vec<String> =
            argument.get_default_values().iter().map(|one| one.to_string_lossy().into_owned()).collect();
        let default = if takes && !defaults.is_empty() { format!("`{}`", defaults.join(",")) } else { String::new() };
        let help = text(argument.get_help().map(ToString::to_string)).replace('|', "\\|");
        let _ = writeln!(out, "| {name} | {help} | {default} |");
    }
}

fn text(help: Option<String>) -> String {
    help.unwrap_or_default().lines().collect::<Vec<_>>().join(" ")
}
