//! What users do all day: pods come and go. (Policies and routes do, too: `direct.rs`.)

use crate::{load, running::Running, shared::Shared, site::Site};
use anyhow::Result;
use karst_world::{Pod, PodSpec, app::Echo, soak::judge::Place};
use std::{sync::Arc, thread::JoinHandle};

/// So often a new pod is called.
const CALLS: usize = 3;

/// A pod that comes, is called once it is in the mesh, and goes when its time is over.
pub struct NewPod {
    pod: Pod,
    echo: Option<Echo>,
    calls: Option<JoinHandle<()>>,
}

impl NewPod {
    /// It comes.
    pub fn begin(site: &mut Site, node: usize) -> Self {
        let name = format!("new-{}", site.number());
        let pod = site.fresh_pod(PodSpec::new("app", &name, node), true);
        let echo = Some(Echo::start(&pod, 8080, ""));
        Self { pod, echo, calls: None }
    }
}

impl Running for NewPod {
    fn poll(&mut self, site: &mut Site, shared: &Arc<Shared>, is_over: bool) -> Result<bool> {
        let Some(calls) = &self.calls else {
            if site.world.is_redirected(&self.pod) {
                let (caller, pod, shared) = (site.caller.clone(), self.pod.clone(), shared.clone());
                let place = Place::NewPod(pod.spec.node);
                let call = move || (0..CALLS).for_each(|_| load::call(&caller, place, pod.at(8080), &shared));
                self.calls = Some(std::thread::spawn(call));
            }
            return Ok(false);
        };
        if !is_over || !calls.is_finished() {
            return Ok(false);
        }
        self.echo.take();
        site.world.drop_pod(&self.pod)?;
        Ok(true)
    }
}
