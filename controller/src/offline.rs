//! Objects compiled without a running controller: what proxies would be told, what is wrong with the objects, and which have no
//! effect. Pure but for the options, which are the controller's defaults (and its environment variables).

use crate::{
    config::Cli,
    convert::{self, Mesh},
    push,
};
use clap::Parser;
use karst_manifest::{Problem, State};
use prost::Message;

/// One resource that proxies are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its type.
    pub type_url: &'static str,
    /// Its name; of what is for one pod alone, `namespace/name` of the pod.
    pub name: String,
    /// The message.
    pub bytes: Vec<u8>,
}

/// Something valid that has no effect, or not all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoEffect {
    /// The object's kind, as the API has it.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why, in one word (Istio's reasons).
    pub reason: &'static str,
    /// Field, what is wrong, and the fix.
    pub text: String,
}

/// What comes of some objects.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// What proxies are told, the policies in dry run among it.
    pub resources: Vec<Resource>,
    /// What cannot be taken.
    pub problems: Vec<Problem>,
    /// What is valid, and yet has no effect.
    pub no_effect: Vec<NoEffect>,
    /// The namespace whose policies are for all.
    pub root_namespace: String,
    /// What identities begin with.
    pub trust_domain: String,
    /// What names of services end with.
    pub cluster_domain: String,
}

/// The controller's options in the environment cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the controller's options in this environment cannot be read: {0}")]
pub struct OptionsError(#[from] clap::Error);

/// Compiles objects as the controller does.
///
/// # Errors
/// An environment variable that the controller would read has no valid value.
pub fn compile(state: &State) -> Result<Compiled, OptionsError> {
    let mesh = Mesh::from(&Cli::try_parse_from(["karst-controller"])?.config);
    let (model, problems) = convert::compile(state, &mesh);
    let no_effect = convert::findings(state, &model, &mesh).into_iter().map(|f| NoEffect {
        kind: karst_manifest::kinds::api_kind(f.kind),
        text: f.text(),
        namespace: f.namespace,
        name: f.name,
        reason: f.reason.name(),
    });
    let all = push::resources(&model, 0, None);
    let of = |(type_url, set): (&'static str, karst_xds::Set)| {
        set.into_iter().map(move |(name, entry)| Resource { type_url, name, bytes: entry.bytes.to_vec() })
    };
    let mut resources: Vec<Resource> = all.types.into_iter().flat_map(of).collect();
    // Those in dry run are in a set of their own, whose name is no type.
    resources.retain(|r| r.type_url.starts_with("type.googleapis.com/"));
    resources.extend(model.policies.iter().filter(|(_, p)| p.dry_run).map(|(key, p)| Resource {
        type_url: karst_api::AUTHORIZATION_TYPE,
        name: key.clone(),
        bytes: karst_api::convert::policy_to_wire(p).encode_to_vec(),
    }));
    let no_effect = no_effect.collect();
    let Mesh { root_namespace, trust_domain, cluster_domain, .. } = mesh;
    Ok(Compiled { resources, problems, no_effect, root_namespace, trust_domain, cluster_domain })
}
