//! Who of several replicas writes: the holder of a Lease, by the rules of Kubernetes' own controllers. A holder that has
//! not renewed for the lease's duration, measured on the observer's own clock, has lost it.

use crate::Kube;
use anyhow::Context;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{Api, api::PostParams};
use std::time::Duration;
use tokio::{sync::watch, time::Instant};

/// A lease that is not renewed for this long may be taken (that of Kubernetes' controllers).
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for this long stops to write.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at it.
const PERIOD: Duration = Duration::from_secs(2);

/// What was last seen of the lease, and since when it has been so.
struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    since: Instant,
}

/// Takes part in the election for ever. `leads` says whether we hold the lease.
pub async fn elect(kube: Kube, namespace: String, name: String, me: String, leads: watch::Sender<bool>) {
    let api: Api<Lease> = Api::namespaced(kube.client.clone(), &namespace);
    let mut seen: Option<Seen> = None;
    let mut renewed: Option<Instant> = None;
    loop {
        // A request that hangs must not keep us the holder.
        let tried = tokio::time::timeout(PERIOD * 2, step(&api, &name, &me, &mut seen)).await;
        match tried.unwrap_or_else(|_| Err(anyhow::anyhow!("the API server does not answer"))) {
            Ok(true) => {
                renewed = Some(Instant::now());
                if set(&leads, true) {
                    tracing::info!(lease = format!("{namespace}/{name}"), holder = me, "this replica writes statuses");
                }
            }
            Ok(false) => {
                renewed = None;
                if set(&leads, false) {
                    tracing::info!(lease = format!("{namespace}/{name}"), "another replica writes statuses now");
                }
            }
            Err(e) => {
                tracing::debug!(error = format!("{e:#}"), "lease");
                if renewed.is_none_or(|t| t.elapsed() >= DEADLINE) && set(&leads, false) {
                    tracing::warn!(error = format!("{e:#}"), "the lease cannot be renewed: statuses wait");
                }
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// True if it was otherwise; only then is anybody told.
fn set(leads: &watch::Sender<bool>, now: bool) -> bool {
    leads.send_if_modified(|l| std::mem::replace(l, now) != now)
}

/// Gives the lease back, so that another replica need not wait for its end.
pub async fn release(kube: &Kube, namespace: &str, name: &str, me: &str) {
    let api: Api<Lease> = Api::namespaced(kube.client.clone(), namespace);
    if let Ok(Some(mut lease)) = api.get_opt(name).await
        && let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(me))
    {
        spec.holder_identity = Some(String::new());
        let _ = api.replace(name, &PostParams::default(), &lease).await;
    }
}

/// Takes or renews the lease, if we may. True: it is ours.
async fn step(api: &Api<Lease>, name: &str, me: &str, seen: &mut Option<Seen>) -> anyhow::Result<bool> {
    let Some(mut lease) = api.get_opt(name).await.context("the lease cannot be read")? else {
        let mut l = Lease::default();
        l.metadata.name = Some(name.into());
        l.spec = Some(spec(me, &LeaseSpec::default()));
        return written(api.create(&PostParams::default(), &l).await);
    };
    let old = lease.spec.take().unwrap_or_default();
    let holder = old.holder_identity.clone().unwrap_or_default();
    if seen.as_ref().is_none_or(|s| s.holder != holder || s.renewed != old.renew_time) {
        *seen = Some(Seen { holder: holder.clone(), renewed: old.renew_time.clone(), since: Instant::now() });
    }
    let over = seen.as_ref().is_some_and(|s| s.since.elapsed() >= DURATION);
    if holder != me && !holder.is_empty() && !over {
        return Ok(false);
    }
    lease.spec = Some(spec(me, &old));
    // With the resourceVersion that was read: of two that try, one fails.
    written(api.replace(name, &PostParams::default(), &lease).await)
}

fn written(result: kube::Result<Lease>) -> anyhow::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
        Err(e) => Err(e).context("the lease cannot be written"),
    }
}

fn spec(me: &str, old: &LeaseSpec) -> LeaseSpec {
    let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
    let mine = old.holder_identity.as_deref() == Some(me);
    let before = old.lease_transitions.unwrap_or(-1);
    LeaseSpec {
        holder_identity: Some(me.into()),
        lease_duration_seconds: Some(DURATION.as_secs() as i32),
        acquire_time: if mine { old.acquire_time.clone() } else { Some(now.clone()) },
        renew_time: Some(now),
        lease_transitions: Some(if mine { before.max(0) } else { before + 1 }),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transitions_count_the_changes_of_holder() {
        let first = spec("a", &LeaseSpec::default());
        let renewed = spec("a", &first);
        let taken = spec("b", &renewed);
        let counts = [&first, &renewed, &taken].map(|s| s.lease_transitions);
        assert_eq!(counts, [Some(0), Some(0), Some(1)]);
        assert_eq!(first.acquire_time, renewed.acquire_time);
        assert_eq!(taken.holder_identity.as_deref(), Some("b"));
    }
}
