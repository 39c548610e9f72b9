//! install.sh, run as a user runs it: against a mirror on loopback, which is right, lacks the version, lies, or is down.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

use super::{page::Page, script};
use crate::archive::{Tree, gzip};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A folder with a mirror, the script, and a place to install in.
struct Site(PathBuf);

impl Site {
    /// With a release 1.0.0 for this machine.
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("karst-install-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let mut tree = Tree::new(0);
        tree.file("karst-1.0.0/bin/karst", b"#!/bin/sh\necho karst 1.0.0\n".to_vec(), true);
        tree.link("karst-1.0.0/bin/istioctl", "karst");
        let mut page = Page::default();
        page.put(&archive(), gzip(&tree.tar().unwrap()).unwrap());
        page.put("SHA256SUMS", page.sums().into_bytes());
        page.write(&root.join("mirror/1.0.0")).unwrap();
        fs::create_dir_all(root.join("home")).unwrap();
        fs::write(root.join("install.sh"), script("1.0.0", "").unwrap()).unwrap();
        Self(root)
    }

    fn release(&self, file: &str) -> PathBuf {
        self.0.join("mirror/1.0.0").join(file)
    }

    /// The script, ready to run in the home.
    fn script(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg(self.0.join("install.sh")).args(args).current_dir(self.0.join("home"));
        for name in ["KARST_VERSION", "KARST_MIRROR", "KARST_DIR"] {
            command.env_remove(name);
        }
        // Nothing between us and the mirror.
        command.env("no_proxy", "*");
        command
    }

    /// It fails, says this, and leaves nothing behind.
    fn refused(&self, args: &[&str], says: &str) {
        let out = self.script(args).output().unwrap();
        let said = text(&out);
        assert!(!out.status.success() && said.contains(says), "{args:?}: {said}");
        assert_eq!(self.left(), Vec::<String>::new(), "{args:?}");
    }

    fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.join("home")).unwrap();
        names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    fn installed(&self, mut command: Command) {
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        assert!(text(&out).contains("its checksum is right"), "{}", text(&out));
        assert_eq!(self.left(), ["karst-1.0.0"], "no other file is left");
        let program = self.0.join("home/karst-1.0.0/bin/istioctl");
        assert_eq!(Command::new(program).output().unwrap().stdout, b"karst 1.0.0\n");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn archive() -> String {
    let architecture = super::architecture::Architecture::HOST.name();
    format!("karst-1.0.0-linux-{architecture}.tar.gz")
}

/// Serves a folder by HTTP until the test ends; gives its address.
fn serve(folder: &Path) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let folder = folder.to_path_buf();
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer(stream, &folder)));
    format!("http://{address}")
}

fn answer(mut stream: TcpStream, folder: &Path) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let request = lines.next().and_then(Result::ok).unwrap_or_default();
    for line in lines {
        if line.is_ok_and(|line| line.is_empty()) {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_string();
    let (status, body) = match fs::read(folder.join(path)) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", vec![]),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

#[test]
fn a_release_is_fetched_verified_and_unpacked() {
    let site = Site::new("good");
    let mirror = serve(&site.0.join("mirror"));
    site.installed(site.script(&["--version", "v1.0.0", "--mirror", &format!("{mirror}/")]));
    let again = site.script(&["--mirror", &mirror]).output().unwrap();
    assert!(!again.status.success() && text(&again).contains("is there already"), "{}", text(&again));
    assert_eq!(site.left(), ["karst-1.0.0"]);
}

#[test]
fn version_mirror_and_folder_may_come_from_the_environment() {
    let site = Site::new("environment");
    let mut command = site.script(&[]);
    command.current_dir("/").env("KARST_DIR", site.0.join("home"));
    command.env("KARST_MIRROR", site.0.join("mirror")).env("KARST_VERSION", "1.0.0");
    site.installed(command);
}

/// With nothing but the tools that it names: wget in the place of curl.
#[test]
fn without_curl_it_uses_wget() {
    let site = Site::new("wget");
    let tools = site.0.join("tools");
    fs::create_dir_all(&tools).unwrap();
    for tool in ["cat", "cp", "grep", "gzip", "mktemp", "mv", "rm", "sha256sum", "tail", "tar", "uname", "wget"] {
        let folders = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(tool));
        let found = folders.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{tool} is not installed"));
        std::os::unix::fs::symlink(found, tools.join(tool)).unwrap();
    }
    let mirror = serve(&site.0.join("mirror"));
    let run = |version: &str| {
        let mut command = site.script(&["--mirror", &mirror, "--version", version]);
        command.env("PATH", &tools);
        command
    };
    let absent = run("9.9.9").output().unwrap();
    assert!(text(&absent).contains("version 9.9.9 is not on the mirror"), "{}", text(&absent));
    site.installed(run("1.0.0"));
    fs::remove_file(tools.join("wget")).unwrap();
    let neither = run("1.0.1").output().unwrap();
    assert!(text(&neither).contains("neither curl nor wget is installed"), "{}", text(&neither));
}

#[test]
fn an_absent_version_and_a_mirror_that_is_down_are_told_apart() {
    let site = Site::new("absent");
    let mirror = serve(&site.0.join("mirror"));
    site.refused(&["--mirror", &mirror, "--version", "9.9.9"], "version 9.9.9 is not on the mirror");
    let down = format!("http://{}", nobody());
    site.refused(&["--mirror", &down], "is the mirror up, and can it be reached from here?");
    let folder = site.0.join("mirror").display().to_string();
    site.refused(&["--mirror", &folder, "--version", "9.9.9"], "version 9.9.9 is not in");
    site.refused(&["--mirror", "/nowhere"], "there is no such folder");
    site.refused(&["--mirror", "ftp://x"], "an address of http or https is wanted");
    fs::write(site.release("SHA256SUMS"), "00  karst-1.0.0-linux-riscv64.tar.gz\n").unwrap();
    site.refused(&["--mirror", &mirror], "was not built for");
}

#[test]
fn other_bytes_than_were_released_are_not_installed() {
    let site = Site::new("wrong");
    let mirror = serve(&site.0.join("mirror"));
    let trusted = site.0.join("trusted");
    fs::copy(site.release("SHA256SUMS"), &trusted).unwrap();
    let mut bytes = fs::read(site.release(&archive())).unwrap();
    bytes.push(0);
    fs::write(site.release(&archive()), &bytes).unwrap();
    site.refused(&["--mirror", &mirror], "is not what was released");
    // A mirror that changes its sums, too, is found out by sums from elsewhere.
    fs::write(site.release("SHA256SUMS"), format!("{}  {}\n", crate::oci::hex(&bytes), archive())).unwrap();
    let sums = trusted.display().to_string();
    site.refused(&["--mirror", &mirror, "--sums", &sums], "is not what was released");
    site.refused(&["--mirror", &mirror, "--sums", "/nowhere"], "--sums /nowhere");
    fs::remove_file(site.release(&archive())).unwrap();
    site.refused(&["--mirror", &mirror], "was not built for");
}

/// Piped into a shell by somebody whose line breaks.
#[test]
fn half_a_script_does_nothing() {
    let site = Site::new("half");
    let whole = fs::read_to_string(site.0.join("install.sh")).unwrap();
    let mirror = site.0.join("mirror").display().to_string();
    for end in (0..whole.len() - 12).step_by(97).filter(|end| whole.is_char_boundary(*end)) {
        fs::write(site.0.join("install.sh"), whole.get(..end).unwrap()).unwrap();
        site.script(&["--mirror", &mirror]).output().unwrap();
        assert_eq!(site.left(), Vec::<String>::new(), "{end} of {} bytes", whole.len());
    }
}

#[test]
fn wrong_command_lines_say_what_is_wanted() {
    let site = Site::new("usage");
    site.refused(&[], "no mirror: say where the releases are");
    site.refused(&["--mirror"], "--mirror needs a value");
    site.refused(&["--now"], "--now: no such option");
    site.refused(&["--mirror", "/", "--version", "../1"], "a version such as 0.1.0 is wanted");
    site.refused(&["--mirror", "/", "--dir", "/nowhere"], "there is no such folder; make it");
    let help = site.script(&["--help"]).output().unwrap();
    assert!(help.status.success() && text(&help).contains("usage: install.sh"));
    assert!(script("1.0.0", "http://x/$(id)").is_err(), "no address that a shell would run");
    assert!(
        script("1.0.0", "https://mirror.example/karst/")
            .unwrap()
            .contains("KARST_MIRROR:-https://mirror.example/karst}")
    );
}
