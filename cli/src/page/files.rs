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
/// Who has logged in, and the way out; without a login it does nothing.
const SESSION: File = file("text/javascript; charset=utf-8", include_bytes!("../../page/dist/session.js"));
const LOGIN: File = file("text/html; charset=utf-8", include_bytes!("../../page/dist/login.html"));
const LOGIN_SCRIPT: File = file("text/javascript; charset=utf-8", include_bytes!("../../page/dist/login.js"));
const LOGIN_STYLE: File = file("text/css; charset=utf-8", include_bytes!("../../page/dist/login.css"));
/// Of the packages that the script is bundled from: their licences want their texts wherever the code goes.
const LICENCES: File = file("text/plain; charset=utf-8", include_bytes!("../../page/dist/licences.txt"));

/// The file of a path.
pub(super) fn find(path: &str) -> Option<&'static File> {
    match path {
        "/" | "/index.html" => Some(&INDEX),
        "/app.js" => Some(&SCRIPT),
        "/app.css" => Some(&STYLE),
        "/session.js" => Some(&SESSION),
        "/icon.svg" => Some(&ICON),
        "/licences.txt" => Some(&LICENCES),
        _ => None,
    }
}

/// The file of a path, of the page where users log in.
pub(super) fn find_login(path: &str) -> Option<&'static File> {
    match path {
        "/login.html" => Some(&LOGIN),
        "/login.js" => Some(&LOGIN_SCRIPT),
        "/login.css" => Some(&LOGIN_STYLE),
        _ => None,
    }
}
