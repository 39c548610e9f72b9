//! The writer of a proxy's state: the one task that applies what the control plane sends to a copy of the newest snapshot, and puts
//! that in its place. What is refused leaves what was; the process is configured when each needed type has arrived once.

use crate::{
    discovery::Counts,
    remote::{ControlPlaneClient, RemoteError},
    state::{Mark, Name, ResourceError, Snapshot},
    trim::Trimmer,
    untold::{Asker, Asks},
};
use karst_api::{
    ADDRESS_TYPE, POD_RANGES_TYPE,
    convert::{self, PolicyError},
};
use karst_rt::{
    process::trim_memory,
    ready::{Blocker, Ready},
};
use karst_xds::client::{StreamEnd, Update, Wanted, XdsSubscriber};
use std::{fmt::Display, sync::Arc};
use tokio::sync::watch;
use tonic::transport::Channel;

/// A state that resources of the control plane are applied to.
pub trait ApplyResource: Clone {
    /// Why a resource is refused.
    type Error: Display;
    /// Takes in a resource.
    ///
    /// # Errors
    /// If it is refused; the state is then what is to be in force.
    fn put(&mut self, type_url: &str, name: &str, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Removes a resource.
    fn remove(&mut self, type_url: &str, name: &str);
    /// A whole update is applied; this takes the place of `before`.
    fn applied(&mut self, _before: &Self) {}
    /// From now on it is told what there is of a name, where only what is asked for is.
    fn put_name(&mut self, _name: Name, _mark: Arc<Mark>) {}
    /// From now on it is not.
    fn remove_name(&mut self, _name: &Name) {}
    /// Is there anything of a name?
    fn has(&self, _name: &Name) -> bool {
        false
    }
}

/// Why a resource of the mesh is refused.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A workload, a service, ranges of pods.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// A policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl ApplyResource for Snapshot {
    type Error = MeshError;
    fn put(&mut self, type_url: &str, name: &str, bytes: &[u8]) -> Result<(), MeshError> {
        match type_url {
            ADDRESS_TYPE => Ok(self.put_address(name, bytes)?),
            POD_RANGES_TYPE => Ok(self.put_pod_ranges(name, bytes)?),
            _ => {
                self.put_policy(name, convert::policy(bytes)?);
                Ok(())
            }
        }
    }
    fn remove(&mut self, type_url: &str, name: &str) {
        match type_url {
            ADDRESS_TYPE => self.remove_address(name),
            POD_RANGES_TYPE => self.remove_pod_ranges(name),
            _ => self.remove_policy(name),
        }
    }
    fn put_name(&mut self, name: Name, mark: Arc<Mark>) {
        Snapshot::put_name(self, name, mark);
    }
    fn remove_name(&mut self, name: &Name) {
        Snapshot::remove_name(self, name);
    }
    fn has(&self, name: &Name) -> bool {
        Snapshot::has(self, name)
    }
}

/// The one writer of a state.
pub struct StateWriter<S> {
    remote: ControlPlaneClient,
    state: watch::Sender<Arc<S>>,
    /// Until each needed type has arrived once.
    missing: Vec<(&'static str, Blocker)>,
    /// Says when nothing is missing any more.
    configured: watch::Sender<bool>,
    /// Says whether there is a control plane.
    stream: watch::Sender<bool>,
    discovery: Arc<Counts>,
    /// Asks who is at an address.
    asker: Asker,
    trimmer: Trimmer,
}

impl<S> StateWriter<S> {
    /// A writer whose readiness waits for the first answers for the types that are needed.
    pub fn new(
        remote: ControlPlaneClient,
        state: watch::Sender<Arc<S>>,
        (ready, needed): (&Ready, &[&'static str]),
        (configured, stream): (watch::Sender<bool>, watch::Sender<bool>),
        discovery: Arc<Counts>,
        asker: Asker,
    ) -> Self {
        let missing = needed.iter().map(|t| (*t, ready.block(&format!("first configuration of {t}")))).collect();
        Self { remote, state, missing, configured, stream, discovery, asker, trimmer: Trimmer::new(trim_memory) }
    }
}

impl<S: ApplyResource> StateWriter<S> {
    /// What is not followed any more is unknown from now on.
    fn forget<'a>(&self, names: impl IntoIterator<Item = &'a Name>) {
        let mut names = names.into_iter().peekable();
        if names.peek().is_some() {
            let mut state = S::clone(&self.state.borrow());
            names.for_each(|name| state.remove_name(name));
            self.state.send_replace(Arc::new(state));
        }
    }
}

impl<S: ApplyResource> XdsSubscriber for StateWriter<S> {
    type Error = RemoteError;
    fn apply(&mut self, update: Update) -> Vec<(String, String)> {
        let mut refused = Vec::new();
        let before = self.state.borrow().clone();
        // Cheap: the maps inside are persistent.
        let mut state = (*before).clone();
        for (name, _, bytes) in &update.changed {
            if let Err(e) = state.put(&update.type_url, name, bytes) {
                refused.push((name.clone(), e.to_string()));
            }
        }
        for name in &update.removed {
            state.remove(&update.type_url, name);
        }
        state.applied(&before);
        self.state.send_replace(Arc::new(state));
        self.trimmer.note(update.changed.iter().map(|(_, _, bytes)| bytes.len()).sum(), update.more);
        if !update.more {
            self.missing.retain(|(t, _)| *t != update.type_url);
        }
        if self.missing.is_empty() {
            self.configured.send_if_modified(|c| !std::mem::replace(c, true));
        }
        refused
    }
    fn token(&self) -> Result<String, RemoteError> {
        self.remote.bearer()
    }
    fn connect(&self) -> impl Future<Output = Result<Channel, RemoteError>> {
        self.remote.channel()
    }
    fn headers(&self) -> Vec<(String, String)> {
        vec![("clusterid".into(), self.remote.cluster_id.clone())]
    }
    fn connected(&self) {
        self.asker.connected();
        self.stream.send_replace(true);
    }
    fn names(&self, type_url: &str) -> Option<Vec<String>> {
        self.asker.names().filter(|_| type_url == ADDRESS_TYPE)
    }
    async fn wanted(&mut self) -> Wanted {
        let Asks { names, left } = self.asker.wanted().await;
        // Before the control plane hears of it: what it may tell no more is not taken for all that there is.
        self.forget(left.iter().map(|(_, name)| name));
        Wanted { type_url: ADDRESS_TYPE, names, no_more: left.into_iter().map(|(wire, _)| wire).collect() }
    }
    fn answered(&mut self, names: &[(String, bool)]) {
        self.discovery.answered(names.iter().map(|(_, found)| *found));
        let wires = || names.iter().map(|(wire, _)| wire);
        let followed = self.asker.follow(wires());
        if !followed.is_empty() {
            let mut state = S::clone(&self.state.borrow());
            followed.into_iter().for_each(|(name, mark)| state.put_name(name, mark));
            let gone = self.asker.shrink(|name| state.has(name));
            gone.iter().for_each(|name| state.remove_name(name));
            self.state.send_replace(Arc::new(state));
        }
        self.asker.answered(wires());
    }
    fn ended(&self, why: StreamEnd) {
        self.stream.send_replace(false);
        let state = self.state.borrow().clone();
        let gone = self.asker.disconnected(|name| state.has(name));
        self.forget(&gone);
        self.discovery.ended(why);
    }
    fn received(&self, type_url: &str, bytes: usize) {
        self.discovery.received(type_url, bytes);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::testing::{control_plane, pod};
    use karst_api::{AUTHORIZATION_TYPE, workload as pb};
    use prost::Message;

    fn update(type_url: &str, changed: &[(&str, Vec<u8>)], removed: &[&str], more: bool) -> Update {
        Update {
            type_url: type_url.into(),
            changed: changed.iter().map(|(name, bytes)| (name.to_string(), "1".into(), bytes.clone())).collect(),
            removed: removed.iter().map(ToString::to_string).collect(),
            more,
        }
    }

    #[test]
    fn what_is_refused_leaves_what_was_and_readiness_waits_for_each_type() {
        let (state_tx, state) = watch::channel(Arc::new(Snapshot::new("")));
        let ((configured_tx, configured), (stream_tx, _stream)) = (watch::channel(false), watch::channel(true));
        let (ready, (_questions, asker)) = (Ready::default(), Asker::new(""));
        let needed = (&ready, &[AUTHORIZATION_TYPE, ADDRESS_TYPE][..]);
        let remote = control_plane();
        let mut writer = StateWriter::new(remote, state_tx, needed, (configured_tx, stream_tx), Arc::default(), asker);
        let wire =
            |ip: &str| pb::Address { r#type: Some(pb::address::Type::Workload(pod("a", ip, &[]))) }.encode_to_vec();
        let uid = pod("a", "10.0.0.1", &[]).uid;
        let address = || state.borrow().workloads.get(&*uid).map(|w| w.ips[0].to_string());
        let missing = || (ready.missing().len(), *configured.borrow());

        assert_eq!(missing(), (2, false));
        assert!(writer.apply(update(ADDRESS_TYPE, &[(&uid, wire("10.0.0.1"))], &[], true)).is_empty());
        assert_eq!((address(), missing()), (Some("10.0.0.1".into()), (2, false)), "the rest is still to come");
        assert!(writer.apply(update(ADDRESS_TYPE, &[], &[], false)).is_empty());
        assert_eq!(missing(), (1, false));
        let refused = writer.apply(update(ADDRESS_TYPE, &[(&uid, vec![0xff])], &[], false));
        assert!(refused.len() == 1 && refused[0].0 == uid, "{refused:?}");
        assert!(refused[0].1.starts_with("not an istio.workload.Address: "), "{refused:?}");
        assert_eq!(address(), Some("10.0.0.1".into()));
        let refused = writer.apply(update(AUTHORIZATION_TYPE, &[("p", vec![0xff])], &[], false));
        assert!(refused[0].1.starts_with("not an istio.security.Authorization: "), "{refused:?}");
        assert_eq!(missing(), (0, true), "a type has arrived, whatever it holds");
        writer.apply(update(ADDRESS_TYPE, &[(&uid, wire("10.0.0.2"))], &[], false));
        assert_eq!(address(), Some("10.0.0.2".into()));
        writer.apply(update(ADDRESS_TYPE, &[], &[&uid], false));
        assert_eq!(address(), None);
    }
}
