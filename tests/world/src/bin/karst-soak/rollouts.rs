//! Rollouts: the next one is ready before the one that serves is told to end.

use crate::{
    running::{Running, outage},
    shared::Shared,
    site::{PROXY_ENV, Role, Site},
};
use anyhow::{Result, ensure};
use karst_world::{Pod, PodSpec, bin};
use std::{
    process::Child,
    sync::Arc,
    time::{Duration, Instant},
};

/// A pod that is ready is told of, and its predecessor told to end, so long after: what a Deployment's controller takes at least.
const NEXT_STEP: Duration = Duration::from_secs(1);

/// A process that is ended if nobody else has seen to it.
struct Ended(Child);

impl Ended {
    /// Has it ended, in order?
    fn is_gone(&mut self) -> Result<bool> {
        let Some(status) = self.0.try_wait()? else { return Ok(false) };
        ensure!(status.success(), "the process that was told to end has ended with {status}");
        Ok(true)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = (self.0.kill(), self.0.wait());
        }
    }
}

/// A node's ztunnel is replaced.
pub struct Ztunnel {
    node: usize,
    port: u16,
    /// The next one, until it serves.
    next: Option<Child>,
    /// The one before, until it has ended.
    before: Option<Ended>,
}

impl Ztunnel {
    /// The next one is started.
    pub fn begin(site: &mut Site, node: usize) -> Result<Self> {
        let port = site.other_port(node);
        let next = Some(site.world.start_ztunnel_at(node, port)?);
        Ok(Self { node, port, next, before: None })
    }
}

impl Running for Ztunnel {
    fn poll(&mut self, site: &mut Site, _shared: &Arc<Shared>, _is_over: bool) -> Result<bool> {
        if let Some(before) = &mut self.before {
            return before.is_gone();
        }
        if let Some(next) = &mut self.next {
            ensure!(next.try_wait()?.is_none(), "the next ztunnel of node {} has ended", self.node);
        }
        if site.is_ready_at(self.node, self.port)
            && let Some(next) = self.next.take()
        {
            self.before = Some(Ended(site.world.succeed_ztunnel(self.node, next)));
            site.has_port(self.node, self.port);
        }
        Ok(false)
    }

    fn awaits(&self) -> &'static str {
        if self.before.is_some() { "the ztunnel before to end" } else { "the next ztunnel to be ready" }
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        // Only if it never came to serve.
        drop(self.next.take().map(Ended));
    }
}

/// The pod of the waypoint or gateway is replaced.
pub struct Proxy {
    role: Role,
    next: Pod,
    ready: Option<Instant>,
    before: Option<(Pod, Ended)>,
}

impl Proxy {
    /// The next pod is started.
    pub fn begin(site: &mut Site, role: Role) -> Result<Self> {
        let spec = PodSpec { name: format!("{}-{}", role.name(), site.number()), ..site.proxy(role).spec.clone() };
        let next = site.fresh_pod(spec, false);
        site.world.launch_waypoint(&next, &bin("karst-waypoint"), &PROXY_ENV)?;
        Ok(Self { role, next, ready: None, before: None })
    }

    /// The one before is not chosen any more, and told to end, at the same time: as kubelet and the endpoints' controller do.
    fn succeed(&mut self, site: &mut Site, shared: &Shared) {
        let before = site.succeed(self.role, &self.next);
        site.world.write_pod(&before, false);
        if self.role == Role::Gateway {
            *shared.gateways.lock().unwrap() = vec![site.gateway_at()];
        }
        let process = Ended(site.world.leave_waypoint(&before));
        self.before = Some((before, process));
    }
}

impl Running for Proxy {
    fn poll(&mut self, site: &mut Site, shared: &Arc<Shared>, _is_over: bool) -> Result<bool> {
        if let Some((pod, process)) = &mut self.before {
            if !process.is_gone()? {
                return Ok(false);
            }
            site.world.drop_pod(pod)?;
            // Each pod has a log of its own.
            site.forget_log(&format!("waypoint-{}.log", pod.spec.name));
            return Ok(true);
        }
        match self.ready {
            None if site.world.is_waypoint_ready(&self.next) => {
                site.world.write_pod(&self.next, true);
                self.ready = Some(Instant::now());
            }
            Some(since) if since.elapsed() >= NEXT_STEP => self.succeed(site, shared),
            None | Some(_) => {}
        }
        Ok(false)
    }

    fn awaits(&self) -> &'static str {
        if self.before.is_some() { "the proxy before to end" } else { "the next proxy to be ready" }
    }
}

/// The controller ends in order and is started again: its files are one, so two of them would not do.
pub fn controller(site: &mut Site) -> Result<Box<dyn Running>> {
    site.world.stop_controller(libc::SIGTERM);
    site.world.start_controller()?;
    Ok(outage(|_| Ok(())))
}
