//! Metrics that every process has: what it is (`istio_build`) and what it uses (`process_*`, with the names and units of
//! Prometheus' client libraries). Read from procfs when the page is asked for; what cannot be read is left out.

use crate::{
    clock,
    exposition::{Kind, Page},
    process,
};
use std::{fs, sync::OnceLock, time::Duration};

/// Adds them to a page. `component`: as Istio calls it (`pilot`, `ztunnel`, `proxy`, `cni`).
pub fn render(page: &mut Page, component: &str) {
    let tag = concat!("karst-", env!("CARGO_PKG_VERSION"));
    page.family("istio_build", Kind::Gauge, "Version.").sample(&[("component", component), ("tag", tag)], 1);
    page.single(
        "karst_memory_returned_total",
        Kind::Counter,
        "How often freed memory was given back to the system, after a large update, a flood or a time of work, and after the start.",
        process::trims(),
    );
    page.single(
        "karst_log_lines_lost_total",
        Kind::Counter,
        "Lines of the log that were lost because they came faster than they were read.",
        crate::log::lost(),
    );
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let usage = Usage::read(&read("stat"), &read("limits"));
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    for (name, kind, help, value) in [
        ("process_cpu_seconds_total", Kind::Counter, "CPU time used, user and system, in seconds.", usage.cpu_seconds),
        ("process_open_fds", Kind::Gauge, "Open file descriptors.", open),
        ("process_max_fds", Kind::Gauge, "Most file descriptors that may be open.", usage.max_fds),
        ("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory, in bytes.", usage.virtual_bytes),
        ("process_resident_memory_bytes", Kind::Gauge, "Resident memory, in bytes.", usage.resident_bytes),
        ("process_start_time_seconds", Kind::Gauge, "Start, in seconds since 1970.", start(usage.age())),
    ] {
        if let Some(value) = value {
            page.single(name, kind, help, value);
        }
    }
}

/// When the process started, in seconds since 1970: found out once, so that the clock's corrections do not look like a restart.
fn start(age: Option<Duration>) -> Option<f64> {
    static START: OnceLock<f64> = OnceLock::new();
    let found = clock::since_epoch().saturating_sub(age?).as_secs_f64();
    Some(*START.get_or_init(|| (found * 100.0).round() / 100.0))
}

/// What procfs says of a process.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    cpu_seconds: Option<f64>,
    virtual_bytes: Option<f64>,
    resident_bytes: Option<f64>,
    max_fds: Option<f64>,
    /// After the boot, in seconds.
    started: Option<f64>,
}

impl Usage {
    /// From the files `stat` and `limits` (proc(5)).
    fn read(stat: &str, limits: &str) -> Self {
        // The program's name may hold spaces and parentheses; the third field follows the last one.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let (ticks, page) = (process::ticks_per_second() as f64, process::page_size() as f64);
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        Self {
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| (user + system) / ticks),
            virtual_bytes: field(23),
            resident_bytes: field(24).map(|pages| pages * page),
            max_fds: limit.and_then(|rest| rest.split_whitespace().next()?.parse().ok()),
            started: field(22).map(|start| start / ticks),
        }
    }

    /// For how long it has run. (The boot's clock is the one that fields of `stat` go by.)
    fn age(&self) -> Option<Duration> {
        let up = fs::read_to_string("/proc/uptime").ok()?;
        let up: f64 = up.split_whitespace().next()?.parse().ok()?;
        Duration::try_from_secs_f64(up - self.started?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_procfs_says_is_told_in_seconds_and_bytes() {
        let stat =
            "7 (a) b)) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 5 0 4200 123456789 1000 18446744073709551615 1";
        let limits = "Limit                     Soft Limit           Hard Limit           Units\nMax open files            1024                 524288               files\n";
        let ticks = process::ticks_per_second() as f64;
        let usage = Usage::read(stat, limits);
        assert_eq!(usage.cpu_seconds, Some(200.0 / ticks));
        assert_eq!((usage.virtual_bytes, usage.max_fds), (Some(123_456_789.0), Some(1024.0)));
        assert_eq!(usage.resident_bytes, Some(1000.0 * process::page_size() as f64));
        assert_eq!(usage.started, Some(4200.0 / ticks));
        assert_eq!(Usage::read("", ""), Usage::default(), "nothing is made up");
        let unlimited =
            Usage::read(stat, "Max open files            unlimited            unlimited            files\n");
        assert_eq!(unlimited.max_fds, None);
    }

    #[test]
    fn a_process_tells_what_it_is_and_uses() {
        let page = crate::exposition::page(|page| render(page, "pilot"));
        let value = |name: &str| {
            let line =
                page.lines().find(|line| line.starts_with(&format!("{name} "))).map(|line| &line[name.len() + 1..]);
            line.and_then(|text| text.parse::<f64>().ok()).unwrap_or_else(|| panic!("{name}: {page}"))
        };
        assert!(page.contains("istio_build{component=\"pilot\",tag=\"karst-"), "{page}");
        assert!(value("process_resident_memory_bytes") > 100_000.0 && value("process_open_fds") >= 3.0);
        assert!(value("process_cpu_seconds_total") >= 0.0 && value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_start_time_seconds") > 1.7e9);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
    }
}
