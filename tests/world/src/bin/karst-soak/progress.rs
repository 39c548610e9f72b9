//! A line every few seconds that says how far it has come; and an end to a run that hangs.

use crate::{how::How, shared::Shared};
use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How often.
const EVERY: Duration = Duration::from_secs(8);

/// Says so until the run stops.
pub fn start(shared: &Arc<Shared>, length: Duration) -> JoinHandle<()> {
    let shared = shared.clone();
    std::thread::spawn(move || {
        let mut next = Instant::now() + EVERY;
        while shared.goes_on() {
            std::thread::sleep(Duration::from_millis(100));
            if Instant::now() >= next {
                next += EVERY;
                shared.say(&line(&shared, length));
            }
        }
    })
}

fn line(shared: &Shared, length: Duration) -> String {
    let well: u64 = shared.well().values().map(|well| well.calls).sum();
    let (excused, not) = shared.counts();
    let windows = shared.windows();
    let going: Vec<String> = windows.iter().filter(|w| w.to.is_none()).map(|w| w.fault.to_string()).collect();
    format!(
        "of {} s: {well} calls ok, {not} failed, {excused} excused; {} faults over, now: {}",
        length.as_secs(),
        windows.len() - going.len(),
        if going.is_empty() { "none".into() } else { going.join(", ") }
    )
}

/// Ends the process if the run is not over after this time: whatever it waits for, nobody waits for it for ever. What is left of its
/// world, the next one removes.
pub fn limit(how: &How, most: Duration) {
    let command = how.command();
    std::thread::spawn(move || {
        std::thread::sleep(most);
        eprintln!("FAILED: the soak is not over after {} s\nthe same faults again: {command}", most.as_secs());
        std::process::exit(1);
    });
}
