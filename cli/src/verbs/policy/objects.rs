//! The objects that policies are judged among: the cluster's, or those of files.

use crate::{
    analysis,
    problem::{Exit, Problem},
    session::Session,
    verbs::explain::as_the_control_plane,
};
use clap::Args;
use karst_explain::Enrolment;
use karst_manifest::parse::Located;
use std::{path::PathBuf, sync::Arc};

/// Which objects are read.
#[derive(Debug, Args)]
#[group(skip)]
pub struct From {
    /// Objects in place of the cluster's: files or directories; what labels bring into the mesh counts as enrolled
    #[arg(long, value_name = "FILE")]
    objects: Vec<PathBuf>,
}

/// The objects.
pub struct Objects {
    /// All of them.
    pub all: Vec<Arc<Located>>,
    /// Which of the pods are in the mesh.
    pub enrolment: Enrolment,
    /// The namespace of what is named without one.
    pub namespace: String,
}

impl From {
    /// The namespace of what is named without one.
    ///
    /// # Errors
    /// If it is the one of the cluster's configuration, and there is none.
    pub async fn namespace(&self, session: &Session<'_>) -> Result<String, Problem> {
        match self.objects.is_empty() {
            true => Ok(session.cluster().await?.namespace),
            false => Ok(session.global.namespace.clone().unwrap_or_else(|| "default".into())),
        }
    }

    /// Reads the objects.
    ///
    /// # Errors
    /// If they cannot be read.
    pub async fn read(&self, session: &Session<'_>, verb: &str) -> Result<Objects, Problem> {
        if self.objects.is_empty() {
            let cluster = session.cluster().await?;
            as_the_control_plane(&cluster, verb).await?;
            let (all, notes) = analysis::from_cluster(&cluster).await?;
            notes.iter().for_each(|note| session.note(note));
            return Ok(Objects { all, enrolment: Enrolment::Reported, namespace: cluster.namespace });
        }
        let namespace = self.namespace(session).await?;
        let input = analysis::read(&analysis::files(&self.objects, true)?, &namespace)?;
        input.problems.iter().for_each(|problem| session.note(format!("note: {problem}")));
        Ok(Objects { all: input.objects, enrolment: Enrolment::Expected, namespace })
    }
}

/// The world cannot be made of the objects.
pub fn failed(error: impl std::fmt::Display) -> Problem {
    Problem::new("policy: the objects cannot be compiled").because(error).exit(Exit::Unknown)
}
