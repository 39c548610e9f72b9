//! A way under way: its steps so far, and what has come of them.

use crate::{
    answer::{Arrival, Cause, Explanation, Object, Outcome, Proxy, ProxyKind, Stage, Step, Verdict},
    call::Call,
    l4::step,
    parties::{Destination, Source},
    world::World,
};
use karst_core::Identity;

/// A way under way.
pub(crate) struct Way {
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) answer: Explanation,
    pub(crate) call: Call,
    /// The waypoint or gateway that was last on the way: it is whom endpoints see.
    pub(crate) proxy: Option<Identity>,
    /// Ways on which it is answered, and on which it is refused.
    good: usize,
    bad: usize,
    is_unknown: bool,
}

impl Way {
    pub(crate) fn new(call: &Call, source: Source, destination: Destination) -> Self {
        let answer = Explanation {
            verdict: Verdict::Unknown,
            summary: String::new(),
            cause: None,
            status: None,
            policy: None,
            service: destination.service.as_ref().map(|s| s.key.to_string()),
            steps: vec![],
            endpoints: vec![],
            proxies: vec![],
            fix: None,
        };
        Self { source, destination, answer, call: call.clone(), proxy: None, good: 0, bad: 0, is_unknown: false }
    }

    pub(crate) fn push(&mut self, step: Step) {
        // Endpoints alike are told of once.
        if !self.answer.steps.contains(&step) {
            self.answer.steps.push(step);
        }
    }

    /// A proxy has a say; once is enough.
    pub(crate) fn meet(&mut self, kind: ProxyKind, name: impl Into<String>) {
        let proxy = Proxy { kind, name: name.into() };
        if !proxy.name.is_empty() && !self.answer.proxies.contains(&proxy) {
            self.answer.proxies.push(proxy);
        }
    }

    /// It ends here.
    pub(crate) fn refuse(&mut self, stage: Stage, object: Option<Object>, why: impl Into<String>, cause: Cause) {
        self.push(step(stage, Outcome::Refuse, object, why));
        self.answer.cause.get_or_insert(cause);
        self.bad += 1;
    }

    /// One of several destinations ends so.
    pub(crate) fn branch_refused(&mut self, refused: Step, (cause, status): (Cause, u16), _weight: u64) {
        self.push(refused);
        self.answer.cause.get_or_insert(cause);
        self.answer.status.get_or_insert(status);
        self.bad += 1;
    }

    /// It is answered without an endpoint that is known.
    pub(crate) fn answered(&mut self) {
        self.good += 1;
    }

    /// It cannot be said.
    pub(crate) fn unknown(&mut self, why: impl Into<String>) {
        self.push(step(Stage::Plan, Outcome::Warn, None, why));
        self.is_unknown = true;
    }

    /// It comes to an endpoint.
    pub(crate) fn arrived(&mut self, (arrival, steps, cause): (Arrival, Vec<Step>, Option<Cause>)) {
        steps.into_iter().for_each(|s| self.push(s));
        if let Some(cause) = cause {
            self.answer.cause.get_or_insert(cause);
        }
        if let Some(policy) = &arrival.policy {
            self.answer.policy.get_or_insert(policy.clone());
        }
        match arrival.allowed {
            true => self.good += 1,
            false => self.bad += 1,
        }
        if !self.answer.endpoints.contains(&arrival) {
            self.answer.endpoints.push(arrival);
        }
    }

    /// The service that is called, as it is shown.
    pub(crate) fn service_object(&self, world: &World) -> Option<Object> {
        let service = self.destination.service.as_ref()?;
        let of_kubernetes = world.objects.named("Service", &service.namespace, &service.name);
        of_kubernetes.or_else(|| world.objects.named("ServiceEntry", &service.namespace, &service.name))
    }

    /// The step that refuses, to say more of it, and what is known as the cause.
    pub(crate) fn explain_refusal(&mut self, cause: Cause, more: &str) {
        self.answer.cause = Some(cause);
        if let Some(step) = self.answer.steps.iter_mut().find(|s| s.outcome == Outcome::Refuse) {
            step.why = format!("{}; {more}", step.why);
        }
    }

    /// The verdict and the line that says all, from the steps so far.
    pub(crate) fn finish(&mut self, call: &Call) {
        let answer = &mut self.answer;
        answer.verdict = match (self.is_unknown, self.good, self.bad) {
            (true, ..) | (_, 0, 0) => Verdict::Unknown,
            (_, _, 0) => Verdict::Allowed,
            (_, 0, _) => Verdict::Refused,
            _ => Verdict::Partly,
        };
        let said = |outcome: Outcome| {
            let step = answer.steps.iter().find(|s| s.outcome == outcome)?;
            let by = step.object.as_ref().map(|object| format!(" [{}]", crate::text::object(object)));
            Some(format!("{}{}", step.why, by.unwrap_or_default()))
        };
        let (refused, warned) = (said(Outcome::Refuse), said(Outcome::Warn));
        let (from, to) = (&call.from, format!("{}:{}", self.destination.name, self.destination.to.port()));
        answer.summary = match (answer.verdict, refused, warned) {
            (Verdict::Allowed, _, None) => format!("allowed: {from} reaches {to}"),
            (Verdict::Allowed, _, Some(warned)) => format!("allowed: {from} reaches {to}, but {warned}"),
            (Verdict::Refused, why, _) => {
                let cause = answer.cause.map(crate::text::cause).unwrap_or_default();
                format!("refused: {cause}: {}", why.unwrap_or_default())
            }
            (Verdict::Partly, why, _) => {
                format!("in part: some of what {from} sends to {to} is refused: {}", why.unwrap_or_default())
            }
            (Verdict::Unknown, _, why) => format!("unknown: {}", why.unwrap_or_default()),
        };
    }
}
