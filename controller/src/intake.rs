//! The objects as this control plane takes them in: without those that are for another revision, and with the mesh
//! configuration that is in force. A mesh configuration that cannot be used changes nothing: the last good one
//! stays, and log, metrics and an event on its ConfigMap say so. One with fields that nobody knows is in force; log and event name
//! these.

use crate::{
    config::Config,
    convert::{Mesh, Named, Revision, Revisions, is_small},
};
use karst_kube::{ChangedObjects, Source};
use karst_manifest::{MeshConfig, Object, Problem, State, kinds::Meta, kinds::api_kind, mesh_config, parse::Located};
use std::sync::Arc;

/// What is wrong with a mesh configuration, for an event on its ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub text: String,
}

/// The objects of a source, as they are taken in.
pub struct Intake {
    source: Source,
    revision: Revision,
    mesh_config: Follower,
}

impl Intake {
    /// Nothing has been read yet.
    pub fn new(source: Source, config: &Config) -> Self {
        let mesh_config = Follower::new(Mesh::from(config), config.mesh_config_name());
        Self { source, revision: config.revision(), mesh_config }
    }

    /// Waits for a change.
    pub async fn changed(&mut self) {
        self.source.changed().await;
    }

    /// What has changed since the state was read, if it is only objects that may be taken in alone ([`is_small`]), and none of them
    /// says for which revision it is: they are the same for every revision, and have nothing to do with the mesh configuration.
    pub fn changes(&mut self) -> Option<ChangedObjects> {
        self.source.changes(|at| is_small(&at.object) && Revision::label(&at.object).is_none())
    }

    /// The state now.
    pub fn read(&mut self) -> State {
        let mut state = self.source.read();
        self.mesh_config.take(&mut state);
        of_revision(&mut state, &self.mesh_config.started.root_namespace, &self.revision);
        state
    }

    /// What has newly been found wrong with the mesh configuration; told once.
    pub fn fault(&mut self) -> Option<Fault> {
        self.mesh_config.fault.take()
    }

    /// The text of the mesh configuration in force; empty: there is none.
    pub fn mesh_config(&self) -> &str {
        &self.mesh_config.good_text
    }

    /// Is the mesh configuration in force the one that is written?
    pub fn is_current(&self) -> bool {
        self.mesh_config.is_current
    }
}

/// Puts aside what other revisions read. It is said of each: an object that nobody enforces is a surprise.
pub(crate) fn of_revision(state: &mut State, root: &str, own: &Revision) {
    let State { objects, elsewhere, problems, .. } = state;
    let revisions = Revisions::of(objects.iter().map(|at| &at.object), root, own);
    objects.retain(|at| {
        let Some(whose) = revisions.other(&at.object) else { return true };
        // Written by the other's chart, and meant for nobody else.
        if !matches!(at.object, Object::ConfigMap(_)) {
            problems.push(left_out(at, whose, &revisions, own));
            elsewhere.push(at.clone());
        }
        false
    });
}

/// Says of an object that it has no effect here.
fn left_out(at: &Located, whose: Named<'_>, revisions: &Revisions, own: &Revision) -> Problem {
    if let (Named::Nobody, Some((field, message))) = (whose, revisions.unknown(at.object.meta())) {
        return problem(at, &field, message);
    }
    let other = if let Named::Other(name) = whose { name } else { "" };
    let message = format!(
        "is for revision {other:?}, and this control plane is {:?}: the object is not in force here; remove the label, or set it to {:?} [KARST-0711]",
        own.name(),
        own.name()
    );
    problem(at, "metadata.labels[istio.io/rev]", message)
}

fn problem(at: &Located, field: &str, message: String) -> Problem {
    let meta = at.object.meta();
    let object = format!("{} {}/{}", api_kind(at.object.kind()), meta.namespace, meta.name);
    Problem { file: at.file.clone(), line: at.line, object, field: field.into(), message }
}

/// Follows the ConfigMap with the mesh configuration.
struct Follower {
    /// What the process was started with.
    started: Mesh,
    /// Of the ConfigMap, in the root namespace.
    name: String,
    /// The last one that could be used.
    good: Arc<MeshConfig>,
    /// Its text.
    good_text: String,
    is_current: bool,
    /// The text that was read last, and what is wrong with it: pods change far more often.
    read: Option<(String, Vec<String>)>,
    /// What is wrong now.
    told: Option<String>,
    /// The same, as long as nobody has asked for it.
    fault: Option<Fault>,
}

impl Follower {
    /// Nothing has been read yet.
    fn new(started: Mesh, name: String) -> Self {
        Self {
            started,
            name,
            good: Arc::default(),
            good_text: String::new(),
            is_current: true,
            read: None,
            told: None,
            fault: None,
        }
    }

    fn take(&mut self, state: &mut State) {
        let root = &self.started.root_namespace;
        let found = state.objects.iter().find_map(|at| match &at.object {
            Object::ConfigMap(map) if map.metadata.namespace == *root && map.metadata.name == self.name => {
                Some((at.clone(), map.data.get(mesh_config::KEY).cloned().unwrap_or_default()))
            }
            _ => None,
        });
        // Without the ConfigMap it is the options that say everything.
        let Some((at, text)) = found else {
            (self.good, self.is_current, self.read, self.told) = (Arc::default(), true, None, None);
            self.good_text.clear();
            state.mesh_config = self.good.clone();
            return;
        };
        let field = format!("data.{}", mesh_config::KEY);
        let wrong = match &self.read {
            Some((before, wrong)) if *before == text => wrong.clone(),
            _ => {
                let wrong = self.read(&text);
                self.read = Some((text, wrong.clone()));
                wrong
            }
        };
        let said = (!wrong.is_empty()).then(|| wrong.join("; "));
        if said != self.told {
            self.fault = said.as_ref().map(|text| Fault::of(at.object.meta(), text));
            self.told = said;
        }
        state.problems.extend(wrong.into_iter().map(|message| problem(&at, &field, message)));
        state.mesh_config = self.good.clone();
    }

    /// Puts a configuration in force, if it can be used. Gives what is wrong with it.
    fn read(&mut self, text: &str) -> Vec<String> {
        match MeshConfig::read(text) {
            Ok(config) => {
                self.is_current = true;
                self.good = Arc::new(config);
                self.good_text = text.to_string();
                let unknown = MeshConfig::unknown_fields(text);
                self.fixed().into_iter().chain(unknown.iter().map(ToString::to_string)).collect()
            }
            Err(error) => {
                self.is_current = false;
                vec![format!("{error}; the last good configuration stays in force")]
            }
        }
    }

    /// What it says otherwise than the process was started with, and cannot be changed while it runs.
    fn fixed(&self) -> Vec<String> {
        [
            ("trustDomain", &self.good.trust_domain, &self.started.trust_domain),
            ("rootNamespace", &self.good.root_namespace, &self.started.root_namespace),
        ]
        .into_iter()
        .filter(|(_, said, started)| !said.is_empty() && said != started)
        .map(|(field, said, started)| {
            format!("{field}: {said:?} is not in force, {started:?} is: it is taken at the start only, from the values of the chart istiod [KARST-0710]")
        })
        .collect()
    }
}

impl Fault {
    fn of(meta: &Meta, text: &str) -> Self {
        let (namespace, name) = (meta.namespace.clone(), meta.name.clone());
        Self { namespace, name, uid: meta.uid.clone(), text: text.into() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::config::Cli;
    use clap::Parser;
    use karst_manifest::parse;

    fn state(text: &str) -> State {
        let objects = parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(Arc::new).collect();
        State { objects, ..State::default() }
    }

    fn map(name: &str, mesh: &str) -> State {
        state(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: istio-system, uid: u}}\ndata: {{mesh: {mesh:?}, other: x}}\n"
        ))
    }

    fn follower(name: &str) -> Follower {
        let config = Cli::try_parse_from(["karst-controller"]).unwrap().config;
        Follower::new(Mesh::from(&config), name.into())
    }

    #[test]
    fn a_mesh_configuration_that_cannot_be_used_changes_nothing() {
        let mut follower = follower("istio");
        let mut take = |mut state: State| {
            follower.take(&mut state);
            let problems: Vec<_> = state.problems.iter().map(ToString::to_string).collect();
            (state.mesh_config.access_log_file.clone(), problems, follower.fault.take(), follower.is_current)
        };
        assert_eq!(take(State::default()), (None, vec![], None, true), "it need not be there");
        assert_eq!(take(map("istio", "accessLogFile: ''")), (Some(String::new()), vec![], None, true));
        let (file, problems, fault, is_current) = take(map("istio", "accessLogFile: /x"));
        assert_eq!((file.as_deref(), is_current, problems.len()), (Some(""), false, 1), "the last good one");
        assert!(problems[0].contains("ConfigMap istio-system/istio: data.mesh: accessLogFile"), "{problems:?}");
        let fault = fault.unwrap();
        assert_eq!((&*fault.namespace, &*fault.name, &*fault.uid), ("istio-system", "istio", "u"));
        let (_, problems, again, _) = take(map("istio", "accessLogFile: /x"));
        assert_eq!((again, problems.len()), (None, 1), "told once, and a problem as long as it is there");
        assert_eq!(take(map("istio", "{}")), (None, vec![], None, true));
        assert_eq!(take(map("istio-other", "accessLogFile: /x")), (None, vec![], None, true), "another's");
    }

    #[test]
    fn the_text_in_force_is_that_of_the_last_good_configuration() {
        let mut follower = follower("istio");
        let mut text = |mut state: State| {
            follower.take(&mut state);
            follower.good_text.clone()
        };
        assert_eq!(text(State::default()), "");
        assert_eq!(text(map("istio", "accessLogFile: ''")), "accessLogFile: ''");
        assert_eq!(text(map("istio", "accessLogFile: /x")), "accessLogFile: ''");
        assert_eq!(text(State::default()), "");
    }

    #[test]
    fn what_cannot_change_while_we_run_is_said() {
        let mut follower = follower("istio");
        let mut state = map("istio", "{trustDomain: other.example, rootNamespace: istio-system}");
        follower.take(&mut state);
        let problems: Vec<_> = state.problems.iter().map(ToString::to_string).collect();
        assert!(
            problems.len() == 1 && problems[0].contains("trustDomain: \"other.example\" is not in force"),
            "{problems:?}"
        );
        assert!(follower.is_current);
    }

    #[test]
    fn slips_are_said_once_and_the_rest_is_in_force() {
        let mut follower = follower("istio");
        let mut take = |text: &str| {
            let mut state = map("istio", text);
            follower.take(&mut state);
            let problems: Vec<_> = state.problems.iter().map(ToString::to_string).collect();
            (state.mesh_config.access_log_file.clone(), problems, follower.fault.take(), follower.is_current)
        };
        let text = "{accessLogFile: '', enableTracing: true, defaultConfig: {concurency: 2}}";
        let (file, problems, fault, is_current) = take(text);
        assert_eq!((file.as_deref(), problems.len(), is_current), (Some(""), 1, true), "{problems:?}");
        let said = "data.mesh: defaultConfig.concurency: is unknown in this version and has no effect";
        assert!(problems[0].contains(said) && problems[0].contains("[KARST-0712]"), "{problems:?}");
        assert!(fault.unwrap().text.starts_with("defaultConfig.concurency: is unknown"));
        let (_, problems, again, _) = take(text);
        assert_eq!((again, problems.len()), (None, 1), "told once, and a problem as long as it is there");
        assert_eq!(
            take("{accessLogFile: '', defaultConfig: {concurrency: 2}}"),
            (Some(String::new()), vec![], None, true)
        );
    }

    #[test]
    fn objects_of_another_revision_are_left_out_and_named() {
        let text = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: ours, namespace: a}\nspec: {}\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: theirs, namespace: a, labels: {istio.io/rev: canary}}\nspec: {}\n";
        let canary = "---\napiVersion: v1\nkind: Service\nmetadata: {name: istiod-canary, namespace: istio-system, labels: {app: istiod, istio.io/rev: canary}}\nspec: {}\n";
        for (more, said) in [("", "is revision \"canary\""), (canary, "is for revision \"canary\"")] {
            let mut all = state(&format!("{text}{more}"));
            of_revision(&mut all, "istio-system", &Revision::default());
            let names = |all: &[Arc<Located>]| all.iter().map(|o| o.object.meta().name.clone()).collect::<Vec<_>>();
            assert_eq!((&*names(&all.objects)[0], &names(&all.elsewhere)[..]), ("ours", &["theirs".to_string()][..]));
            let problem = all.problems[0].to_string();
            assert!(problem.contains("PeerAuthentication a/theirs: metadata.labels[istio.io/rev]"), "{problem}");
            assert!(problem.contains(said) && problem.contains("[KARST-0711]"), "{problem}");
        }
    }
}
