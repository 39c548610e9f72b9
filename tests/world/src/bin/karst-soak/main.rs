//! `cargo xtask soak`: a mesh of three nodes under load, and faults on top of each other, by a schedule that a seed replays. What
//! fails though no fault excuses it, a wrong byte or a plaintext frame is a failure of the run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod churn;
mod direct;
mod how;
mod load;
mod memory;
mod objects;
mod outages;
mod progress;
mod report;
mod rollouts;
mod running;
mod shared;
mod site;

use anyhow::{Context, Result, ensure};
use direct::Director;
use how::How;
use karst_world::soak::schedule::schedule;
use shared::Shared;
use site::Site;
use std::{sync::Arc, time::Duration};

/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(100);
/// What the last faults may take longer than planned.
const LAST: Duration = Duration::from_secs(90);

fn main() -> Result<()> {
    let how = How::of(std::env::args().skip(1))?;
    let plan = schedule(how.seed, how.length);
    println!("soak: {} min, {} faults; --seed {} replays them", how.length.as_secs() / 60, plan.len(), how.seed);
    let mut site = Site::new()?;
    let shared = Arc::new(Shared::new());
    let sniffer = site.world.sniffer(shared::MARK);
    let load = load::start(&site, &shared);
    let progress = progress::start(&shared, how.length);
    let mut memory = memory::Memory::default();
    let mut director = Director::new(plan);
    while shared.now() < how.length || (!director.is_done() && shared.now() < how.length + LAST) {
        director.step(&mut site, &shared);
        site.look(&shared)?;
        memory.look(&site, shared.now());
        std::thread::sleep(TICK);
    }
    shared.stop();
    load.into_iter().for_each(|thread| thread.join().unwrap());
    progress.join().unwrap();
    let report = report::Report::new(&how, &shared, sniffer.seen(), &director, &memory, site.rotations());
    report.print();
    if let Some(path) = &how.report {
        std::fs::write(path, serde_json::to_string_pretty(&report.json())?)
            .with_context(|| path.display().to_string())?;
    }
    ensure!(report.all_hold(), "the mesh has failed; --seed {} replays the faults", how.seed);
    Ok(())
}
