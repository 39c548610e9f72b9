//! Changes of pods at a rate, whatever becomes of those before: when each was sent, and when it came where it had to.

use crate::{
    api::Api,
    objects::{self, Pods, Size},
    ztunnels::Heard,
};
use anyhow::Result;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The changes, and how long each took to each stream that has to be told of it.
pub struct Book {
    sent: Vec<Option<Instant>>,
    /// Of each pod: the streams that are told of it, and how often a change of it has come.
    streams: Vec<u32>,
    came: Vec<u32>,
    delays: Vec<f64>,
}

impl Book {
    pub fn new(size: Size) -> Self {
        let none = vec![0; size.pods];
        Self { sent: vec![None; size.pods], streams: none.clone(), came: none, delays: vec![] }
    }

    /// There is a stream that is told of these pods.
    pub fn follows(&mut self, pods: impl IntoIterator<Item = usize>) {
        pods.into_iter().for_each(|pod| self.streams[pod] += 1);
    }

    /// A stream was told something.
    pub fn heard(&mut self, heard: &Heard) {
        for pod in heard.names.iter().filter_map(|name| number(name)) {
            if let Some(sent) = self.sent[pod] {
                self.came[pod] += 1;
                self.delays.push(heard.at.saturating_duration_since(sent).as_secs_f64() * 1e3);
            }
        }
    }

    /// How often a change has not come where it had to.
    pub fn missing(&self) -> usize {
        let of = |(i, sent): (usize, &Option<Instant>)| match sent {
            Some(_) => self.streams[i].saturating_sub(self.came[i]) as usize,
            None => 0,
        };
        self.sent.iter().enumerate().map(of).sum()
    }

    /// How often changes have come.
    pub fn pushes(&self) -> usize {
        self.delays.len()
    }

    /// The delays in ms, in order.
    pub fn delays(&self) -> Vec<f64> {
        let mut all = self.delays.clone();
        all.sort_by(f64::total_cmp);
        all
    }
}

/// The number of the pod that a workload is.
fn number(uid: &str) -> Option<usize> {
    uid.strip_prefix("Kubernetes//Pod/team-")?.rsplit('-').next()?.parse().ok()
}

/// A book that streams and the load write.
pub type Shared = Arc<Mutex<Book>>;

pub fn open(book: &Shared) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes readiness from the pod of this number, and tells of it as an API server does: the pod, then the slice of its service.
pub fn change(api: &Api, pods: &Pods, size: Size, i: usize, ready: impl Fn(usize) -> bool, k: usize) -> Result<()> {
    api.changed("pods", &pods.text(&size.place(i), false, k + 2))?;
    let slice = objects::slice(size, i % size.services, |pod| pod != i && ready(pod), k + 2);
    api.changed("endpointslices", &slice.to_string())
}

/// The pod that changes at this place in the order: they are spread over everything, and none comes twice.
pub fn order(size: Size, k: usize) -> usize {
    k * 7919 % size.pods
}

/// Changes pods at a rate for a time; gives how long that took.
pub async fn run(api: &Api, size: Size, books: &[Shared], (rate, seconds): (usize, usize)) -> Result<Duration> {
    let (pods, begun, all) = (Pods::new(), Instant::now(), rate * seconds);
    let mut changed = vec![false; size.pods];
    let mut k = 0;
    while k < all {
        let due = ((begun.elapsed().as_secs_f64() * rate as f64) as usize).min(all);
        while k < due {
            let i = order(size, k);
            let now = Instant::now();
            books.iter().for_each(|book| open(book).sent[i] = Some(now));
            change(api, &pods, size, i, |pod| !changed[pod], k)?;
            changed[i] = true;
            k += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = begun.elapsed();
    let end = Instant::now() + Duration::from_secs(10);
    while books.iter().any(|book| open(book).missing() > 0) && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(took)
}
