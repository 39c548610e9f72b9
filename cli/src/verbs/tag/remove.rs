//! `tag remove`.

use super::objects::{self, DEFAULT, DEFAULT_VALIDATOR, MUTATING, REVISION, TAG, VALIDATING};
use crate::{
    cluster::{Cluster, Resource},
    problem::Problem,
    session::Session,
    verbs::install::confirmed,
};
use clap::Args;
use kube::ResourceExt;

/// Options of `tag remove`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  karst tag remove prod")]
pub struct Remove {
    /// Name of the tag
    #[arg(value_name = "TAG")]
    tag: String,
    /// Do not ask
    #[arg(short = 'y', long)]
    skip_confirmation: bool,
}

impl Remove {
    /// Removes it, after a question if namespaces use it.
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let (cluster, tag) = (session.cluster().await?, self.tag.as_str());
        let there = objects_of(&cluster, tag).await?;
        if there.is_empty() {
            let next = "karst tag list lists the tags";
            return Err(Problem::new(format!("cannot remove tag {tag:?}: there is no such tag")).next(next));
        }
        let namespaces =
            cluster.list(Resource::NAMESPACE, None, &format!("{REVISION}={tag}")).await?.unwrap_or_default();
        if !namespaces.is_empty() && !self.skip_confirmation {
            session.text(&caution(tag, namespaces.iter().map(ResourceExt::name_any)))?;
            confirmed(session)?;
        }
        for (resource, namespace, name) in there {
            cluster.delete(resource, namespace.as_deref(), &name).await?;
        }
        session.line(format!("Revision tag {tag} removed"))
    }
}

/// The objects that stand for a tag.
async fn objects_of(cluster: &Cluster, tag: &str) -> Result<Vec<(Resource, Option<String>, String)>, Problem> {
    let (selector, mut all) = (format!("{TAG}={tag}"), vec![]);
    let place = cluster.istio_namespace.clone();
    for (resource, namespace) in [(Resource::SERVICE, Some(place)), (MUTATING, None)] {
        for object in cluster.list(resource, namespace.as_deref(), &selector).await?.unwrap_or_default() {
            // Other Services may carry the label for reasons of their own.
            if resource != Resource::SERVICE || object.name_any() == objects::service_name(tag) {
                all.push((resource, namespace.clone(), object.name_any()));
            }
        }
    }
    if tag == DEFAULT {
        let there = cluster.object(VALIDATING, None, DEFAULT_VALIDATOR).await?;
        // One without the label is of the chart base.
        let is_ours = there.is_some_and(|there| there.labels().contains_key(TAG));
        all.extend(is_ours.then(|| (VALIDATING, None, DEFAULT_VALIDATOR.to_string())));
    }
    Ok(all)
}

fn caution(tag: &str, namespaces: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = namespaces.collect();
    format!(
        "Caution, found {} namespace(s) that use tag {tag:?}: {}\n\
         Their Gateways are run by nobody without it. Proceed with operation? [y/N] ",
        names.len(),
        names.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_uses_the_tag_is_named() {
        let text = caution("prod", ["a", "b"].map(String::from).into_iter());
        assert!(text.starts_with("Caution, found 2 namespace(s) that use tag \"prod\": a b\n"), "{text}");
        assert!(text.ends_with("[y/N] "));
    }
}
