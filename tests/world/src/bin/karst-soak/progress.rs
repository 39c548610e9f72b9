//! A line every few seconds that says how far it has come.

use crate::shared::Shared;
use std::{
    io::Write,
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
                say(&shared, &line(&shared, length));
            }
        }
    })
}

/// A line with the time before it.
pub fn say(shared: &Shared, what: &str) {
    println!("[{:6.1} s] {what}", shared.now().as_secs_f64());
    let _ = std::io::stdout().flush();
}

fn line(shared: &Shared, length: Duration) -> String {
    let ok: u64 = shared.ok().values().sum();
    let (failures, not_kept) = shared.failures();
    let (excused, not) = failures.values().fold((0, not_kept), |(a, b), failed| (a + failed.excused, b + failed.not));
    let windows = shared.windows();
    let going: Vec<String> = windows.iter().filter(|w| w.to.is_none()).map(|w| w.fault.to_string()).collect();
    format!(
        "of {} s: {ok} calls ok, {not} failed, {excused} excused; {} faults over, now: {}",
        length.as_secs(),
        windows.len() - going.len(),
        if going.is_empty() { "none".into() } else { going.join(", ") }
    )
}
