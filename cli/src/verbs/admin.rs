//! `admin log`: the log levels of the control plane, over ControlZ.

use crate::{
    cluster::PodName,
    output::{Format, Table},
    problem::Problem,
    session::Session,
};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

/// ControlZ's port.
const CONTROLZ: u16 = 9876;

/// The verbs of `admin`.
#[derive(Debug, Subcommand)]
pub enum Admin {
    /// Print or set the log levels of the control plane
    #[command(alias = "l")]
    Log(Log),
}

/// Options of `admin log`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst admin log
  karst admin log --level debug
  karst admin log --level ads:debug,default:warn
  karst admin log -r")]
pub struct Log {
    /// Pod of the control plane [default: all]
    pod: Option<String>,
    /// LEVEL of all scopes, or SCOPE:LEVEL, several separated by commas; levels: debug, info, warn, error, fatal, none
    #[arg(long, value_name = "LEVELS")]
    level: Option<String>,
    /// Back to info
    #[arg(short, long, conflicts_with = "level")]
    reset: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A scope, as ControlZ has it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Scope {
    name: String,
    description: String,
    output_level: String,
    stack_trace_level: String,
    log_callers: bool,
}

impl Admin {
    /// Prints or sets them.
    ///
    /// # Errors
    /// If there is no control plane, no such scope, or ControlZ is off.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let Self::Log(asked) = self;
        let wanted = match (&asked.level, asked.reset) {
            (Some(levels), _) => parse(levels)?,
            (None, true) => vec![(String::new(), "info".to_owned())],
            (None, false) => vec![],
        };
        let cluster = session.cluster().await?;
        let pods = cluster.control_plane().await?;
        let is_meant =
            |pod: &PodName| asked.pod.as_deref().is_none_or(|name| name.split('.').next() == Some(&pod.name));
        for pod in pods.iter().map(PodName::from).filter(is_meant) {
            let scopes: Vec<Scope> = cluster.page(&pod, CONTROLZ, "/scopej").await?;
            for scope in &scopes {
                // The last that names it counts, before one for all.
                let level = |name: &str| wanted.iter().rev().find(|(scope, _)| scope == name).map(|(_, level)| level);
                let Some(level) = level(&scope.name).or_else(|| level("")) else { continue };
                let body = serde_json::json!({
                    "name": scope.name, "output_level": level, "stack_trace_level": scope.stack_trace_level,
                });
                cluster.put(&pod, CONTROLZ, &format!("/scopej/{}", scope.name), &body.to_string()).await?;
            }
            if let Some((unknown, _)) =
                wanted.iter().find(|(name, _)| !name.is_empty() && scopes.iter().all(|scope| scope.name != *name))
            {
                let names: Vec<&str> = scopes.iter().map(|scope| scope.name.as_str()).collect();
                return Err(Problem::usage(
                    format!("--level: no scope is named {unknown:?}"),
                    format!("use one of: {}", names.join(", ")),
                ));
            }
            let scopes: Vec<Scope> =
                if wanted.is_empty() { scopes } else { cluster.page(&pod, CONTROLZ, "/scopej").await? };
            let mut table = Table::new(&["ACTIVE SCOPE", "DESCRIPTION", "LOG LEVEL"]);
            for scope in &scopes {
                table.row([
                    scope.name.clone().into(),
                    scope.description.clone().into(),
                    scope.output_level.clone().into(),
                ]);
            }
            session.show(asked.output, &table, &scopes)?;
        }
        Ok(())
    }
}

/// Scope (empty: all) and level of each part.
fn parse(levels: &str) -> Result<Vec<(String, String)>, Problem> {
    const LEVELS: [&str; 7] = ["trace", "debug", "info", "warn", "error", "fatal", "none"];
    let one = |part: &str| {
        let (scope, level) = part.rsplit_once(':').unwrap_or(("", part));
        match LEVELS.contains(&level)
            && scope.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter))
        {
            true => Ok((scope.to_owned(), level.to_owned())),
            false => Err(Problem::usage(
                format!("--level {part:?}: not a level"),
                "use debug, info, warn, error, fatal or none, or SCOPE:LEVEL, several separated by commas",
            )),
        }
    };
    levels.split(',').map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_may_name_scopes() {
        let pair = |scope: &str, level: &str| (scope.to_owned(), level.to_owned());
        assert_eq!(parse("warn,ads:debug").unwrap(), [pair("", "warn"), pair("ads", "debug")]);
        for wrong in ["", "loud", "a/b:debug", "ads:"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
