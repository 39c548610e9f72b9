//! The memory of the mesh's processes, over time.

use crate::site::Site;
use karst_world::soak::slope::{Line, fit};
use std::{collections::BTreeMap, fs, time::Duration};

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(5);
/// Until then caches fill, and it is not looked at.
const WARM: Duration = Duration::from_secs(120);
/// From this length of a run on its slope says something.
pub const TELLS: Duration = Duration::from_secs(20 * 60);

/// Resident memory in MiB by role: (seconds, MiB).
#[derive(Default)]
pub struct Memory {
    samples: BTreeMap<String, Vec<(f64, f64)>>,
    next: Duration,
}

/// What a role's memory does.
pub struct Trend {
    /// Of which process.
    pub role: String,
    /// How many samples there are.
    pub samples: usize,
    /// The line through them.
    pub line: Line,
    /// Is it of one process that was there all the time?
    pub is_steady: bool,
}

impl Memory {
    /// Takes samples, if it is time.
    pub fn look(&mut self, site: &Site, now: Duration) {
        if now < self.next {
            return;
        }
        self.next = now + EVERY;
        if now < WARM {
            return;
        }
        for (role, pid) in site.processes() {
            if let Some(mib) = resident_mib(pid) {
                self.samples.entry(role).or_default().push((now.as_secs_f64(), mib));
            }
        }
    }

    /// Of all roles that were seen often enough.
    pub fn trends(&self) -> Vec<Trend> {
        let of = |(role, samples): (&String, &Vec<(f64, f64)>)| {
            let is_steady = Site::is_steady(role);
            Some(Trend { role: role.clone(), samples: samples.len(), line: fit(samples)?, is_steady })
        };
        self.samples.iter().filter_map(of).collect()
    }
}

fn resident_mib(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kib.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? / 1024.0)
}
