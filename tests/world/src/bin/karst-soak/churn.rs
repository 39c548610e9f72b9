//! What users do all day: pods, policies and routes come and go. Each is over when it was seen to be in force.

use crate::{
    load,
    objects::{self, ROUTED},
    oracle,
    running::Running,
    shared::Shared,
    site::Site,
};
use anyhow::Result;
use karst_world::{Pod, PodSpec, app::Echo, soak::judge::Place, web};
use std::{sync::Arc, thread::JoinHandle, time::Duration};

/// So often a new pod is called.
const CALLS: usize = 3;
/// Between two looks.
const BETWEEN: Duration = Duration::from_millis(100);
/// A policy is obeyed when that was seen so often in a row: a call may fail for another reason.
const IN_A_ROW: usize = 3;

/// Looks again and again, beside everything else, until it is so.
fn until(shared: &Arc<Shared>, mut is_so: impl FnMut() -> bool + Send + 'static) -> JoinHandle<()> {
    let shared = shared.clone();
    std::thread::spawn(move || {
        while shared.goes_on() && !is_so() {
            std::thread::sleep(BETWEEN);
        }
    })
}

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
            // The controller may not have seen yet what the agent has done.
            if site.world.is_redirected(&self.pod) && site.is_member_to_the_caller(&self.pod) {
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

    fn awaits(&self) -> &'static str {
        if self.calls.is_none() {
            "the agent to take the pod in, and the caller's node to know"
        } else {
            "the calls of the pod"
        }
    }
}

/// A policy that comes, is obeyed, and goes.
pub struct Policy {
    step: Step,
    seen: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy)]
enum Step {
    Comes,
    Stays,
    Goes,
}

impl Policy {
    /// It comes.
    pub fn begin(site: &Site) -> Result<Self> {
        site.world.write("churn", &objects::policy())?;
        Ok(Self { step: Step::Comes, seen: None })
    }
}

/// Looks whether the gate is open, or closed.
fn gate(site: &Site, shared: &Arc<Shared>, is_open: bool) -> JoinHandle<()> {
    let (from, to, mut count) = (site.caller.clone(), site.gate(), 0);
    until(shared, move || {
        count = if oracle::is_served(&from, to) == is_open { count + 1 } else { 0 };
        count == IN_A_ROW
    })
}

impl Running for Policy {
    fn poll(&mut self, site: &mut Site, shared: &Arc<Shared>, is_over: bool) -> Result<bool> {
        let is_seen = match &self.seen {
            Some(look) => look.is_finished(),
            None => {
                self.seen = Some(gate(site, shared, matches!(self.step, Step::Goes)));
                false
            }
        };
        match self.step {
            Step::Comes if is_seen => self.step = Step::Stays,
            Step::Stays if is_over => {
                site.world.erase("churn")?;
                (self.step, self.seen) = (Step::Goes, None);
            }
            Step::Goes if is_seen => return Ok(true),
            Step::Comes | Step::Stays | Step::Goes => {}
        }
        Ok(false)
    }

    fn awaits(&self) -> &'static str {
        match self.step {
            Step::Comes => "the policy to be obeyed",
            Step::Stays => "nothing",
            Step::Goes => "the policy to be forgotten",
        }
    }
}

/// A route that changes, until an answer has come by it.
pub struct Route {
    number: u64,
    seen: Option<JoinHandle<()>>,
}

impl Route {
    /// It changes: so many per cent to the first of two backends.
    pub fn begin(site: &mut Site, weight: u8) -> Result<Self> {
        let number = site.number();
        site.world.write("routes", &objects::routes(weight, number))?;
        Ok(Self { number, seen: None })
    }
}

impl Running for Route {
    fn poll(&mut self, site: &mut Site, shared: &Arc<Shared>, is_over: bool) -> Result<bool> {
        let number = self.number.to_string();
        let seen = self.seen.get_or_insert_with(|| {
            let (from, to) = (site.caller.clone(), site.shop());
            until(shared, move || web::ask(&from, to, "shop", "/", &[]).is_ok_and(|a| a.header(ROUTED) == number))
        });
        Ok(is_over && seen.is_finished())
    }

    fn awaits(&self) -> &'static str {
        "an answer by the route"
    }
}
