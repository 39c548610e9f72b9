//! Puts the charts into the program: what a release installs needs no folder beside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manifest = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let charts = manifest.join("../../charts").canonicalize()?;
    println!("cargo::rerun-if-changed={}", charts.display());
    let mut files = Vec::new();
    collect(&charts, &mut files)?;
    files.sort();
    let mut source =
        String::from("/// Path below `charts`, and text.\npub(super) static FILES: &[(&str, &str)] = &[\n");
    for file in &files {
        let relative = file.strip_prefix(&charts)?;
        source +=
            &format!("    ({:?}, include_str!({:?})),\n", relative.display().to_string(), file.display().to_string());
    }
    source += "];\n";
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("charts.rs");
    fs::write(out, source)?;
    Ok(())
}

/// All files but those behind links: ambient's dependencies are links to the charts beside it.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}
