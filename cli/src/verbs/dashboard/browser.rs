//! A browser on this machine.

use std::process::{Command, Stdio};

/// Opens an address; false if no browser can be started.
pub(super) fn browse(address: &str) -> bool {
    let programs: &[&str] = if cfg!(target_os = "macos") { &["open"] } else { &["xdg-open", "wslview"] };
    let start = |program: &&str| {
        let mut command = Command::new(program);
        command.arg(address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().is_ok()
    };
    programs.iter().any(start)
}
