//! `--at`: what the controller told proxies at another time, as it keeps it (`/debug/history`). Not what the proxies had taken in.

use crate::{
    cluster::{Cluster, PodName},
    known::MONITORING,
    problem::{Exit, Problem},
    session::Session,
};
use karst_controller::{
    history::{AtError, Moment, Page, PageError, Summary, When},
    offline::Resource,
};
use serde::Serialize;

/// The controller's page.
const PAGE: &str = "/debug/history";

/// What proxies were told at a time.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Told {
    /// The time.
    pub(super) at: Moment,
    /// Since when it was so.
    since: Moment,
    /// Number of the version, by the controller's pod.
    version: u64,
    /// The controller's pod.
    pod: String,
    #[serde(skip)]
    pub(super) resources: Vec<Resource>,
}

/// Reads a time.
///
/// # Errors
/// If it is none.
pub(super) fn when(text: &str) -> Result<When, Problem> {
    let next = "write the time with Z or its offset from UTC, or how long ago it was";
    text.parse().map_err(|e: AtError| Problem::usage(format!("--at: {e}"), next).exit(Exit::Unknown))
}

/// Asks the controllers what they told proxies at a time.
///
/// # Errors
/// If none of them can be asked, or keeps it.
pub(super) async fn ask(session: &Session<'_>, cluster: &Cluster, when: When) -> Result<Told, Problem> {
    let (mut kept, mut failed) = (vec![], None);
    for pod in cluster.control_plane().await.map_err(|e| e.exit(Exit::Unknown))?.iter().map(PodName::from) {
        match cluster.page::<Summary>(&pod, MONITORING, PAGE).await {
            Ok(summary) => kept.push((pod, summary)),
            Err(problem) => {
                session.note(format!("note: {pod} is not asked what it keeps: {problem}"));
                failed = Some(problem.exit(Exit::Unknown));
            }
        }
    }
    let (pod, at) = match choose(&kept, when) {
        Some(Ok(found)) => found,
        Some(Err(error)) => return Err(not_kept(&error)),
        None => {
            let nobody = || Problem::new("explain --at: no controller says what it keeps").exit(Exit::Unknown);
            return Err(failed.unwrap_or_else(nobody));
        }
    };
    let path = format!("{PAGE}?at={at}");
    let page: Page = cluster.page(pod, MONITORING, &path).await.map_err(|e| e.exit(Exit::Unknown))?;
    told(&page)
}

/// The controller that keeps the configuration of a time, and that moment; of several the first. None: there is none that could.
fn choose<T>(kept: &[(T, Summary)], when: When) -> Option<Result<(&T, Moment), AtError>> {
    let found = kept.iter().find_map(|(pod, summary)| Some(Ok((pod, summary.find(when).ok()?))));
    found.or_else(|| {
        // Replicas are started at different times: the one that goes back the farthest says how far.
        let (pod, summary) = kept.iter().min_by_key(|(_, summary)| summary.oldest)?;
        Some(summary.find(when).map(|at| (pod, at)))
    })
}

fn not_kept(error: &AtError) -> Problem {
    let next = match error {
        AtError::NotKept { .. } => {
            "a controller keeps what it told since it was started, for a day, in at most 64 MiB; `karst x internal-debug \
             history` shows how far back"
        }
        AtError::Future { .. } | AtError::Unreadable(_) => "ask for a time that is over; without --at it is asked now",
    };
    Problem::new("explain --at").because(error).next(next).exit(Exit::Unknown)
}

fn told(page: &Page) -> Result<Told, Problem> {
    let unusable = |e: PageError| {
        let what = Problem::new(format!("{PAGE} of controller {}: cannot be used", page.pod)).because(e);
        what.next("client and control plane may be of different versions: `karst version`").exit(Exit::Unknown)
    };
    let resources = page.resources().map_err(unusable)?;
    Ok(Told { at: page.at, since: page.since, version: page.version, pod: page.pod.clone(), resources })
}

impl Told {
    /// What the answer is by, in lines.
    pub(super) fn text(&self) -> String {
        let Self { at, since, version, pod, .. } = self;
        format!(
            "By what controller {pod} told proxies at {at} (its version {version}, in force since {since}).\n\
             What the proxies had taken in by then is not known. Objects are named as they are now; NetworkPolicies and\n\
             changes that would help are left out.\n\n"
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    fn moment(text: &str) -> Moment {
        text.parse().unwrap()
    }

    fn kept(oldest: &str) -> Summary {
        Summary {
            now: moment("2026-10-02T12:00:00Z"),
            oldest: moment(oldest),
            newest: Some(moment("2026-10-02T11:59:00Z")),
            versions: 2,
            bytes: 100,
            max_bytes: 1000,
        }
    }

    #[test]
    fn the_replica_that_goes_back_far_enough_is_asked() {
        let replicas = [("young", kept("2026-10-02T11:50:00Z")), ("old", kept("2026-10-02T09:00:00Z"))];
        let at = |text: &str| choose(&replicas, text.parse().unwrap()).unwrap().map(|(pod, at)| (*pod, at));
        assert_eq!(at("5m"), Ok(("young", moment("2026-10-02T11:55:00Z"))));
        assert_eq!(at("2h"), Ok(("old", moment("2026-10-02T10:00:00Z"))));
        assert_eq!(at("2026-10-02T11:49:59+02:00"), Ok(("old", moment("2026-10-02T09:49:59Z"))));
        assert!(choose::<&str>(&[], When::At(Moment::default())).is_none());
        let says = |text: &str, part: &str| {
            let problem = not_kept(&at(text).unwrap_err());
            assert!(problem.to_string().contains(part) && problem.status() == Exit::Unknown, "{problem}");
        };
        says("4h", "the oldest that is kept is of 2026-10-02T09:00:00.000000Z");
        says("4h", "[KARST-0803]");
        says("2026-10-02T12:00:01Z", "[KARST-0802]");
    }

    #[test]
    fn a_time_that_cannot_be_read_is_refused_before_anybody_is_asked() {
        let problem = when("yesterday").unwrap_err();
        assert!(problem.to_string().contains("[KARST-0801]") && problem.status() == Exit::Unknown, "{problem}");
        let parses = |more: &[&str]| {
            let line = ["karst", "explain", "pod/a.shop", "web.shop", "--at", "15m"].iter().chain(more).copied();
            let words: Vec<_> = line.map(Into::into).collect();
            crate::parse(&words, "karst").is_ok()
        };
        assert!(parses(&[]));
        // Of another time there are neither files nor proxies.
        for more in [&["-f", "x.yaml"][..], &["--ztunnel-dump", "x"], &["--waypoint-dump", "x"], &["--by-objects"]] {
            assert!(!parses(more), "{more:?}");
        }
    }

    #[test]
    fn the_answer_says_what_it_is_by() {
        let (at, since) = (moment("2026-10-02T10:00:00Z"), moment("2026-10-02T09:30:00Z"));
        let told = Told { at, since, version: 7, pod: "istiod-1".into(), resources: vec![] };
        let text = told.text();
        for part in ["controller istiod-1", "at 2026-10-02T10:00:00", "since 2026-10-02T09:30:00", "is not known"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = serde_json::to_value(&told).unwrap();
        assert_eq!((json["version"].as_u64(), json.get("resources")), (Some(7), None));
    }
}
