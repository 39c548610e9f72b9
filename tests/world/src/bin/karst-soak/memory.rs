//! The memory of the mesh's processes, over time.

use crate::site::Site;
use karst_world::soak::slope::{Line, fit};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(5);
/// Until then caches fill, and it is not looked at.
const WARM: Duration = Duration::from_secs(120);
/// From this length of a run on its slope says something.
pub const TELLS: Duration = Duration::from_secs(20 * 60);

/// Resident memory by role.
#[derive(Default)]
pub struct Memory {
    roles: BTreeMap<String, Role>,
    next: Duration,
}

#[derive(Default)]
struct Role {
    /// Seconds, MiB.
    samples: Vec<(f64, f64)>,
    /// The processes that have had it.
    pids: BTreeSet<u32>,
}

/// What a role's memory does.
pub struct Trend {
    /// Of which process.
    pub role: String,
    /// How many samples there are.
    pub samples: usize,
    /// The line through them; None: there are too few.
    pub line: Option<Line>,
    /// How many processes have had the role.
    pub processes: usize,
    /// Is it to be one process, all the time?
    pub is_steady: bool,
}

impl Memory {
    /// Takes samples, if it is time.
    pub fn look(&mut self, site: &Site, now: Duration) {
        if now < self.next {
            return;
        }
        self.next = now + EVERY;
        for (name, pid) in site.processes() {
            let Some(mib) = resident_mib(pid) else { continue };
            let role = self.roles.entry(name).or_default();
            role.pids.insert(pid);
            if now >= WARM {
                role.samples.push((now.as_secs_f64(), mib));
            }
        }
    }

    /// Of all roles.
    pub fn trends(&self) -> Vec<Trend> {
        let of = |(name, role): (&String, &Role)| Trend {
            role: name.clone(),
            samples: role.samples.len(),
            line: fit(&role.samples),
            processes: role.pids.len(),
            is_steady: Site::is_steady(name),
        };
        self.roles.iter().map(of).collect()
    }
}

fn resident_mib(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kib.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? / 1024.0)
}
