//! `tag set` and `tag generate`.

use super::objects::{self, DEFAULT, DEFAULT_VALIDATOR, Known, Made, VALIDATING, Wanted};
use crate::{analysis::rules, problem::Problem, session::Session};
use clap::Args;
use serde_json::Value;

/// The tag, and where it leads.
#[derive(Debug, Args)]
struct Asked {
    /// Name of the tag; default: the revision that objects without the label istio.io/rev belong to
    #[arg(value_name = "TAG")]
    tag: String,
    /// Revision of the control plane that it leads to
    #[arg(short, long, value_name = "NAME", required = true)]
    revision: String,
    /// Lead a tag that is there to another revision
    #[arg(long)]
    overwrite: bool,
    /// Name of the MutatingWebhookConfiguration that shows the tag to other tools [default: istio-revision-tag-TAG]
    #[arg(long, value_name = "NAME")]
    webhook_name: Option<String>,
    /// As in istioctl; nothing is asked
    #[arg(short = 'y', long, hide = true)]
    skip_confirmation: bool,
    /// As in istioctl; nothing is injected
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    auto_inject_namespaces: Option<bool>,
    /// As in istioctl; the objects are made from those of the cluster
    #[arg(short = 'd', long, hide = true)]
    manifests: Option<String>,
}

/// Options of `tag set`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst tag set prod --revision 1-0
  kubectl label namespace shop istio.io/rev=prod         its Gateways are run by that revision
  karst tag set prod --revision 1-1 --overwrite          and now by this one
  karst tag set default --revision 1-1                   all that has no label, too")]
pub struct Set {
    #[command(flatten)]
    asked: Asked,
}

/// Options of `tag generate`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  karst tag generate prod --revision 1-0 | kubectl apply -f -")]
pub struct Generate {
    #[command(flatten)]
    asked: Asked,
}

impl Asked {
    async fn objects(&self, session: &Session<'_>) -> Result<Vec<Made>, Problem> {
        let cluster = session.cluster().await?;
        let known = Known::of(&cluster).await?;
        let service = known.judge(&self.tag, &self.revision, self.overwrite)?;
        let wanted = Wanted {
            tag: &self.tag,
            revision: &self.revision,
            namespace: &cluster.istio_namespace,
            webhook: self.webhook_name.as_deref().unwrap_or_default(),
        };
        Ok(objects::of(&wanted, service))
    }
}

impl Generate {
    /// Prints the objects.
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        for (_, _, object) in self.asked.objects(session).await? {
            session.text(&format!("{}---\n", yaml(&object)?))?;
        }
        Ok(())
    }
}

fn yaml(object: &Value) -> Result<String, Problem> {
    Ok(crate::output::Format::Yaml.encode(object)?.unwrap_or_default())
}

impl Set {
    /// Applies the objects.
    pub(super) async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let Asked { tag, revision, .. } = &self.asked;
        let made = self.asked.objects(session).await?;
        let cluster = session.cluster().await?;
        let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_string();
        // All of them first: a tag is set whole or not at all.
        let failed = format!("cannot set tag {tag:?}");
        for (resource, namespace, object) in &made {
            let name = name(object);
            let there = cluster.object(*resource, namespace.as_deref(), &name).await?;
            if let Some(problem) = there.and_then(|there| objects::foreign(&failed, *resource, &name, &there)) {
                return Err(problem);
            }
        }
        for (resource, namespace, object) in &made {
            let name = name(object);
            cluster.apply(*resource, namespace.as_deref(), &name, object).await?;
        }
        // The chart of the revision without a name has it in its own configuration; two would judge each object twice.
        if tag == DEFAULT
            && revision == DEFAULT
            && let Some(there) = cluster.object(VALIDATING, None, DEFAULT_VALIDATOR).await?
        {
            let failed = "objects without a label are judged by another revision, too";
            match objects::foreign(failed, VALIDATING, DEFAULT_VALIDATOR, &there) {
                Some(problem) => session.note(format!("note: {problem}")),
                None => {
                    cluster.delete(VALIDATING, None, DEFAULT_VALIDATOR).await?;
                }
            }
        }
        let configurations = cluster.list(VALIDATING, None, "app=istiod").await?.unwrap_or_default();
        if tag != DEFAULT && rules::is_unjudged(configurations.iter().map(|one| &one.data), Some(tag)) {
            session.note(format!("note: {}", rules::unjudged_tag(tag, revision)));
        }
        session.line(format!(
            "Revision tag {tag:?} created, referencing control plane revision {revision:?}. To have the Gateways of a \
             namespace run by it, use 'kubectl label namespace <NAMESPACE> istio.io/rev={tag}'"
        ))
    }
}
