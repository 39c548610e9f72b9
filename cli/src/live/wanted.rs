//! What is to be seen, as it is typed.

use crate::{problem::Problem, session::Session};
use clap::Args;
use karst_flows::tap::{Filter, Kind, Status, Verdict, Who};
use std::path::PathBuf;

/// What became of a request or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Fate {
    /// It went to its destination
    Forwarded,
    /// A policy or a limit has refused it
    Dropped,
    /// It has failed for another reason
    Error,
}

impl From<Fate> for Verdict {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Forwarded => Self::Forwarded,
            Fate::Dropped => Self::Dropped,
            Fate::Error => Self::Error,
        }
    }
}

/// Filters: all that are given must fit.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Wanted {
    /// Caller or callee: NAME, pod/NAME, deploy/NAME or svc/NAME, each with .NAMESPACE where it is another than -n
    /// [default: whatever is in the namespace]
    #[arg(value_name = "WHO")]
    about: Option<Who>,
    /// Look at all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only from this caller, such as web, deploy/web.shop or *.shop
    #[arg(long, value_name = "WHO")]
    from: Option<Who>,
    /// Only to this callee, such as svc/reviews.shop
    #[arg(long, value_name = "WHO")]
    to: Option<Who>,
    /// Only requests of this method
    #[arg(long)]
    method: Option<String>,
    /// Only requests of this path (without query); * at an end stands for anything
    #[arg(long)]
    path: Option<String>,
    /// Only requests answered with this status, such as 503 or 5xx
    #[arg(long)]
    status: Option<Status>,
    /// Only what became this; several separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    verdict: Vec<Fate>,
    /// Only callers that have proven this SPIFFE id; * at an end stands for anything
    #[arg(long, value_name = "ID")]
    identity: Option<String>,
    /// Show a tunnel also as its source's ztunnel sees it
    #[arg(long)]
    both_sides: bool,
    /// Saved lines (`karst tap -o json`) in place of the cluster's proxies; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
}

impl Wanted {
    /// The namespace that is looked at; None: all. `of_context`: where nobody says.
    pub fn scope(&self, of_context: &str) -> Option<String> {
        let named = self.about.as_ref().and_then(|who| who.namespace.clone());
        named.or_else(|| (!self.all_namespaces).then(|| of_context.to_owned()))
    }

    /// The same of a file: all of it, unless -n says otherwise.
    pub(super) fn scope_of_file(&self, session: &Session<'_>) -> Option<String> {
        let given = session.global.namespace.as_deref();
        given.map_or_else(|| self.about.as_ref()?.namespace.clone(), |namespace| self.scope(namespace))
    }

    /// As the proxies take it.
    ///
    /// # Errors
    /// For a caller that is a service: services call nobody.
    pub fn filter(&self, scope: Option<String>) -> Result<Filter, Problem> {
        if self.from.as_ref().is_some_and(|who| who.kind == Kind::Service) {
            return Err(Problem::usage(
                "--from svc/…: a service calls nobody",
                "name the workload that calls, as in --from deploy/web.shop",
            ));
        }
        let about = self.about.clone().map(|who| Who { namespace: who.namespace.or_else(|| scope.clone()), ..who });
        Ok(Filter {
            namespace: scope.filter(|_| about.is_none()),
            about,
            from: self.from.clone(),
            to: self.to.clone(),
            method: self.method.clone(),
            path: self.path.clone(),
            status: self.status,
            verdicts: self.verdict.iter().map(|fate| (*fate).into()).collect(),
            identity: self.identity.clone(),
            all: self.both_sides,
            ..Filter::default()
        })
    }
}
