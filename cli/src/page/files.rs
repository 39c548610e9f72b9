//! What is embedded: built by esbuild from cli/page, and committed. `cargo xtask page --check` proves that it is what the sources
//! and the lock file give.

/// A file: its type, and its content.
pub(super) struct File {
    pub(super) kind: &'static str,
    pub(super) content: &'static [u8],
}

const fn file(kind: &'static str, content: &'static [u8]) -> File {
    File { kind, content }
}

const INDEX: File = file("text/html; charset=utf-8", include_bytes!("../../page/dist/index.html"));
const SCRIPT: File = file("text/javascript; charset=utf-8", include_bytes!("../../page/dist/app.js"));
const STYLE: File = file("text/css; charset=utf-8", include_bytes!("../../page/dist/app.css"));
const ICON: File = file("image/svg+xml", include_bytes!("../../page/dist/icon.svg"));
/// Of the packages that the script is bundled from: their licences want their texts wherever the code goes.
const LICENCES: File = file("text/plain; charset=utf-8", include_bytes!("../../page/dist/licences.txt"));

/// The file of a path.
pub(super) fn find(path: &str) -> Option<&'static File> {
    match path {
        "/" | "/index.html" => Some(&INDEX),
        "/app.js" => Some(&SCRIPT),
        "/app.css" => Some(&STYLE),
        "/icon.svg" => Some(&ICON),
        "/licences.txt" => Some(&LICENCES),
        _ => None,
    }
}
