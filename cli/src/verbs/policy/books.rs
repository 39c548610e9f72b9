//! The books of flows: of all proxies of the cluster, or of files.

use crate::{
    cluster::{Cluster, PodName},
    input,
    known::{ADMIN, GATEWAYS},
    problem::{Exit, Problem},
    session::Session,
};
use clap::Args;
use karst_flows::{Flow, Page, merge};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which books are read.
#[derive(Debug, Args)]
#[group(skip)]
pub struct From {
    /// Saved books of flows in place of the cluster's proxies, from `policy flows -o json` or a proxy's /flows; - is standard
    /// input
    #[arg(long = "flows", value_name = "FILE")]
    books: Vec<PathBuf>,
}

/// A proxy whose book was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Its pod, or the file.
    pub name: String,
    /// False: it keeps no book.
    pub enabled: bool,
    /// Since when it notes, in seconds since 1970.
    pub since: u64,
    /// Flows that had to make room since.
    pub evicted: u64,
}

/// A proxy whose book could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Its pod.
    pub name: String,
    /// Why.
    pub why: String,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// The proxies that were asked.
    #[serde(default)]
    pub proxies: Vec<Proxy>,
    /// Those that did not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<Unread>,
    /// The flows of all of them.
    pub flows: Vec<Flow>,
}

impl From {
    /// Whether the cluster is asked.
    pub fn is_cluster(&self) -> bool {
        self.books.is_empty()
    }

    /// Reads the books.
    ///
    /// # Errors
    /// If a file is no book, or no proxy of the cluster can be read.
    pub async fn read(&self, session: &Session<'_>) -> Result<Books, Problem> {
        let mut all = Books::default();
        if self.is_cluster() {
            of_cluster(session, &session.cluster().await?, &mut all).await?;
        }
        for file in &self.books {
            let name = file.display().to_string();
            all.take(parse(&input::read(file)?, &name)?);
        }
        all.flows = merge(all.flows);
        Ok(all)
    }
}

impl Books {
    fn take(&mut self, other: Self) {
        self.proxies.extend(other.proxies);
        self.unread.extend(other.unread);
        self.flows.extend(other.flows);
    }

    fn page(name: String, page: Page) -> Self {
        let Page { enabled, since, evicted, flows, .. } = page;
        Self { proxies: vec![Proxy { name, enabled, since, evicted }], unread: vec![], flows }
    }

    /// What the books cannot tell, in sentences.
    pub fn limits(&self) -> Vec<String> {
        let count = |fits: &dyn Fn(&Proxy) -> bool| self.proxies.iter().filter(|proxy| fits(proxy)).count();
        const NAMED: usize = 5;
        let mut all = vec![];
        if !self.unread.is_empty() {
            let names: Vec<&str> = self.unread.iter().take(NAMED).map(|proxy| proxy.name.as_str()).collect();
            let more = if self.unread.len() > NAMED { ", …" } else { "" };
            all.push(format!(
                "{} of {} proxies could not be read, and what they have seen is not known: {}{more}",
                self.unread.len(),
                self.proxies.len() + self.unread.len(),
                names.join(", ")
            ));
        }
        let off = count(&|proxy| !proxy.enabled);
        if off > 0 {
            all.push(format!("{off} of {} proxies keep no book (KARST_FLOWS=false)", self.proxies.len()));
        }
        let evicted: u64 = self.proxies.iter().map(|proxy| proxy.evicted).sum();
        if evicted > 0 {
            all.push(format!("{evicted} flows had to make room for others and are not known any more"));
        }
        all
    }

    /// When the youngest book begins, in seconds since 1970: before that, not all was seen.
    pub fn since(&self) -> u64 {
        self.proxies.iter().filter(|proxy| proxy.enabled).map(|proxy| proxy.since).max().unwrap_or_default()
    }
}

/// A saved book: of `policy flows`, or a proxy's page as it is.
fn parse(text: &str, name: &str) -> Result<Books, Problem> {
    let failed = |e: serde_json::Error| {
        Problem::new(format!("{name}: not a book of flows"))
            .because(e)
            .next("save one with `karst policy flows -o json`, or from a proxy's /flows")
            .exit(Exit::Data)
    };
    let books: Books = serde_json::from_str(text).map_err(failed)?;
    if !books.proxies.is_empty() {
        return Ok(books);
    }
    let page = serde_json::from_str(text).map_err(failed)?;
    Ok(Books::page(name.into(), page))
}

/// The books of all ztunnels, waypoints and gateways. One that cannot be read is left out, and told of.
async fn of_cluster(session: &Session<'_>, cluster: &Cluster, all: &mut Books) -> Result<(), Problem> {
    let mut pods: Vec<PodName> = cluster.ztunnels().await?.iter().map(PodName::from).collect();
    pods.extend(cluster.pods_of(None, GATEWAYS).await?.iter().map(PodName::from));
    let mut last = None;
    for pod in pods {
        match cluster.page::<Page>(&pod, ADMIN, "/flows").await {
            Ok(page) => all.take(Books::page(pod.to_string(), page)),
            Err(problem) => {
                session.note(format!("note: {problem}"));
                let why = problem.to_string().lines().next().unwrap_or_default().to_owned();
                all.unread.push(Unread { name: pod.to_string(), why });
                last = Some(problem);
            }
        }
    }
    match last {
        Some(problem) if all.proxies.is_empty() => Err(problem),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    const PAGE: &str = r#"{ "enabled": true, "since": 7, "capacity": 10, "evicted": 2, "flows": [{
        "reporter": "ztunnel", "destination": { "namespace": "shop", "workload": "web" }, "port": 80,
        "source": { "addresses": "10.0.0.0/24" }, "verdict": "allowed", "count": 3, "first": 1, "last": 2,
        "example": { "from": "10.0.0.1", "to": "10.0.0.2:80", "pod": "web-1" } }] }"#;

    #[test]
    fn a_page_and_a_saved_book_are_read() {
        let page = parse(PAGE, "page.json").unwrap();
        assert_eq!((page.proxies[0].name.as_str(), page.since(), page.flows[0].count), ("page.json", 7, 3));
        assert_eq!(page.limits(), ["2 flows had to make room for others and are not known any more"]);
        assert_eq!(parse(&serde_json::to_string(&page).unwrap(), "saved").unwrap(), page);
        let unread = vec![Unread { name: "ztunnel-2.istio-system".into(), why: "no answer".into() }];
        let partial = Books { unread, ..page };
        let saved = serde_json::to_string(&partial).unwrap();
        assert!(saved.contains(r#""unread":[{"name":"ztunnel-2.istio-system""#), "{saved}");
        assert_eq!(parse(&saved, "saved").unwrap(), partial, "a saved book still tells of whom it is silent");
        assert!(partial.limits()[0].starts_with("1 of 2 proxies could not be read"), "{:?}", partial.limits());
        let problem = parse("{}", "empty.json").unwrap_err();
        assert_eq!(problem.status(), Exit::Data);
        assert!(problem.to_string().starts_with("empty.json: not a book of flows: missing field `flows`"), "{problem}");
    }
}
