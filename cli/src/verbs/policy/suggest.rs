//! `policy suggest`: the least AuthorizationPolicies that allow what the proxies have lately seen.

use super::{
    books,
    objects::{self, failed},
};
use crate::{
    output::Format,
    problem::{Exit, Problem},
    session::Session,
};
use clap::Args;
use karst_explain::flows::{Suggestion, suggest};
use karst_manifest::State;
use std::fmt::Write;

/// Options of `suggest`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst policy suggest -n shop > policies.yaml
  karst policy test policies.yaml                       what they would refuse: nothing that was seen
  karst policy suggest -n shop --dry-run | kubectl apply -f -
  karst policy suggest -n shop --flows book.json --objects manifests/    without a cluster

Services with a waypoint get a policy by callers, methods and paths, workloads one by callers and ports. Nothing is applied.
All that was seen is replayed against the suggestion; ends with 1 if something of it would be refused, with 2 if nothing was
seen in the namespace.")]
pub struct Suggest {
    #[command(flatten)]
    books: books::From,
    #[command(flatten)]
    objects: objects::From,
    /// Mark the policies as dry runs (istio.io/dry-run): applied, they refuse nothing and tell what they would have refused
    #[arg(long)]
    dry_run: bool,
    /// Output format; as a table, YAML with what was replayed as comments
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Suggest {
    /// Prints the policies.
    ///
    /// # Errors
    /// If nothing was seen, or the replay is refused.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let books = self.books.read(session).await?;
        let objects = self.objects.read(session, "policy suggest").await?;
        let (namespace, state) = (objects.namespace, State { objects: objects.all, ..State::default() });
        let mut suggestion = suggest(&state, objects.enrolment, &namespace, &books.flows).map_err(failed)?;
        if self.dry_run {
            let annotations = serde_json::json!({ "istio.io/dry-run": "true" });
            suggestion.policies.iter_mut().for_each(|policy| policy["metadata"]["annotations"] = annotations.clone());
        }
        let text = match self.output {
            Format::Json => serde_json::to_string_pretty(&suggestion).map(|text| text + "\n").map_err(failed)?,
            Format::Table | Format::Yaml => yaml(&suggestion, &namespace, &books.limits())?,
        };
        session.text(&text)?;
        let replay = &suggestion.replay;
        if replay.flows == 0 {
            return Err(Problem::new(format!(
                "policy suggest: no call to namespace {namespace} was seen that is let in"
            ))
            .next("let the mesh have some traffic, or name another namespace with -n")
            .exit(Exit::Unknown));
        }
        match replay.refused.len() {
            0 => Ok(()),
            refused => Err(Problem::new(format!("policy suggest: {refused} flows that were seen would be refused"))
                .next("they are listed above: allow them in the policies")),
        }
    }
}

/// Documents of YAML, with what is to be known as comments.
fn yaml(suggestion: &Suggestion, namespace: &str, limits: &[String]) -> Result<String, Problem> {
    let replay = &suggestion.replay;
    let mut out = format!(
        "# The least policies that allow what was seen in namespace {namespace}.\n\
         # Replayed: {} flows ({} calls), {} refused.\n",
        replay.flows,
        replay.calls,
        replay.refused.len()
    );
    for flow in &replay.refused {
        let key = &flow.key;
        let (from, to) = (super::shown::caller(key), super::shown::called(key));
        let _ = writeln!(out, "# refused: {from} to {to} {}", super::shown::request(key));
    }
    suggestion.notes.iter().chain(limits).for_each(|note| out += &format!("# {note}\n"));
    for policy in &suggestion.policies {
        let document = serde_yaml_ng::to_string(policy).map_err(failed)?;
        let _ = write!(out, "---\n{document}");
    }
    Ok(out)
}
