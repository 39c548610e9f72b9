//! Objects compiled without a running controller: what proxies would be told, what is wrong with the objects, and which have no
//! effect. Pure but for the options, which are the controller's defaults (and its environment variables).

use crate::{
    config::Cli,
    convert::{self, Change, Mesh},
    model::Model,
    push,
};
use clap::Parser;
use karst_manifest::{Object, Problem, State, parse::Located};
use prost::Message;
use std::sync::Arc;

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
    /// What policies say that is valid, and hardly what was meant.
    pub warnings: Vec<NoEffect>,
    /// The names of this control plane's revision.
    pub revisions: Vec<String>,
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
    // What another control plane reads is not here.
    let all_objects = state.objects.iter().map(|located| &located.object);
    let revisions = convert::Revisions::of(all_objects, &mesh.root_namespace, &mesh.revision);
    let is_ours = |located: &&Arc<Located>| revisions.other(&located.object).is_none();
    let own = State { objects: state.objects.iter().filter(is_ours).cloned().collect(), ..state.clone() };
    let (model, problems) = convert::compile(&own, &mesh);
    let no_effect = convert::findings(&own, &model, &mesh).into_iter().map(|f| NoEffect {
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
    let warnings = own.objects.iter().flat_map(|o| warnings(&o.object)).collect();
    let Mesh { root_namespace, trust_domain, cluster_domain, revision, .. } = mesh;
    let revisions = std::iter::once(revision.name).chain(revision.tags).collect();
    Ok(Compiled { resources, problems, no_effect, warnings, revisions, root_namespace, trust_domain, cluster_domain })
}

/// What the controller keeps from one state of the objects to the next, without anything around it: to measure what an edit costs.
pub struct Kept {
    compiler: convert::Compiler,
    model: Model,
    told: karst_xds::Resources,
}

impl Kept {
    /// Nothing is compiled yet.
    ///
    /// # Errors
    /// An environment variable that the controller would read has no valid value.
    pub fn new() -> Result<Self, OptionsError> {
        let mesh = Mesh::from(&Cli::try_parse_from(["karst-controller"])?.config);
        let (model, told) = (Model::default(), karst_xds::Resources::default());
        Ok(Self { compiler: convert::Compiler::new(mesh), model, told })
    }

    /// Takes in the newest objects. Those that have not changed must be the same ones.
    pub fn compile(&mut self, state: &State) {
        self.compiler.update(state);
    }

    /// Encodes what has become of them; gives how many resources are new, other ones or gone.
    pub fn encode(&mut self) -> usize {
        let model = self.compiler.model().clone();
        let next = push::resources(&model, self.told.version + 1, Some((&self.model, &self.told)));
        self.tell(model, next)
    }

    /// Takes in a change of one object, without a look at the others, and encodes what has become of it; gives how many resources are
    /// new, other ones or gone. None: more than this object is to be looked at.
    pub fn step(&mut self, before: Option<Arc<Located>>, now: Option<Arc<Located>>) -> Option<usize> {
        let change = self.compiler.step(&[(before, now)])?;
        let (model, version) = (self.compiler.model().clone(), self.told.version + 1);
        let next = match &change {
            Change::Nothing => return Some(0),
            Change::Workloads(uids) => push::update(&self.told, &model, (uids, &[]), version),
            Change::Routes { workloads, routes } => push::update(&self.told, &model, (workloads, routes), version),
            Change::Everything => push::resources(&model, version, Some((&self.model, &self.told))),
        };
        Some(self.tell(model, next))
    }

    fn tell(&mut self, model: Model, next: karst_xds::Resources) -> usize {
        let nothing = karst_xds::Set::new();
        let changed = |(set, now): (&&'static str, &karst_xds::Set)| {
            self.told.types.get(set).unwrap_or(&nothing).diff(now).count()
        };
        let count = next.types.iter().map(changed).sum();
        (self.model, self.told) = (model, next);
        count
    }

    /// What is wrong with the objects.
    pub fn problems(&self) -> &[Problem] {
        self.compiler.problems()
    }
}

fn warnings(object: &Object) -> Vec<NoEffect> {
    let Object::AuthorizationPolicy(policy) = object else { return vec![] };
    let (namespace, name) = (&policy.metadata.namespace, &policy.metadata.name);
    let warning = |text| NoEffect {
        kind: karst_manifest::kinds::api_kind(object.kind()),
        namespace: namespace.clone(),
        name: name.clone(),
        reason: "Warning",
        text,
    };
    convert::of_policy(policy).into_iter().map(warning).collect()
}
