//! `cargo xtask soak`: a mesh of three nodes under load, and faults on top of each other, by a schedule that a seed replays. What
//! fails though no fault excuses it, a wrong byte or a plaintext frame is a failure of the run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod churn;
mod direct;
mod how;
mod load;
mod logs;
mod memory;
mod objects;
mod oracle;
mod outages;
mod progress;
mod report;
mod rollouts;
mod running;
mod shared;
mod site;

use anyhow::{Context, Result};
use direct::Director;
use how::How;
use karst_world::soak::schedule::schedule;
use logs::Logs;
use memory::Memory;
use report::{Report, Run};
use shared::Shared;
use site::Site;
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(100);
/// What the last faults may take longer than planned.
const LAST: Duration = Duration::from_secs(90);
/// What building a world, the last calls and the report take at most, together.
const AROUND: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let how = match How::of(std::env::args().skip(1)) {
        Ok(how) => how,
        Err(e) => {
            eprintln!("error: {e:#}");
            return ExitCode::from(2);
        }
    };
    let why = match catch_unwind(|| run(&how)) {
        Ok(Ok(true)) => return ExitCode::SUCCESS,
        Ok(Ok(false)) => "the table says what".to_string(),
        Ok(Err(e)) => format!("{e:#}"),
        Err(panic) => said(panic.as_ref()),
    };
    eprintln!("FAILED: {why}\nthe same faults again: {}", how.command());
    ExitCode::FAILURE
}

/// A whole run. False: something has failed.
fn run(how: &How) -> Result<bool> {
    let plan = schedule(how.seed, how.length);
    println!("soak: {} min, {} faults: {}", how.length.as_secs() / 60, plan.len(), how.command());
    progress::limit(how, how.length + LAST + AROUND);
    let mut logs = Logs::new(how.logs.join(format!("seed-{}", how.seed)))?;
    let mut site = Site::new()?;
    let shared = Arc::new(Shared::new());
    let sniffer = site.world.sniffer(oracle::MARK);
    let load = load::start(&site, &shared);
    let progress = progress::start(&shared, how.length);
    let mut memory = Memory::default();
    let mut director = Director::new(plan);
    // Whatever becomes of the faults: what was seen is told.
    let went = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
        while shared.now() < how.length || (!director.is_done() && shared.now() < how.length + LAST) {
            director.step(&mut site, &shared);
            site.look(&shared)?;
            memory.look(&site, shared.now());
            logs.look(&site, &shared, director.broken().len())?;
            std::thread::sleep(TICK);
        }
        Ok(())
    }));
    let loaded = shared.now();
    shared.stop();
    let mut broken = director.end();
    match went {
        Ok(Ok(())) => {}
        Ok(Err(e)) => broken.push(format!("at {:.1} s: {e:#}", loaded.as_secs_f64())),
        Err(panic) => broken.push(format!("at {:.1} s: {}", loaded.as_secs_f64(), said(panic.as_ref()))),
    }
    for thread in load.into_iter().chain([progress]) {
        if let Err(panic) = thread.join() {
            broken.push(format!("a caller: {}", said(panic.as_ref())));
        }
    }
    let (seen, certificates, panics) = (sniffer.seen(), site.rotations(), site.panics());
    let (shared, director, memory) = (&*shared, &director, &memory);
    let report = Report::of(Run { how, shared, seen, director, memory, certificates, panics, broken, loaded });
    report.print();
    if let Some(path) = &how.report {
        std::fs::write(path, serde_json::to_string_pretty(&report.json())?)
            .with_context(|| path.display().to_string())?;
    }
    let holds = report.all_hold();
    if !holds {
        logs.end(&site)?;
    }
    Ok(holds)
}

/// What a panic says.
fn said(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic".into())
}
