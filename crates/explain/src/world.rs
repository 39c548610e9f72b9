//! The objects, compiled, and the proxies that have been told of them.

use crate::objects::Objects;
use karst_controller::offline::{self, Compiled, OptionsError};
use karst_manifest::{Dir, Object, Problem, State, enrol};
use karst_proxy::{
    state::{Snapshot, Workload},
    xds::ApplyResource,
};
use karst_waypoint::decision::Waypoint;
use std::{io, path::Path};

/// Objects cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The directory cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The environment has a bad option of the controller.
    #[error(transparent)]
    Options(#[from] OptionsError),
}

/// The objects, and what proxies make of them.
pub struct World {
    pub(crate) state: State,
    pub(crate) objects: Objects,
    pub(crate) compiled: Compiled,
    /// What each ztunnel knows.
    pub(crate) mesh: Snapshot,
}

/// Which pods are in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// Those that labels ask for: nobody has enrolled any yet, as in files.
    Expected,
    /// Those that the nodes' agents report by an annotation, as in a Kubernetes cluster.
    Reported,
}

impl World {
    /// Of a directory of manifests.
    ///
    /// # Errors
    /// It cannot be read, or the environment is wrong. What is wrong in the files is in [`World::problems`].
    pub fn read(directory: &Path) -> Result<Self, WorldError> {
        Self::new(Dir::watch(directory)?.read(), Enrolment::Expected)
    }

    /// Of these objects.
    ///
    /// # Errors
    /// The environment has a bad option of the controller.
    pub fn new(mut state: State, enrolment: Enrolment) -> Result<Self, WorldError> {
        let objects = Objects::new(&state);
        let wanted = objects.pods().filter(|(_, pod)| {
            enrolment == Enrolment::Expected
                && enrol::wanted(objects.namespace(&pod.metadata.namespace), pod)
                && !enrol::ips(pod).is_empty()
        });
        state.enrolled.extend(wanted.map(|(_, p)| format!("{}/{}", p.metadata.namespace, p.metadata.name)));
        let compiled = offline::compile(&state)?;
        let mut mesh = Snapshot::new("").with_root(&compiled.root_namespace);
        for r in compiled.resources.iter().filter(|r| ZTUNNEL.contains(&r.type_url)) {
            // What is refused leaves what was, as in the proxy.
            let _ = mesh.put(r.type_url, &r.name, &r.bytes);
        }
        Ok(Self { state, objects, compiled, mesh })
    }

    /// What is wrong with the objects.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.state.problems.iter().chain(&self.compiled.problems)
    }

    /// What the proxies have been told.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// What each ztunnel knows.
    pub fn mesh(&self) -> &Snapshot {
        &self.mesh
    }

    /// A waypoint's pod, told what it would be.
    pub(crate) fn waypoint(&self, pod: &Workload) -> Waypoint {
        let mut waypoint = Waypoint::new(&pod.namespace, &pod.name, pod.identity.service_account());
        self.tell(&mut waypoint);
        waypoint
    }

    /// Tells a waypoint's pod what it would be told.
    pub(crate) fn tell(&self, waypoint: &mut Waypoint) {
        for r in &self.compiled.resources {
            // What is refused is in force as the proxy has it in force.
            let _ = waypoint.put(r.type_url, &r.name, &r.bytes);
        }
    }

    /// The same with other objects.
    pub(crate) fn with(&self, change: impl FnOnce(&mut Vec<Object>)) -> Option<Self> {
        let mut objects: Vec<Object> = self.state.objects.iter().map(|o| o.object.clone()).collect();
        change(&mut objects);
        let located = |object| karst_manifest::parse::Located { object, file: "".into(), line: 0 };
        let objects = objects.into_iter().map(|o| std::sync::Arc::new(located(o))).collect();
        let enrolled = self.state.enrolled.clone();
        // The agents follow a change of labels.
        Self::new(State { objects, enrolled, ..State::default() }, Enrolment::Expected).ok()
    }
}

/// What a ztunnel subscribes.
const ZTUNNEL: &[&str] = &[karst_api::AUTHORIZATION_TYPE, karst_api::POD_RANGES_TYPE, karst_api::ADDRESS_TYPE];
