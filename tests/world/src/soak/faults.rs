//! The faults of a soak, how long they last, and which of them must not meet.

use std::{fmt, ops::RangeInclusive, time::Duration};

/// Whose time of day is set. (Intervals and timers go by the monotonic clock, which nobody can set.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Of a node: its agent, its ztunnel, and the waypoints and gateways on it.
    Node(usize),
    /// Of the controller.
    Controller,
}

/// What is done to the mesh. Nodes are 0 and 1, and with pods 2, too: node 2 keeps its processes, so that their memory can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A pod comes to a node, is called, and goes.
    ChurnPod(usize),
    /// A policy comes, is obeyed, and goes. It forbids what nobody else calls.
    ChurnPolicy,
    /// The waypoints' route changes: so many per cent to the first of two backends. It is over when an answer shows it.
    ChurnRoute(u8),
    /// A node's ztunnel is replaced.
    RollZtunnel(usize),
    /// The waypoint's pod is replaced.
    RollWaypoint,
    /// The gateway's pod is replaced.
    RollGateway,
    /// The controller ends in order and is started again.
    RollController,
    /// kill -9 of the process that serves a node.
    KillWorker(usize),
    /// kill -9 of a node's agent.
    KillAgent(usize),
    /// kill -9 of the controller.
    KillController,
    /// The controller stands still (SIGSTOP).
    PauseController,
    /// Node 1 loses its link.
    LoseNode,
    /// A clock is wrong by so many milliseconds, then right again.
    StepClock(Clock, i16),
    /// The disk with the logs and the agents' state is full.
    FillDisk,
    /// The API server stalls: what is written is seen by nobody until it goes on.
    StallApi,
}

/// What a fault takes, or needs as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Api,
    Control,
    Ztunnel(usize),
    Agent(usize),
    Pods(usize),
    Waypoint,
    Gateway,
    Policies,
    Routes,
    Clocks,
    Disk,
}

/// Each kind of fault once, with its nodes; what is drawn by chance stands for itself.
pub const KINDS: [Fault; 21] = [
    Fault::ChurnPod(0),
    Fault::ChurnPod(1),
    Fault::ChurnPod(2),
    Fault::ChurnPolicy,
    Fault::ChurnRoute(50),
    Fault::RollZtunnel(0),
    Fault::RollZtunnel(1),
    Fault::RollWaypoint,
    Fault::RollGateway,
    Fault::RollController,
    Fault::KillWorker(0),
    Fault::KillWorker(1),
    Fault::KillAgent(0),
    Fault::KillAgent(1),
    Fault::KillController,
    Fault::PauseController,
    Fault::LoseNode,
    Fault::StepClock(Clock::Node(0), 0),
    Fault::StepClock(Clock::Controller, 0),
    Fault::FillDisk,
    Fault::StallApi,
];

impl Fault {
    /// What it is called in reports.
    pub fn kind(self) -> &'static str {
        match self {
            Self::ChurnPod(_) => "pod comes and goes",
            Self::ChurnPolicy => "policy comes and goes",
            Self::ChurnRoute(_) => "route changes",
            Self::RollZtunnel(_) => "rollout of ztunnel",
            Self::RollWaypoint => "rollout of the waypoint",
            Self::RollGateway => "rollout of the gateway",
            Self::RollController => "rollout of the controller",
            Self::KillWorker(_) => "kill -9 of ztunnel's worker",
            Self::KillAgent(_) => "kill -9 of the agent",
            Self::KillController => "kill -9 of the controller",
            Self::PauseController => "SIGSTOP of the controller",
            Self::LoseNode => "link of node 1 lost",
            Self::StepClock(..) => "clock stepped",
            Self::FillDisk => "disk full",
            Self::StallApi => "API server stalls",
        }
    }

    /// How long it lasts, milliseconds; how long it really takes is longer where something must come up again.
    ///
    /// A certificate of 20 s is renewed when 8 s or more of it are left: who signs must not be away for longer.
    pub fn lasts(self) -> RangeInclusive<u64> {
        match self {
            Self::ChurnPod(_) => 4_000..=10_000,
            Self::ChurnPolicy => 1_000..=10_000,
            Self::ChurnRoute(_) => 500..=4_000,
            // Over as soon as the next one has taken over.
            Self::RollZtunnel(_) | Self::RollWaypoint | Self::RollGateway => 0..=0,
            Self::RollController | Self::KillWorker(_) => 0..=0,
            Self::KillAgent(_) => 200..=3_000,
            Self::KillController => 200..=3_000,
            Self::PauseController => 1_000..=4_000,
            Self::LoseNode => 4_000..=8_000,
            Self::StepClock(..) => 4_000..=10_000,
            Self::FillDisk => 3_000..=10_000,
            Self::StallApi => 2_000..=6_000,
        }
    }

    /// How long what it has taken is left alone afterwards.
    pub fn rest(self) -> Duration {
        Duration::from_secs(match self {
            Self::ChurnPod(_) | Self::ChurnPolicy | Self::ChurnRoute(_) | Self::FillDisk => 1,
            Self::StallApi => 2,
            Self::RollZtunnel(_) | Self::RollWaypoint | Self::RollGateway => 4,
            Self::KillAgent(_) => 5,
            // A spare starts, and learns of the node's certificates.
            Self::KillWorker(_) => 8,
            // Certificates that were due are there again.
            Self::RollController | Self::KillController | Self::PauseController => 8,
            Self::LoseNode => 12,
            // What was issued by the wrong clock is renewed.
            Self::StepClock(..) => 14,
        })
    }

    /// How long it is planned to take up its parts at most, its rest included.
    pub fn holds(self, lasts: Duration) -> Duration {
        let comes_up = match self {
            // The one before serves what clients keep open, for as long as they do.
            Self::RollZtunnel(_) | Self::RollWaypoint | Self::RollGateway => Duration::from_secs(10),
            // Once there is a spare.
            Self::KillWorker(_) => Duration::from_secs(6),
            Self::RollController => Duration::from_secs(3),
            // Until it is seen.
            Self::ChurnPolicy => Duration::from_secs(3),
            Self::ChurnRoute(_) => Duration::from_secs(2),
            Self::ChurnPod(_)
            | Self::KillAgent(_)
            | Self::KillController
            | Self::PauseController
            | Self::LoseNode
            | Self::StepClock(..)
            | Self::FillDisk
            | Self::StallApi => Duration::ZERO,
        };
        lasts + comes_up + self.rest()
    }

    /// What it has for itself.
    fn takes(self) -> &'static [Part] {
        const ZTUNNELS: [&[Part]; 2] = [&[Part::Ztunnel(0)], &[Part::Ztunnel(1)]];
        const AGENTS: [&[Part]; 2] = [&[Part::Agent(0)], &[Part::Agent(1)]];
        const PODS: [&[Part]; 3] = [&[Part::Pods(0)], &[Part::Pods(1)], &[Part::Pods(2)]];
        match self {
            Self::ChurnPod(node) => PODS.get(node).copied().unwrap_or_default(),
            Self::ChurnPolicy => &[Part::Policies],
            Self::ChurnRoute(_) => &[Part::Routes],
            Self::RollZtunnel(node) | Self::KillWorker(node) => ZTUNNELS.get(node).copied().unwrap_or_default(),
            Self::RollWaypoint => &[Part::Waypoint],
            Self::RollGateway => &[Part::Gateway],
            Self::KillAgent(node) => AGENTS.get(node).copied().unwrap_or_default(),
            // A node without a link has no controller either.
            Self::RollController | Self::KillController | Self::PauseController | Self::LoseNode => &[Part::Control],
            Self::StepClock(..) => &[Part::Control, Part::Clocks],
            Self::FillDisk => &[Part::Disk],
            Self::StallApi => &[Part::Api],
        }
    }

    /// What must be there as long as it lasts: in a rollout of a proxy, it must be written, and told by the controller, that the new
    /// one is there before the old one has ended; no platform waits for that.
    fn needs(self) -> &'static [Part] {
        match self {
            Self::RollWaypoint | Self::RollGateway => &[Part::Api, Part::Control],
            _ => &[],
        }
    }

    /// May these two not be at the same time?
    pub fn excludes(self, other: Self) -> bool {
        let meet = |a: &[Part], b: &[Part]| a.iter().any(|part| b.contains(part));
        meet(self.takes(), other.takes()) || meet(self.takes(), other.needs()) || meet(self.needs(), other.takes())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::ChurnPod(node) | Self::RollZtunnel(node) | Self::KillWorker(node) | Self::KillAgent(node) => {
                write!(f, " (node {node})")
            }
            Self::ChurnRoute(weight) => write!(f, " ({weight} %)"),
            Self::StepClock(Clock::Node(node), ms) => write!(f, " (node {node}, {ms} ms)"),
            Self::StepClock(Clock::Controller, ms) => write!(f, " (controller, {ms} ms)"),
            _ => Ok(()),
        }
    }
}
