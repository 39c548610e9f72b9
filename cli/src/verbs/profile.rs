//! `profile list`, `dump` and `diff`.

use super::install::{Chosen, wrong};
use crate::{
    output::Format,
    problem::{Exit, Problem},
    session::Session,
};
use karst_install::spec::profile;

/// Verbs of `profile`.
#[derive(Debug, clap::Subcommand)]
pub enum Profile {
    /// Print the names of the profiles
    List(List),
    /// Print a profile, with the files and values over it
    Dump(Dump),
    /// Print how a profile differs from another
    Diff(Diff),
}

/// Options of `profile list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  karst profile list\n  karst profile list -o json")]
pub struct List {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Options of `profile dump`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  karst profile dump demo\n  karst profile dump --set profile=demo\n  karst profile dump demo -o json"
)]
pub struct Dump {
    /// The profile [default: default]
    name: Option<String>,
    #[command(flatten)]
    chosen: Chosen,
    /// Output format: table (YAML, with the profile's comments), json or yaml
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Options of `profile diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = "The exit status is 1 if they differ.\n\nExample:\n  karst profile diff default demo")]
pub struct Diff {
    /// A profile
    first: String,
    /// Another one
    second: String,
}

impl Profile {
    /// Does it.
    ///
    /// # Errors
    /// If there is no such profile, or the two of a comparison differ.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        match self {
            Self::List(verb) => verb.run(session),
            Self::Dump(verb) => verb.run(session),
            Self::Diff(verb) => verb.run(session),
        }
    }
}

impl List {
    fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let names: Vec<&str> = profile::names().collect();
        if let Some(text) = self.output.encode(&names)? {
            return session.text(&text);
        }
        session.line("Karst configuration profiles:")?;
        names.iter().try_for_each(|name| session.line(format!("    {name}")))
    }
}

impl Dump {
    fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let output = self.output;
        let yaml = self.yaml(&session.global.istio_namespace)?;
        if output == Format::Table {
            return session.text(&yaml);
        }
        let value: serde_json::Value = serde_yaml_ng::from_str(&yaml)
            .map_err(|e| Problem::new("the profile is not YAML").because(e).next("leave out -o"))?;
        session.text(&output.encode(&value)?.unwrap_or(yaml))
    }

    fn yaml(mut self, namespace: &str) -> Result<String, Problem> {
        let plain = self.chosen.files.is_empty() && self.chosen.sets.is_empty() && self.chosen.revision.is_none();
        if plain {
            // With its comments.
            let name = self.name.as_deref().unwrap_or("default");
            return Ok(profile::text(name).map_err(|error| wrong(&error))?.to_owned());
        }
        if let Some(name) = self.name {
            self.chosen.sets.push(format!("profile={name}"));
        }
        Ok(self.chosen.spec(namespace)?.to_yaml())
    }
}

impl Diff {
    fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let whole = |name: &str| {
            let chosen = Chosen { sets: vec![format!("profile={name}")], ..Chosen::default() };
            chosen.spec(&session.global.istio_namespace).map(|spec| spec.to_yaml())
        };
        let lines = difference(&whole(&self.first)?, &whole(&self.second)?);
        if lines.is_empty() {
            return session.line("The profiles are the same.");
        }
        session.text(&(lines.join("\n") + "\n"))?;
        Err(Problem::new(format!("{} and {} differ", self.first, self.second)).exit(Exit::Failed))
    }
}

/// The lines that only one of them has, in order, by the longest common subsequence.
fn difference(first: &str, second: &str) -> Vec<String> {
    let (left, right): (Vec<&str>, Vec<&str>) = (first.lines().collect(), second.lines().collect());
    let mut common = vec![vec![0_usize; right.len() + 1]; left.len() + 1];
    for at in (0..left.len()).rev() {
        for other in (0..right.len()).rev() {
            common[at][other] = if left[at] == right[other] {
                common[at + 1][other + 1] + 1
            } else {
                common[at + 1][other].max(common[at][other + 1])
            };
        }
    }
    let (mut at, mut other, mut lines) = (0, 0, Vec::new());
    while at < left.len() || other < right.len() {
        if at < left.len() && other < right.len() && left[at] == right[other] {
            (at, other) = (at + 1, other + 1);
        } else if other == right.len() || (at < left.len() && common[at + 1][other] >= common[at][other + 1]) {
            lines.push(format!("- {}", left[at]));
            at += 1;
        } else {
            lines.push(format!("+ {}", right[other]));
            other += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_differ_are_shown() {
        assert_eq!(difference("a\nb\nc", "a\nc\nd"), ["- b", "+ d"]);
        assert!(difference("a", "a").is_empty());
        assert_eq!(difference("", "x"), ["+ x"]);
    }
}
