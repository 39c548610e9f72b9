//! What the proxies tell, in one stream; or what a file has.

use super::{proxies, wanted::Wanted};
use crate::{
    cluster::{Cluster, PodName},
    input,
    known::ADMIN,
    problem::{Exit, Problem},
    session::Session,
};
use karst_flows::tap::{Filter, Line};
use std::time::Duration;
use tokio::{sync::mpsc, task::JoinSet};

/// Lines that may wait to be shown; then the proxies' do, and say what they lose.
const WAITING: usize = 256;

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A line of a proxy's.
    Line {
        /// Its pod, or the file.
        from: String,
        /// The line.
        line: Box<Line>,
    },
    /// A proxy cannot be looked at, or not any more.
    Failed(Problem),
}

/// A stream of what is seen. Dropped, nobody looks any more.
pub struct Live {
    told: mpsc::Receiver<Told>,
    _tasks: JoinSet<()>,
    /// Proxies that are looked at; 0: a file is.
    pub proxies: usize,
    /// What of it will not be seen, in sentences.
    pub notes: Vec<String>,
}

impl Live {
    /// Begins to look. `change`: limits, and what else belongs to the verb.
    ///
    /// # Errors
    /// If the filter makes no sense, there is no proxy, or this user may look at none.
    pub async fn begin(
        session: &Session<'_>,
        wanted: &Wanted,
        change: impl FnOnce(&mut Filter),
    ) -> Result<Self, Problem> {
        let Some(file) = &wanted.file else {
            let cluster = session.cluster().await?;
            let scope = wanted.scope(&cluster.namespace);
            let mut filter = wanted.filter(scope.clone())?;
            change(&mut filter);
            return Self::of_cluster(cluster, scope.as_deref(), &filter).await;
        };
        let mut filter = wanted.filter(wanted.scope_of_file(session))?;
        change(&mut filter);
        Ok(Self::of_file(&file.display().to_string(), &input::read(file)?, filter))
    }

    async fn of_cluster(cluster: Cluster, scope: Option<&str>, filter: &Filter) -> Result<Self, Problem> {
        let found = proxies::find(&cluster, scope).await?;
        let path = format!("/tap?{}", filter.to_query());
        let (sender, told) = mpsc::channel(WAITING);
        let mut tasks = JoinSet::new();
        let proxies = found.pods.len();
        for pod in found.pods {
            let (cluster, path, sender) = (cluster.clone(), path.clone(), sender.clone());
            tasks.spawn(async move { of_proxy(&cluster, &pod, &path, &sender).await });
        }
        Ok(Self { told, _tasks: tasks, proxies, notes: found.notes })
    }

    fn of_file(name: &str, text: &str, filter: Filter) -> Self {
        let (sender, told) = mpsc::channel(WAITING);
        let mut tasks = JoinSet::new();
        let all: Vec<Told> =
            text.lines().filter(|line| !line.trim().is_empty()).map(|line| parse(name, line)).collect();
        tasks.spawn(async move {
            for one in all {
                let fits = match &one {
                    Told::Line { line, .. } => match &**line {
                        Line::Flow(record) => filter.matches(&record.event()),
                        Line::LostEvents { .. } | Line::NodeStatus { .. } | Line::End { .. } => true,
                    },
                    Told::Failed(_) => true,
                };
                if fits && sender.send(one).await.is_err() {
                    return;
                }
            }
        });
        Self { told, _tasks: tasks, proxies: 0, notes: vec![] }
    }

    /// What comes next; None: all streams have ended.
    pub async fn next(&mut self) -> Option<Told> {
        self.told.recv().await
    }

    /// The same, if it comes within this time.
    ///
    /// # Errors
    /// If it does not.
    pub async fn next_within(&mut self, time: Duration) -> Result<Option<Told>, tokio::time::error::Elapsed> {
        tokio::time::timeout(time, self.told.recv()).await
    }
}

async fn of_proxy(cluster: &Cluster, pod: &PodName, path: &str, told: &mpsc::Sender<Told>) {
    let (sender, mut lines) = mpsc::channel(WAITING);
    let name = pod.to_string();
    let read = async {
        let done = cluster.follow(pod, ADMIN, path, &sender).await;
        drop(sender);
        done
    };
    let pass = async {
        while let Some(line) = lines.recv().await {
            if told.send(parse(&name, &line)).await.is_err() {
                return;
            }
        }
    };
    let (done, ()) = tokio::join!(read, pass);
    if let Err(problem) = done {
        // Whoever has gone does not want to know.
        let _ = told.send(Told::Failed(problem)).await;
    }
}

fn parse(from: &str, line: &str) -> Told {
    match serde_json::from_str(line) {
        Ok(line) => Told::Line { from: from.into(), line: Box::new(line) },
        Err(e) => Told::Failed(
            Problem::new(format!("{from}: not a line of a tap"))
                .because(e)
                .next("client and proxy may be of different versions: `karst version`; a file is saved with `karst tap -o json`")
                .exit(Exit::Data),
        ),
    }
}
