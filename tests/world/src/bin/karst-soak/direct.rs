//! Carries the schedule out: begins what is due, asks what goes on, and notes when each fault really was.

use crate::{
    churn, outages, rollouts,
    running::Running,
    shared::Shared,
    site::{Role, Site},
};
use anyhow::Result;
use karst_world::soak::{faults::Fault, schedule::Planned};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// A fault that is not over so long after its time never will be.
const PATIENCE: Duration = Duration::from_secs(90);

/// See above.
pub struct Director {
    waiting: VecDeque<Planned>,
    going: Vec<Going>,
    /// What faults that are over have taken, until when.
    resting: Vec<(Fault, Duration)>,
    /// By kind: how many are planned, and how many are over.
    counts: BTreeMap<&'static str, (usize, usize)>,
    broken: Vec<String>,
}

struct Going {
    fault: Fault,
    until: Duration,
    window: usize,
    running: Box<dyn Running>,
}

impl Director {
    /// With a schedule.
    pub fn new(plan: Vec<Planned>) -> Self {
        let mut counts: BTreeMap<&'static str, (usize, usize)> = BTreeMap::new();
        for planned in &plan {
            counts.entry(planned.fault.kind()).or_default().0 += 1;
        }
        Self { waiting: plan.into(), going: vec![], resting: vec![], counts, broken: vec![] }
    }

    /// Is every fault over?
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.going.is_empty()
    }

    /// By kind: how many were planned, and how many are over.
    pub fn counts(&self) -> &BTreeMap<&'static str, (usize, usize)> {
        &self.counts
    }

    /// What could not be carried out, in words.
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    /// The run is over. Gives what could not be carried out, and what was not.
    pub fn end(&self) -> Vec<String> {
        let going =
            |going: &Going| format!("{}: goes on at the end: waits for {}", going.fault, going.running.awaits());
        let waiting =
            |planned: &Planned| format!("{}, at {:.1} s: could not begin", planned.fault, planned.at.as_secs_f64());
        let unfinished = self.going.iter().map(going).chain(self.waiting.iter().map(waiting));
        self.broken.iter().cloned().chain(unfinished).collect()
    }

    /// Does what is due.
    pub fn step(&mut self, site: &mut Site, shared: &Arc<Shared>) {
        for going in std::mem::take(&mut self.going) {
            self.ask(going, site, shared);
        }
        let now = shared.now();
        self.resting.retain(|(_, until)| *until > now);
        let mut at = 0;
        while let Some(planned) = self.waiting.get(at).copied().filter(|planned| planned.at <= now) {
            // One that cannot begin yet goes on waiting, and those after it do not wait for it.
            if self.may_begin(planned.fault, site) {
                self.waiting.remove(at);
                self.begin(planned, site, shared);
            } else {
                at += 1;
            }
        }
    }

    /// Things may have taken longer than planned: what the schedule keeps apart is kept apart here, too.
    fn may_begin(&self, fault: Fault, site: &Site) -> bool {
        let is_ready = match fault {
            Fault::KillWorker(node) => site.has_spare(node),
            _ => true,
        };
        let mut held = self.going.iter().map(|going| going.fault).chain(self.resting.iter().map(|(fault, _)| *fault));
        is_ready && !held.any(|other| other.excludes(fault))
    }

    fn begin(&mut self, planned: Planned, site: &mut Site, shared: &Arc<Shared>) {
        let fault = planned.fault;
        shared.say(&format!("{fault}, for {} ms", planned.lasts.as_millis()));
        let window = shared.open(fault);
        match begin(fault, site) {
            Ok(running) => {
                let until = shared.now() + planned.lasts;
                self.going.push(Going { fault, until, window, running });
            }
            Err(e) => self.has_broken(fault, window, &format!("{e:#}"), shared),
        }
    }

    fn ask(&mut self, mut going: Going, site: &mut Site, shared: &Arc<Shared>) {
        let now = shared.now();
        match going.running.poll(site, shared, now >= going.until) {
            Ok(true) => {
                shared.close(going.window);
                self.resting.push((going.fault, shared.now() + going.fault.rest()));
                if let Some((_, over)) = self.counts.get_mut(going.fault.kind()) {
                    *over += 1;
                }
            }
            Ok(false) if now > going.until + PATIENCE => {
                let why = format!(
                    "is not over {} s after its time: waits for {}",
                    PATIENCE.as_secs(),
                    going.running.awaits()
                );
                self.has_broken(going.fault, going.window, &why, shared);
            }
            Ok(false) => self.going.push(going),
            Err(e) => self.has_broken(going.fault, going.window, &format!("{e:#}"), shared),
        }
    }

    fn has_broken(&mut self, fault: Fault, window: usize, why: &str, shared: &Shared) {
        shared.close(window);
        let text = format!("{fault}, at {:.1} s: {why}", shared.now().as_secs_f64());
        shared.say(&format!("FAILED: {text}"));
        self.broken.push(text);
    }
}

fn begin(fault: Fault, site: &mut Site) -> Result<Box<dyn Running>> {
    let running: Box<dyn Running> = match fault {
        Fault::ChurnPod(node) => Box::new(churn::NewPod::begin(site, node)),
        Fault::ChurnPolicy => Box::new(churn::Policy::begin(site)?),
        Fault::ChurnRoute(weight) => Box::new(churn::Route::begin(site, weight)?),
        Fault::RollZtunnel(node) => Box::new(rollouts::Ztunnel::begin(site, node)?),
        Fault::RollWaypoint => Box::new(rollouts::Proxy::begin(site, Role::Waypoint)?),
        Fault::RollGateway => Box::new(rollouts::Proxy::begin(site, Role::Gateway)?),
        Fault::RollController => rollouts::controller(site)?,
        Fault::KillWorker(node) => Box::new(outages::Takeover::begin(site, node)?),
        Fault::KillAgent(node) => outages::without_agent(site, node),
        Fault::KillController => outages::without_controller(site),
        Fault::PauseController => outages::paused_controller(site),
        Fault::LoseNode => outages::unplugged(site, 1)?,
        Fault::StepClock(clock, by_ms) => Box::new(outages::WrongClock::begin(site, clock, by_ms)?),
        Fault::FillDisk => Box::new(outages::FullDisk::begin(site)?),
        Fault::StallApi => outages::stalled_api(site)?,
    };
    Ok(running)
}
