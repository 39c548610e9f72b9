//! `tag remove`.

use super::objects::{self, DEFAULT, DEFAULT_VALIDATOR, MUTATING, REVISION, TAG, VALIDATING};
use crate::{
    cluster::{Cluster, Resource},
    problem::Problem,
    session::Session,
    verbs::install::confirmed,
};
use clap::Args;
use kube::{ResourceExt, api::DynamicObject};

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
        let There { ours, others } = objects_of(&cluster, tag).await?;
        if ours.is_empty() {
            if let Some(problem) = others.into_iter().next() {
                return Err(problem);
            }
            let next = "karst tag list lists the tags";
            return Err(Problem::new(format!("cannot remove tag {tag:?}: there is no such tag")).next(next));
        }
        let namespaces =
            cluster.list(Resource::NAMESPACE, None, &format!("{REVISION}={tag}")).await?.unwrap_or_default();
        if !namespaces.is_empty() && !self.skip_confirmation {
            session.text(&caution(tag, namespaces.iter().map(ResourceExt::name_any)))?;
            confirmed(session)?;
        }
        others.iter().for_each(|problem| session.note(format!("note: {problem}")));
        for (resource, namespace, name) in ours {
            cluster.delete(resource, namespace.as_deref(), &name).await?;
        }
        session.line(format!("Revision tag {tag} removed"))
    }
}

/// The objects that stand for a tag.
#[derive(Default)]
struct There {
    /// Kinds, namespaces and names of a tag's of ours.
    ours: Vec<(Resource, Option<String>, String)>,
    /// Why the others stay.
    others: Vec<Problem>,
}

impl There {
    fn take(&mut self, tag: &str, resource: Resource, namespace: Option<String>, object: &DynamicObject) {
        let (failed, name) = (format!("cannot remove all of tag {tag:?}"), object.name_any());
        match objects::foreign(&failed, resource, &name, object) {
            Some(problem) => self.others.push(problem),
            None => self.ours.push((resource, namespace, name)),
        }
    }
}

async fn objects_of(cluster: &Cluster, tag: &str) -> Result<There, Problem> {
    let (selector, mut all) = (format!("{TAG}={tag}"), There::default());
    let place = cluster.istio_namespace.clone();
    for (resource, namespace) in [(Resource::SERVICE, Some(place)), (MUTATING, None)] {
        for object in cluster.list(resource, namespace.as_deref(), &selector).await?.unwrap_or_default() {
            // Other Services may carry the label for reasons of their own.
            if resource != Resource::SERVICE || object.name_any() == objects::service_name(tag) {
                all.take(tag, resource, namespace.clone(), &object);
            }
        }
    }
    if tag == DEFAULT {
        let there = cluster.object(VALIDATING, None, DEFAULT_VALIDATOR).await?;
        there.iter().for_each(|there| all.take(tag, VALIDATING, None, there));
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
