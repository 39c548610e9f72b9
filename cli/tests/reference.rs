//! docs/cli.md is what the program prints.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::{path::Path, process::Command};

#[test]
fn the_page_of_all_verbs_is_up_to_date() {
    let out = Command::new(env!("CARGO_BIN_EXE_karst")).arg("reference").env_clear().output().unwrap();
    assert!(out.status.success());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    let printed = String::from_utf8(out.stdout).unwrap();
    assert!(written == printed, "docs/cli.md is stale: cargo run -p karst-cli -- reference > docs/cli.md");
}
