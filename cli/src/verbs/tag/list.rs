//! `tag list`: the revision tags.

use super::objects::{self, REVISION, TAG};
use crate::{
    cluster::Resource,
    output::{Format, Table},
    problem::Problem,
    session::Session,
};
use clap::Args;
use kube::ResourceExt;
use serde::Serialize;
use std::collections::BTreeMap;

/// Options of `tag list`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  karst tag list -o json")]
pub struct List {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Row {
    tag: String,
    revision: String,
    namespaces: Vec<String>,
}

impl List {
    /// Prints them.
    ///
    /// # Errors
    /// If the API server refuses or cannot be reached.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        let mut tags: BTreeMap<String, String> = BTreeMap::new();
        // The Service comes last: it is what the control plane goes by.
        for (resource, place) in [
            (objects::MUTATING, None),
            (objects::VALIDATING, None),
            (Resource::SERVICE, Some(cluster.istio_namespace.as_str())),
        ] {
            for object in cluster.list(resource, place, TAG).await?.unwrap_or_default() {
                let label = |name: &str| object.labels().get(name).cloned().unwrap_or_default();
                tags.insert(label(TAG), label(REVISION));
            }
        }
        let namespaces = cluster.list(Resource::NAMESPACE, None, REVISION).await?;
        let namespaces = namespaces.unwrap_or_default();
        let row = |(tag, revision): (String, String)| {
            let uses = |one: &&kube::api::DynamicObject| one.labels().get(REVISION) == Some(&tag);
            let namespaces = namespaces.iter().filter(uses).map(ResourceExt::name_any).collect();
            Row { tag, revision, namespaces }
        };
        let rows: Vec<Row> = tags.into_iter().map(row).collect();
        if rows.is_empty() && self.output == Format::Table {
            return session.line("No revision tags.");
        }
        let mut table = Table::new(&["TAG", "REVISION", "NAMESPACES"]);
        for row in &rows {
            table.row([row.tag.clone().into(), row.revision.clone().into(), row.namespaces.join(",").into()]);
        }
        session.show(self.output, &table, &rows)
    }
}
