//! `policy`: what policies would make of what the proxies have lately seen, and the least that allow it.

mod books;
mod objects;
mod shown;
mod suggest;
mod test;
#[cfg(test)]
mod tests;

use crate::{
    output::{Format, Table, age},
    problem::Problem,
    session::Session,
};
use clap::{Args, Subcommand};
use std::time::Duration;

/// The verbs of `policy`.
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Print the flows that the proxies have lately seen: who has called what, and what policies said
    Flows(Flows),
    /// Write the least policies that allow what was seen
    Suggest(suggest::Suggest),
    /// Say what policies would newly refuse or allow of what was seen
    Test(test::Test),
}

/// Options of `flows`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst policy flows                        of all proxies
  karst policy flows -n shop                to what is in a namespace
  karst policy flows -o json > book.json    for `policy test --flows book.json`")]
pub struct Flows {
    #[command(flatten)]
    from: books::From,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Policy {
    /// Prints what is asked for.
    ///
    /// # Errors
    /// If books or objects cannot be read, or a policy would refuse what was seen.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        match self {
            Self::Flows(verb) => verb.run(session).await,
            Self::Suggest(verb) => verb.run(session).await,
            Self::Test(verb) => verb.run(session).await,
        }
    }
}

impl Flows {
    async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let mut books = self.from.read(session).await?;
        if let Some(namespace) = &session.global.namespace {
            books.flows.retain(|flow| flow.key.destination.namespace == *namespace);
        }
        let now = karst_rt::clock::since_epoch();
        let mut table = Table::new(&["COUNT", "LAST", "FROM", "TO", "REQUEST", "VERDICT", "POLICY"]);
        for flow in &books.flows {
            table.row([
                flow.count.to_string().into(),
                age(now.saturating_sub(Duration::from_secs(flow.last))).into(),
                shown::caller(&flow.key).into(),
                shown::called(&flow.key).into(),
                shown::request(&flow.key).into(),
                shown::verdict(flow.key.verdict),
                flow.key.policy.clone().into(),
            ]);
        }
        books.limits().iter().for_each(|limit| session.note(format!("note: {limit}")));
        session.show(self.output, &table, &books)
    }
}
