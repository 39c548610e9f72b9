//! Enrolment of a pod, and its way out.
//!
//! Enrolment: listeners, then ztunnel's acknowledgement, then redirection, then the report that lets the controller
//! announce HBONE. If no ztunnel answers, redirection is set up all the same: a labelled pod's traffic waits, it never
//! passes unencrypted. Leaving runs the other way round, and peers are given time to hear of it first.

use super::{
    desired::{Announced, Desired},
    state::{Active, Agent, Joined, open_netns},
};
use crate::{
    events::{Event, EventError, Request},
    local::Followed,
    records::Record,
    sockets::PodSockets,
    zds,
};
use anyhow::Context;
use karst_kube::Kube;
use karst_manifest::State;
use karst_rt::{clock::Instant, netlink::Watch, netns::Netns};
use std::{os::fd::AsFd, rc::Rc, time::Duration};

/// After its report is withdrawn, a leaving pod stays redirected this long, so that its peers have heard.
const LEAVE_DELAY: Duration = Duration::from_millis(300);

/// A pod as ZDS tells of it.
fn to_zds(desired: &Desired, netns: &Netns, sockets: &Rc<PodSockets>) -> zds::Pod {
    zds::Pod {
        uid: desired.config.uid.clone(),
        info: desired.info.clone(),
        ips: desired.config.ips.clone(),
        netns: netns.clone(),
        sockets: sockets.clone(),
        bypass_dns: desired.config.bypass_dns,
    }
}

impl Agent {
    /// Opens the listeners of all pods and notes them for the first snapshot. What fails here is tried again by `join`.
    pub(super) fn prepare(&self, state: &State) {
        for (key, desired) in self.desired(state).0 {
            let Ok(netns) = open_netns(&desired) else { continue };
            let Ok(sockets) = PodSockets::open(&netns).map(Rc::new) else { continue };
            self.hub.register(to_zds(&desired, &netns, &sockets));
            let prepared = Active { desired, netns, sockets, following: None };
            self.prepared.borrow_mut().insert(key, prepared);
        }
    }

    /// Redirects a pod whose network namespace is still to be found.
    pub(super) async fn join(&self, key: &str, desired: &Desired) -> anyhow::Result<Joined> {
        let prepared = self.prepared.borrow_mut().remove(key).filter(|p| p.desired == *desired);
        match prepared {
            None => self.join_in(key, desired, open_netns(desired)?, None).await,
            Some(prepared) => {
                let (netns, sockets) = (prepared.netns.clone(), prepared.sockets.clone());
                let joined = self.join_in(key, desired, netns, Some(sockets)).await;
                if joined.is_err() && !self.active.borrow().contains_key(key) {
                    // ztunnel has these listeners: with others, it would take the pod for another one, and end its connections.
                    self.prepared.borrow_mut().insert(key.into(), prepared);
                }
                joined
            }
        }
    }

    async fn join_in(
        &self,
        key: &str,
        desired: &Desired,
        netns: Netns,
        prepared: Option<Rc<PodSockets>>,
    ) -> anyhow::Result<Joined> {
        if let Some(closed) = self.close_foreign(key, desired, &netns).await? {
            return Ok(closed);
        }
        let (known, within) = (prepared.is_some(), netns.clone());
        let sockets = match prepared {
            Some(sockets) => sockets,
            None => {
                let sockets = PodSockets::open(&netns)
                    .context("cannot open the pod's listeners (CAP_NET_ADMIN and CAP_SYS_ADMIN are needed)")?;
                Rc::new(sockets)
            }
        };
        // What was open when it was redirected first.
        let unmeshed = self.records.one(&desired.config.uid).and_then(|r| r.unmeshed);
        let mut record = Record { unmeshed, ..desired.record() };
        self.records.save(&record);
        let served = if known { Ok(true) } else { self.hub.add(to_zds(desired, &netns, &sockets)).await };
        if let Err(e) = &served {
            tracing::warn!(
                pod = key,
                error = e.to_string(),
                "ztunnel cannot serve the pod yet; its connections will wait"
            );
        }
        let waits = match &served {
            Ok(true) => None,
            Ok(false) => Some("no ztunnel serves the node yet, and the pod's connections wait".into()),
            Err(e) => Some(format!("ztunnel cannot serve the pod yet, and its connections wait: {e}")),
        };
        if let Some(text) = waits {
            self.report.warn((&desired.info.namespace, &desired.info.name, &desired.uid), "WaitsForZtunnel", text);
        }
        let watch = Watch::of(&netns).context("cannot follow the addresses of the pod's network namespace")?;
        let guarded = self.node.borrow_mut().enrol(&netns, &desired.config, &sockets.listeners())?;
        let followed =
            Followed { node: self.node.clone(), key: key.into(), netns: netns.clone(), config: desired.config.clone() };
        let following = Some(followed.follow(watch, guarded));
        let active = Active { desired: desired.clone(), netns, sockets, following };
        self.active.borrow_mut().insert(key.into(), active);
        let serves = served == Ok(true);
        // At once: what is opened from here on is captured.
        self.unmeshed.redirected(key, &mut record, &within, self.node.borrow().exempt_map().as_fd(), desired.close);
        self.records.save(&record);
        if desired.close {
            self.unmeshed.look(&self.records, serves);
        }
        self.report.set(&self.config.node, (&desired.info.namespace, &desired.info.name, &desired.uid), true).await?;
        Ok(if serves { Joined::Served } else { Joined::Waits })
    }

    /// A new pod, before its first container starts.
    pub(super) async fn announced(&self, kube: &Kube, event: Event) {
        let result = self.admit(kube, &event.request, event.netns).await;
        let pod = format!("{}/{}", event.request.namespace, event.request.name);
        match &result {
            Ok(Some(Joined::Closed)) => tracing::warn!(pod, "new pod is closed"),
            Ok(Some(_)) => tracing::info!(pod, "new pod is redirected"),
            Ok(None) => tracing::debug!(pod, "new pod is not in the mesh"),
            Err(e) => {
                tracing::warn!(pod, error = format!("{e:#}"), "new pod is held");
                let request = &event.request;
                let text = format!("the pod is held until it can be redirected, and this is tried again: {e:#}");
                self.report.warn((&request.namespace, &request.name, &request.uid), "RedirectionFailed", text);
            }
        }
        // The plugin may have given up; the runtime will call it again.
        let _ = event.answer.send(result.map(drop).map_err(EventError::Held));
    }

    async fn admit(&self, kube: &Kube, request: &Request, netns: Netns) -> anyhow::Result<Option<Joined>> {
        let (pod, namespace) =
            tokio::join!(kube.pod(&request.namespace, &request.name), kube.namespace(&request.namespace));
        let pod = pod?.context("the API server does not know the pod")?;
        anyhow::ensure!(
            request.uid.is_empty() || request.uid == pod.metadata.uid,
            "the API server knows another pod of this name (uid {})",
            pod.metadata.uid
        );
        if !self.rules().wants(namespace?.as_ref(), &pod) {
            return Ok(None);
        }
        let desired = self.rules().pod(&pod, request.ips.clone())?;
        let key = format!("{}/{}", request.namespace, request.name);
        // A sandbox that is made anew, or another pod of the same name: what was there is over.
        let before = self.active.borrow_mut().remove(&key);
        if let Some(before) = before {
            self.hub.del(&before.desired.config.uid);
            self.node.borrow_mut().release(&before.netns, &before.desired.config)?;
        }
        let announced = Announced { pod, ips: request.ips.clone(), at: Instant::now() };
        self.announced.borrow_mut().insert(desired.uid.clone(), announced);
        let joined = self.join_in(&key, &desired, netns, None).await?;
        anyhow::ensure!(joined != Joined::Waits, "no ztunnel serves this node yet; the pod starts once one does");
        Ok(Some(joined))
    }

    /// Takes pods out that live on.
    pub(super) async fn leave(&self, keys: &[String]) {
        if keys.is_empty() {
            return;
        }
        for key in keys {
            self.report_gone(key).await;
        }
        tokio::time::sleep(LEAVE_DELAY).await;
        for key in keys {
            let Some(active) = self.active.borrow_mut().remove(key) else { continue };
            let config = &active.desired.config;
            if let Err(e) = self.node.borrow_mut().release(&active.netns, config) {
                tracing::warn!(pod = key, error = %e, "redirection could not be removed completely");
            }
            self.hub.del(&config.uid);
            self.unmeshed.forget(&config.uid);
            self.records.remove(&config.uid);
            tracing::info!(pod = key, "pod is no longer redirected");
        }
    }

    async fn report_gone(&self, key: &str) {
        let uid = self.active.borrow().get(key).map(|a| a.desired.uid.clone()).unwrap_or_default();
        if let Some((namespace, name)) = key.split_once('/')
            && let Err(e) = self.report.set(&self.config.node, (namespace, name, &uid), false).await
        {
            tracing::warn!(pod = key, error = format!("{e:#}"), "cannot withdraw the pod's status");
        }
    }
}
