//! `tap`: live requests and connections, one line each.

use crate::{
    live::{Failures, Live, Told, Wanted, line},
    problem::Problem,
    session::Session,
    verbs::install::duration,
};
use clap::Args;
use karst_core::limits;
use karst_flows::tap::Line;
use std::time::Duration;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// A line of text for each.
    #[default]
    Text,
    /// A line of JSON for each, in fields like those of Hubble's flows.
    Json,
}

/// Options of `tap`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst tap -n shop                                  what a namespace calls, and who calls it
  karst tap deploy/web.shop --verdict dropped,error  what of a workload's is refused or fails, and why
  karst tap svc/reviews -n shop --status 5xx         requests that a service fails
  karst tap -n shop --from web --method POST --path '/orders/*'
  karst tap -A --verdict dropped --limit 10 -o json  for programs; jq .flow has Hubble's fields

Connections are told by ztunnels, requests by waypoints and gateways, and by ztunnels where no waypoint is. It needs the
right to forward ports (`create pods/portforward`) in the namespace of the mesh for what ztunnels tell, in that of a
waypoint for its requests.
Bodies and headers are never shown, queries only with --query.")]
pub struct Tap {
    #[command(flatten)]
    wanted: Wanted,
    /// End after so many
    #[arg(
        long,
        value_name = "N",
        default_value_t = limits::TAP_RECORDS_UNASKED,
        value_parser = clap::value_parser!(u64).range(1..=limits::TAP_RECORDS)
    )]
    limit: u64,
    /// End after this time, of at most 30m
    #[arg(long = "for", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    time: Duration,
    /// Show the queries of paths, which may have secrets
    #[arg(long)]
    query: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

impl Tap {
    /// Prints what comes, until an end.
    ///
    /// # Errors
    /// If no proxy can be looked at.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let (limit, time, query) = (self.limit, self.time.clamp(Duration::from_secs(1), limits::TAP_TIME), self.query);
        let mut live = Live::begin(session, &self.wanted, |filter| {
            (filter.limit, filter.time, filter.query) = (limit, time, query);
        })
        .await?;
        live.notes.iter().for_each(|note| session.note(format!("note: {note}")));
        let (mut shown, mut failures) = (0, Failures::default());
        while let Some(told) = live.next().await {
            let (from, line) = match told {
                Told::Line { from, line } => (from, line),
                Told::Failed(problem) => {
                    failures.take(session, problem);
                    continue;
                }
            };
            failures.heard(session);
            self.show(session, &from, &line)?;
            shown += u64::from(matches!(*line, Line::Flow(_)));
            if shown >= limit {
                session.note(format!("note: ends after {limit} (--limit)"));
                return Ok(());
            }
        }
        failures.end(session)
    }

    fn show(&self, session: &mut Session<'_>, from: &str, told: &Line) -> Result<(), Problem> {
        match (self.output, told) {
            (Form::Json, Line::Flow(_) | Line::LostEvents { .. }) => {
                let text = serde_json::to_string(told).map_err(|e| Problem::new("cannot encode a line").because(e))?;
                session.line(text)
            }
            (Form::Text, Line::Flow(record)) => session.line(line(record, session.width(), session.has_colour())),
            (Form::Text, Line::LostEvents { num_events_lost }) => {
                session.note(format!(
                    "note: {from}: lost: {num_events_lost} more than could be sent; use a narrower filter"
                ));
                Ok(())
            }
            (_, Line::NodeStatus { .. } | Line::End { .. }) => Ok(()),
        }
    }
}
