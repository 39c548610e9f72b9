//! `karst`, the command line. Called by the name `istioctl` it is the same program: one tree of verbs serves both, with
//! Istio's names as aliases.
//!
//! - [`analysis`]: messages of analyze and validate. [`input`]: files that a user names.
//! - [`known`]: names and ports. [`options`]: the flags of every verb. [`session`]: what a verb is run with.
//! - [`cluster`]: the API server, and through it the pages of proxies. [`output`]: tables, JSON, YAML.
//! - [`live`]: live traffic.
//! - [`syncz`]: what the control plane says of its proxies.
//! - [`page`]: the page of `karst dashboard`. [`mod@reference`]: the page of all verbs.
//! - [`problem`]: errors, each with its next step. [`verbs`]: a file for each verb.

pub mod analysis;
pub mod cluster;
pub mod input;
pub mod known;
pub mod level;
pub mod live;
pub mod options;
pub mod output;
pub mod page;
pub mod problem;
pub mod reference;
pub mod session;
pub mod syncz;
pub mod verbs;

use clap::{CommandFactory, FromArgMatches, Parser, error::ErrorKind};
use problem::Exit;
use session::Session;
use std::{ffi::OsString, path::Path, process::ExitCode};

/// Install, inspect and explain the mesh
#[derive(Debug, Parser)]
#[command(
    name = "karst",
    max_term_width = 120,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Called by the name istioctl, this program takes the same verbs and prints the same tables."
)]
pub struct Cli {
    /// The flags of every verb.
    #[command(flatten)]
    pub global: options::Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: verbs::Verb,
}

/// The process.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let program = program(words.first());
    let cli = match parse(&words, program) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(Exit::Usage as u8),
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{program}: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut session = Session::new(&cli.global, program);
    match runtime.block_on(cli.verb.run(&mut session, &|| command(program))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            if problem.status() != Exit::Closed {
                session.note(format!("{program}: {problem}"));
            }
            problem.code()
        }
    }
}

/// The tree of verbs, under the name that the program was called by.
pub fn command(program: &'static str) -> clap::Command {
    Cli::command().name(program).bin_name(program)
}

/// Reads a command line; its first word is the program.
///
/// # Errors
/// If it is wrong, or asks for help.
pub fn parse(words: &[OsString], program: &'static str) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command(program).try_get_matches_from(words)?)
}

/// The name that the program was called by.
fn program(first: Option<&OsString>) -> &'static str {
    let stem = first.map(Path::new).and_then(Path::file_stem).unwrap_or_default();
    if stem == "istioctl" { "istioctl" } else { "karst" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_verbs_is_consistent() {
        command("karst").debug_assert();
    }

    #[test]
    fn the_program_is_known_by_its_name() {
        let name = |word: &str| program(Some(&word.into()));
        assert_eq!(
            [name("/usr/bin/istioctl"), name("istioctl.exe"), name("karst"), name("")],
            ["istioctl", "istioctl", "karst", "karst"]
        );
    }
}
