//! `tag`: other names of revisions, which stay while the revision that they lead to changes.

mod list;
mod objects;
mod remove;
mod set;

use crate::{problem::Problem, session::Session};
use clap::Subcommand;

/// The verbs of `tag`.
#[derive(Debug, Subcommand)]
pub enum Tag {
    /// Create a revision tag, or lead it to another revision
    Set(set::Set),
    /// Print the objects of a revision tag, without applying them
    Generate(set::Generate),
    /// List revision tags, and the namespaces that use them
    #[command(visible_alias = "show")]
    List(list::List),
    /// Remove a revision tag
    #[command(visible_alias = "delete")]
    Remove(remove::Remove),
}

impl Tag {
    /// Does it.
    ///
    /// # Errors
    /// If the tag cannot be as it is asked for, or the API server refuses or cannot be reached.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        match self {
            Self::Set(verb) => verb.run(session).await,
            Self::Generate(verb) => verb.run(session).await,
            Self::List(verb) => verb.run(session).await,
            Self::Remove(verb) => verb.run(session).await,
        }
    }
}
