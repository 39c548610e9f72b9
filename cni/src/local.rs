//! Follows what the kernel of each redirected pod says of its addresses and devices, and tells the pod's programs: what is
//! local is left alone, and a device that comes later is guarded as the first ones are. Which one, and when, is
//! decided by [`Guards`].

use crate::guards::{Guards, News};
use karst_ebpf::{Error, Node, PodConfig, net::Device};
use karst_rt::{netlink::Watch, netns::Netns};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout_at},
};

/// After a change has been taken up, the next ones may wait this long: a pod that changes its addresses all the time costs
/// its node little.
const PAUSE: Duration = Duration::from_millis(10);
/// What could not be read is read again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// A device's name is shorter than this (IFNAMSIZ).
const MAX_NAME: usize = 16;

/// Follows one pod until dropped.
pub struct Following {
    task: AbortHandle,
    /// What its metrics show.
    pub counts: Rc<Counts>,
}

/// Numbers of one pod.
#[derive(Default)]
pub struct Counts {
    /// Devices that should be guarded and are not.
    pub unguarded: Cell<usize>,
    /// Attempts to guard a device that failed.
    pub failures: Cell<u64>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A pod that is to be followed.
pub struct Followed {
    /// The node's programs.
    pub node: Rc<RefCell<Node>>,
    /// `namespace/name`, for the log.
    pub key: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Its redirection.
    pub config: PodConfig,
}

impl Followed {
    /// Begins to follow the pod, which is redirected by now, with a guard on these devices. `watch` has begun before
    /// that, so no change is missed.
    pub fn follow(self, watch: Watch, guarded: Vec<Device>) -> Following {
        let counts = Rc::new(Counts::default());
        let task = tokio::task::spawn_local(self.run(watch, Guards::new(guarded), counts.clone()));
        Following { task: task.abort_handle(), counts }
    }

    async fn run(self, watch: Watch, mut guards: Guards, counts: Rc<Counts>) {
        // Whether it was said that the pod cannot be read; whether its routing is to be set up again.
        let (mut told, mut reroute) = (false, false);
        loop {
            let again = match self.sync(&mut guards) {
                Ok(()) => None,
                Err(e) => {
                    if !told {
                        tracing::warn!(pod = self.key, error = %e, "the pod's addresses cannot be followed");
                    }
                    told = true;
                    Some(Instant::now() + RETRY)
                }
            };
            told &= again.is_some();
            let due = guards.due(Instant::now());
            if !due.is_empty() {
                self.guard(due, &mut guards, &counts);
                reroute = !self.config.closed;
            }
            counts.unguarded.set(guards.failing());
            // Some kernels drop routes with the device that had the pod's address. It may come later than its device.
            if reroute {
                let routed = self.node.borrow().route(&self.netns, &self.config);
                reroute = routed
                    .inspect_err(|e| tracing::debug!(pod = self.key, error = %e, "routing is set up later"))
                    .is_err();
            }
            sleep(PAUSE).await;
            let changed = match again.or_else(|| guards.next()) {
                None => watch.changed().await,
                Some(at) => match timeout_at(at, watch.changed()).await {
                    Ok(changed) => changed,
                    // It is time; nothing has changed.
                    Err(_) => continue,
                },
            };
            if let Err(e) = changed {
                return tracing::error!(pod = self.key, error = %e, "the pod's addresses are no longer followed");
            }
            guards.changed();
        }
    }

    fn sync(&self, guards: &mut Guards) -> Result<(), Error> {
        let node = self.node.borrow();
        let devices = node.sync_local(&self.netns, &self.config)?;
        // Those that are new are guarded, whatever comes of the question.
        guards.seen(&devices, &[]);
        guards.seen(&devices, &node.lost(&self.netns, &self.config, &devices)?);
        Ok(())
    }

    fn guard(&self, due: Vec<Device>, guards: &mut Guards, counts: &Counts) {
        // The same for all, if the program itself cannot be loaded.
        let each: Vec<(Device, Option<String>)> = match self.node.borrow().guard(&self.netns, &self.config, due.clone())
        {
            Ok(each) => each.into_iter().map(|(d, done)| (d, done.err().map(|e| e.to_string()))).collect(),
            Err(e) => due.into_iter().map(|d| (d, Some(e.to_string()))).collect(),
        };
        for (device, error) in each {
            if error.is_some() {
                counts.failures.set(counts.failures.get() + 1);
            }
            match (guards.tried(&device, error.is_none(), Instant::now()), error) {
                (News::Guarded, _) => {
                    tracing::info!(pod = self.key, %device, "a new device of the pod is guarded, too")
                }
                (News::Restored, _) => {
                    let text = "the guard of a device was gone, or not alone in its place; it is back";
                    tracing::warn!(pod = self.key, %device, "{text}");
                }
                (News::Failed, error) => {
                    let error = error.unwrap_or_default();
                    tracing::warn!(pod = self.key, %device, error, "a device of the pod cannot be guarded; it is tried again");
                }
                (News::StillFailed, _) => {}
            }
        }
    }
}

/// A name in a list of devices that no device can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid device name {0:?}: use for example \"docker0,tap0\"")]
pub struct InvalidDevice(String);

/// Reads a list of devices: names, with commas between.
pub fn devices(list: &str) -> Result<Vec<String>, InvalidDevice> {
    let names = list.split(',').map(str::trim).filter(|n| !n.is_empty());
    names
        .map(|n| {
            let good = n.len() < MAX_NAME && !n.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            if good { Ok(n.to_string()) } else { Err(InvalidDevice(n.into())) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_the_kernel_names_them() {
        assert_eq!(devices("").unwrap(), [""; 0]);
        assert_eq!(devices(" docker0, tap0,").unwrap(), ["docker0", "tap0"]);
        for bad in ["a b", "a/b", "eth0:1", "sixteen-letters-"] {
            assert!(devices(bad).is_err(), "{bad}");
        }
    }
}
