//! Stages with their times, and lines with theirs.

use anyhow::Result;
use std::time::Instant;

/// Stages that have run.
pub struct Stages(Vec<(String, f64)>);

impl Stages {
    /// None yet.
    pub fn new() -> Self {
        Self(vec![])
    }
    /// Runs one, with a line before: its name, and the seconds that those before took.
    pub fn run(&mut self, name: &str, f: impl FnOnce() -> Result<()>) -> Result<()> {
        let t = Instant::now();
        println!("==> {name} [{:.0} s]", self.total());
        f()?;
        self.0.push((name.into(), t.elapsed().as_secs_f64()));
        Ok(())
    }
    /// The table.
    pub fn print(&self) {
        println!("\n{:<28} {:>9}", "stage", "seconds");
        for (n, t) in &self.0 {
            println!("{n:<28} {t:>9.1}");
        }
        println!("{:<28} {:>9.1}", "all", self.total());
    }
    fn total(&self) -> f64 {
        self.0.iter().fold(0.0, |all, s| all + s.1)
    }
}

/// Says how far something has come, with the seconds since it began.
pub struct Progress(Instant);

impl Progress {
    /// It begins now.
    pub fn new() -> Self {
        Self(Instant::now())
    }
    /// One line.
    pub fn say(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.0.elapsed().as_secs_f64());
    }
}
