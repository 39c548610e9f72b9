//! `policy test`: what policies would newly refuse or allow of what the proxies have lately seen.

use super::{
    books::{self, Books},
    objects::{self, failed},
    shown,
};
use crate::{
    analysis,
    output::{Cell, Format, Table, Tone, age},
    problem::{Exit, Problem},
    session::Session,
};
use clap::Args;
use karst_explain::{
    World,
    flows::{Change, Comparison, Judged, compare},
};
use karst_flows::Flow;
use karst_manifest::State;
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// Options of `test`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst policy test policy.yaml                         by what the cluster's proxies have seen
  karst policy test policies/ -o json                   for programs
  karst policy flows -o json > book.json
  karst policy test policy.yaml --flows book.json       by what was seen at another time
  karst policy test policy.yaml --flows book.json --objects manifests/    without a cluster

Nothing is applied. Each flow is judged under the policies that there are, and under these with the files' objects added
(or put in the place of those of the same name).
Ends with 0 if nothing that is let in now would be refused, with 79 if something would, with 2 if that cannot be said:
nothing was seen, a proxy could not be read, or a flow cannot be judged; with 65 if a file cannot be read.")]
pub struct Test {
    /// Policies: files or directories; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    books: books::From,
    #[command(flatten)]
    objects: objects::From,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What is printed for programs.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    comparison: &'a Comparison,
    proxies: &'a [books::Proxy],
    unread: &'a [books::Unread],
    limits: &'a [String],
}

impl Test {
    /// Prints what would change.
    ///
    /// # Errors
    /// If something that is let in now would be refused, or it cannot be said.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let paths = analysis::files(&self.files, true)?;
        let namespace = self.objects.namespace(session).await?;
        let input = analysis::read(&paths, &namespace)?;
        if let Some(problem) = input.problems.first() {
            let next = format!("`{} validate -f FILE` names all that is wrong", session.program);
            return Err(Problem::new("policy test").because(problem).next(next).exit(Exit::Data));
        }
        if input.objects.is_empty() {
            let what = Problem::new("policy test: the files have no object that the mesh reads");
            return Err(what.next("name files with AuthorizationPolicies").exit(Exit::Data));
        }
        let books = self.books.read(session).await?;
        let objects = self.objects.read(session, "policy test").await?;
        let wanted = World::new(input.over(objects.all.clone()), objects.enrolment).map_err(failed)?;
        let present = State { objects: objects.all, ..State::default() };
        let present = World::new(present, objects.enrolment).map_err(failed)?;
        let is_new = |problem: &&karst_manifest::Problem| !present.problems().any(|known| known == *problem);
        wanted.problems().filter(is_new).for_each(|problem| session.note(format!("note: {problem}")));
        let comparison = compare(&present, &wanted, &books.flows);
        let limits = limits(&books, &comparison);
        let Books { proxies, unread, .. } = &books;
        let answer = Answer { comparison: &comparison, proxies, unread, limits: &limits };
        match self.output.encode(&answer)? {
            Some(text) => session.text(&text)?,
            None => tell(session, &comparison, &books, &limits)?,
        }
        ended(&comparison, books.unread.len())
    }
}

/// How the process ends. What would be refused for sure comes before what is not known.
fn ended(comparison: &Comparison, unread: usize) -> Result<(), Problem> {
    if comparison.flows == 0 {
        return Err(Problem::new("policy test: nothing was seen, so nothing can be said")
            .next("let the mesh have some traffic; KARST_FLOWS=true makes proxies keep a book")
            .exit(Exit::Unknown));
    }
    match comparison.count(Change::Refused) {
        (0, _) => known(comparison, unread),
        (flows, calls) => {
            Err(Problem::new(format!("policy test: {flows} flows ({calls} calls) that are let in would be refused"))
                .next("allow them in the policy, or accept it; a dry run tries it on live traffic")
                .exit(Exit::Findings))
        }
    }
}

/// Is it known of all flows that they are not refused?
fn known(comparison: &Comparison, unread: usize) -> Result<(), Problem> {
    let (flows, calls) = comparison.count(Change::Unknown);
    let mut why = vec![];
    if unread > 0 {
        why.push(format!("{unread} proxies could not be read"));
    }
    if flows > 0 {
        why.push(format!("{flows} flows ({calls} calls) cannot be judged"));
    }
    if why.is_empty() {
        return Ok(());
    }
    let next = if unread > 0 {
        "`karst check` says why proxies do not answer; then run the same command again"
    } else {
        "the table says why of each; a dry run of the policy tries it on live traffic"
    };
    let what = "policy test: of what is known nothing that is let in would be refused, but not all is known";
    Err(Problem::new(what).because(why.join(", and ")).next(next).exit(Exit::Unknown))
}

/// What cannot be known.
fn limits(books: &Books, comparison: &Comparison) -> Vec<String> {
    let mut all = books.limits();
    if comparison.changed_since > 0 {
        all.push(format!(
            "{} flows end otherwise by the present policies than when they were seen: policies have changed since",
            comparison.changed_since
        ));
    }
    all.push(
        "calls that nobody has made since the books begin are not known, nor are headers and tokens; of paths that differ in \
         numbers or hashes alone, and of plaintext callers of one network, one example was judged"
            .into(),
    );
    all
}

fn tell(session: &mut Session<'_>, comparison: &Comparison, books: &Books, limits: &[String]) -> Result<(), Problem> {
    let now = karst_rt::clock::since_epoch();
    let ago = |seconds: u64| age(now.saturating_sub(Duration::from_secs(seconds)));
    if !comparison.changes.is_empty() {
        let mut table = Table::new(&["WOULD BE", "CALLS", "LAST", "FROM", "TO", "REQUEST", "WHY", "EXAMPLE"]);
        comparison.changes.iter().for_each(|judged| table.row(row(judged, ago(judged.flow.last))));
        session.table(&table)?;
        session.line("")?;
    }
    let of = |change| comparison.count(change);
    let part = |(flows, calls): (usize, u64), what: &str| format!("{what} {flows} ({calls} calls)");
    let mut parts = vec![part(of(Change::Refused), "newly refused"), part(of(Change::Allowed), "newly allowed")];
    if of(Change::Unknown).0 > 0 {
        parts.push(part(of(Change::Unknown), "cannot be said"));
    }
    let since = if comparison.flows == 0 { String::new() } else { format!(" over the last {}", ago(books.since())) };
    session.line(format!(
        "{} flows ({} calls) of {} proxies{since}: {}.",
        comparison.flows,
        comparison.calls,
        books.proxies.len(),
        parts.join(", ")
    ))?;
    limits.iter().try_for_each(|limit| session.line(format!("Note: {limit}.")))
}

fn row(judged: &Judged, last: String) -> [Cell; 8] {
    let change = match judged.change {
        Change::Refused => Cell::new("refused", Tone::Bad),
        Change::Allowed => Cell::new("allowed", Tone::Good),
        Change::Unknown => Cell::new("unknown", Tone::Warning),
    };
    let why = match (judged.change, judged.policy.as_str()) {
        (Change::Unknown, _) => judged.why.to_owned(),
        (Change::Refused, "") => "no ALLOW policy matches".into(),
        (Change::Refused, policy) => format!("policy {policy}"),
        (Change::Allowed, "") => "no ALLOW policy matched".into(),
        (Change::Allowed, policy) => format!("no longer by {policy}"),
    };
    let key = &judged.flow.key;
    [
        change,
        judged.flow.count.to_string().into(),
        last.into(),
        shown::caller(key).into(),
        shown::called(key).into(),
        shown::request(key).into(),
        why.into(),
        example(&judged.flow).into(),
    ]
}

/// The one that was judged.
fn example(flow: &Flow) -> String {
    let example = &flow.example;
    match (example.path.as_str(), example.pod.as_str()) {
        ("", "") => format!("{} to {}", example.from, example.to),
        ("", pod) => format!("{} to pod {pod}", example.from),
        (path, _) => format!("{} {path}", example.from),
    }
}
