//! Tells on objects, as events, what the replica that leads its revision has found, and to callers' pods why they got no
//! certificate. What is still so is told again before the API server forgets it.

use crate::{authn::Caller, intake::Fault, model::Model};
use karst_kube::{Events, Kube, Notice, Ref};
use std::time::Duration;
use tokio::sync::watch;

/// By then some replica holds the Lease.
const ELECTION: Duration = Duration::from_secs(30);
/// Between two times that all is told; what was told of late is left out then ([`Events`]).
const AGAIN: Duration = Duration::from_secs(600);

/// Tells things.
pub struct Teller {
    events: Events,
    leads: watch::Receiver<bool>,
    all: watch::Sender<Vec<Notice>>,
}

impl Teller {
    /// Starts it.
    pub fn start(kube: &Kube, me: &str, leads: watch::Receiver<bool>) -> Self {
        Self::of(Events::start(kube, "karst-controller", me), leads)
    }

    fn of(events: Events, leads: watch::Receiver<bool>) -> Self {
        let (all, rx) = watch::channel(vec![]);
        tokio::spawn(tell(events.clone(), leads.clone(), rx));
        Self { events, leads, all }
    }

    /// The way for what this replica alone knows.
    pub fn events(&self) -> Events {
        self.events.clone()
    }

    /// All that is to be said of objects now.
    pub fn set(&self, notices: Vec<Notice>) {
        self.all.send_if_modified(|all| {
            let is_other = *all != notices;
            *all = notices;
            is_other
        });
    }

    /// Notes on the ConfigMap with the mesh configuration what is wrong with it, if we hold the Lease, or will soon: at the start
    /// nobody does yet.
    pub fn fault(&self, fault: Fault) {
        let (events, mut leads) = (self.events.clone(), self.leads.clone());
        let Fault { namespace, name, uid, text } = fault;
        let about = Ref { group: "", version: "v1", kind: "ConfigMap", namespace, name };
        tokio::spawn(async move {
            if tokio::time::timeout(ELECTION, leads.wait_for(|l| *l)).await.is_ok_and(|held| held.is_ok()) {
                // However many others wait to be told.
                events.tell_all(vec![Notice { about, uid, reason: "MeshConfig", action: "Read", text }]).await;
            }
        });
    }
}

async fn tell(events: Events, mut leads: watch::Receiver<bool>, mut all: watch::Receiver<Vec<Notice>>) {
    while leads.wait_for(|l| *l).await.is_ok() {
        let notices = all.borrow_and_update().clone();
        let told = async {
            events.tell_all(notices).await;
            tokio::time::sleep(AGAIN).await;
        };
        // Many take hours. Meanwhile some may be mended, or another replica may lead: the newest are told instead, and what has
        // been written of them is not written again.
        let is_over = tokio::select! {
            () = told => false,
            over = async { leads.wait_for(|l| !*l).await.is_err() } => over,
            changed = all.changed() => changed.is_err(),
        };
        if is_over {
            return;
        }
    }
}

/// A caller's pod gets no certificate.
pub fn certificate(caller: &Caller, model: &Model, why: &str) -> Notice {
    let (namespace, name) = (caller.namespace.clone(), caller.pod.clone());
    let uid = model.pods.get(&format!("{namespace}/{name}")).map(|pod| pod.uid.clone()).unwrap_or_default();
    let about = Ref { group: "", version: "v1", kind: "Pod", namespace, name };
    let text = format!("no certificate is signed: {}", karst_core::untrusted::Untrusted(why));
    Notice { about, uid, reason: "CertificateRefused", action: "Sign", text }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::model::PodInfo;
    use std::sync::Arc;

    /// `kubectl describe` finds an event by its object's uid; what a caller sends is no text of ours.
    #[test]
    fn a_refused_certificate_is_told_on_the_pod_that_asked() {
        let pod = PodInfo {
            uid: "u".into(),
            namespace: "a".into(),
            service_account: "s".into(),
            node: "n".into(),
            live: true,
            ips: vec![],
        };
        let mut model = Model::default();
        model.pods.insert("a/p".into(), Arc::new(pod));
        let caller =
            |name: &str| Caller { namespace: "a".into(), account: "s".into(), pod: name.into(), node: "n".into() };
        let told = certificate(&caller("p"), &model, "csr: bad\u{1b}[2J");
        assert_eq!((told.about.to_string().as_str(), told.uid.as_str()), ("Pod a/p", "u"));
        assert!(!told.text.contains('\u{1b}') && told.text.contains("csr: bad"), "{}", told.text);
        assert_eq!(certificate(&caller("q"), &model, "x").uid, "");
    }
}
