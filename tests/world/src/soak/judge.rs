//! What a fault excuses. Whatever is not excused here is a failure of the mesh; other bytes, and plaintext, nothing excuses.

use super::faults::Fault;
use std::{fmt, time::Duration};

/// Between whom a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// New connections within node 0.
    SameNode,
    /// From node 0 to node 1.
    OtherNode,
    /// From node 0 to node 2, whose processes are left alone.
    CalmNode,
    /// From node 0 to a service with endpoints on nodes 0 and 1.
    Service,
    /// Connections within node 0 that stay open.
    HeldSame,
    /// From node 0 to node 1, and stay open.
    HeldOther,
    /// Requests through the waypoint on node 0, to backends on nodes 0 and 1.
    Waypoint,
    /// Requests through a waypoint on node 2, to a backend there.
    CalmWaypoint,
    /// Requests from outside of the mesh through the gateway on node 0, to the same.
    Gateway,
    /// From node 0 to a pod that has just come to a node.
    NewPod(usize),
}

/// All that are loaded from the start on.
pub const PLACES: [Place; 9] = [
    Place::SameNode,
    Place::OtherNode,
    Place::CalmNode,
    Place::Service,
    Place::HeldSame,
    Place::HeldOther,
    Place::Waypoint,
    Place::CalmWaypoint,
    Place::Gateway,
];

impl Place {
    /// Is a node's ztunnel on the way?
    fn passes(self, node: usize) -> bool {
        match self {
            Self::SameNode | Self::HeldSame => node == 0,
            Self::OtherNode | Self::HeldOther | Self::Service | Self::Waypoint | Self::Gateway => node < 2,
            Self::CalmNode | Self::CalmWaypoint => node == 0 || node == 2,
            Self::NewPod(of) => node == 0 || node == of,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameNode => "new connections, same node",
            Self::OtherNode => "new connections, other node",
            Self::CalmNode => "new connections, node without faults",
            Self::Service => "new connections, service on both nodes",
            Self::HeldSame => "held connections, same node",
            Self::HeldOther => "held connections, other node",
            Self::Waypoint => "requests through the waypoint",
            Self::CalmWaypoint => "requests through a waypoint without faults",
            Self::Gateway => "requests through the gateway",
            Self::NewPod(_) => "calls of a pod that has just come",
        })
    }
}

/// How a call has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection was refused.
    Refused,
    /// There was no answer in time.
    Late,
    /// An open connection was cut.
    Cut,
    /// One that is kept for the next request has ended between two of them. (Clients ask again; but somebody has ended it.)
    Ended,
    /// Another status than 200.
    Status(u16),
    /// Other bytes came than were due.
    Wrong,
}

/// A call that has failed. Times count from the start of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Between whom.
    pub place: Place,
    /// How.
    pub failure: Failure,
    /// When it began; of a held connection, when it was last seen whole.
    pub began: Duration,
    /// When it was seen that it had failed.
    pub ended: Duration,
    /// What was seen.
    pub text: String,
}

/// When a fault really was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Which.
    pub fault: Fault,
    /// When it began.
    pub from: Duration,
    /// When it was over; None: it goes on.
    pub to: Option<Duration>,
}

/// What an end of a process needs until each of its connections is cut, and who uses it sees that.
const NOTICED: Duration = Duration::from_secs(1);
/// TCP sends again, twice as late each time, and certificates that were due are fetched.
const RECOVERS: Duration = Duration::from_secs(20);
/// A new pod that has waited for a part is served so long after it is back.
const CATCHES_UP: Duration = Duration::from_secs(15);
/// A call that begins with a fault may be under way in it.
const TOGETHER: Duration = Duration::from_millis(200);

impl Window {
    /// Did a call meet it, or the time `after` it?
    fn meets(&self, call: &Call, after: Duration) -> bool {
        call.ended >= self.from && self.to.is_none_or(|to| call.began <= to + after)
    }

    /// Does it excuse a call's failure?
    fn excuses(&self, call: &Call) -> bool {
        let is_answer = matches!(call.failure, Failure::Status(502..=504));
        let is_cut = matches!(call.failure, Failure::Cut | Failure::Ended) || is_answer;
        let has_ended = call.failure == Failure::Ended && self.meets(call, NOTICED);
        let new_on = |node: Option<usize>| match call.place {
            Place::NewPod(of) => node.is_none_or(|node| node == of) && self.meets(call, CATCHES_UP),
            _ => false,
        };
        match self.fault {
            // What the killed process carried is cut. Nobody is refused, nobody waits in vain, and what begins later is served.
            Fault::KillWorker(node) => {
                is_cut && call.place.passes(node) && call.ended >= self.from && call.began <= self.from + NOTICED
            }
            Fault::LoseNode if matches!(call.failure, Failure::Status(_)) && !is_answer => false,
            Fault::LoseNode => match call.place {
                // What the lost node had is lost; what begins later goes to the other endpoint.
                Place::Service => call.began <= self.from + TOGETHER && self.meets(call, RECOVERS),
                Place::SameNode | Place::HeldSame | Place::CalmNode | Place::CalmWaypoint => false,
                Place::NewPod(node) => node == 1 && self.meets(call, RECOVERS),
                Place::OtherNode | Place::HeldOther | Place::Waypoint | Place::Gateway => self.meets(call, RECOVERS),
            },
            // What is known goes on; who is new waits until the controller, or its node's agent, can tell of it.
            Fault::RollController | Fault::KillController | Fault::PauseController | Fault::FillDisk => new_on(None),
            Fault::KillAgent(node) => new_on(Some(node)),
            // What clients keep for the next request ends, and they ask again. Nothing else does.
            Fault::RollWaypoint => has_ended && call.place == Place::Waypoint,
            Fault::RollGateway => has_ended && call.place == Place::Gateway,
            Fault::RollZtunnel(node) => has_ended && call.place.passes(node),
            Fault::ChurnPod(_) | Fault::ChurnPolicy | Fault::ChurnRoute(_) | Fault::StepClock(..) | Fault::StallApi => {
                false
            }
        }
    }
}

/// The fault that excuses a failed call. None: it should not have failed.
pub fn excuse<'a>(call: &Call, windows: &'a [Window]) -> Option<&'a Window> {
    if call.failure == Failure::Wrong {
        return None;
    }
    windows.iter().find(|window| window.excuses(call))
}
