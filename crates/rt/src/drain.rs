//! Draining: a signal that connections watch. First they may end by themselves, then they must.

use tokio::sync::watch;

/// How far the drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal work.
    Open,
    /// No new connections; those that are open may finish.
    Graceful,
    /// There is a successor: those that are open go over to it where they can, and else may finish.
    HandOver,
    /// Everything ends now.
    Forced,
}

/// The side that decides.
#[derive(Debug)]
pub struct Drain(watch::Sender<Phase>);
/// The side that obeys. Its existence keeps [`Drain::finished`] waiting.
#[derive(Clone, Debug)]
pub struct Watch(watch::Receiver<Phase>);

/// A new pair.
pub fn new() -> (Drain, Watch) {
    let (tx, rx) = watch::channel(Phase::Open);
    (Drain(tx), Watch(rx))
}

impl Drain {
    /// Moves on to a phase; never back.
    pub fn start(&self, phase: Phase) {
        self.0.send_if_modified(|p| {
            let later = phase > *p;
            *p = (*p).max(phase);
            later
        });
    }
    /// Another watch.
    pub fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }
    /// Waits until every watch is gone.
    pub async fn finished(&self) {
        self.0.closed().await;
    }
}

impl Watch {
    /// Waits until the drain has reached a phase; also returns if the deciding side is gone.
    pub async fn reached(&mut self, phase: Phase) {
        let _ = self.0.wait_for(|p| *p >= phase).await;
    }
    /// Has the drain begun?
    pub fn started(&self) -> bool {
        *self.0.borrow() >= Phase::Graceful
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_advance_and_guards_hold() {
        let (d, mut w) = new();
        d.start(Phase::Graceful);
        w.reached(Phase::Graceful).await;
        d.start(Phase::Open);
        assert!(w.started());
        let waits = tokio::time::timeout(std::time::Duration::from_millis(20), d.finished()).await;
        assert!(waits.is_err(), "a live watch keeps the drain open");
        drop(w);
        d.finished().await;
    }
}
