//! `pilot-discovery request GET debug/PAGE`, which Istio's bug-report runs in the controller's container: the image has that second
//! name for our program.

use clap::Parser;
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// For the whole answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name that bug-report calls.
const NAME: &str = "pilot-discovery";

/// What bug-report says.
#[derive(Debug, Parser)]
#[command(name = NAME, version, about = "Asks the controller in this pod for a page, as Istio's pilot-discovery does")]
enum PilotDiscovery {
    /// Prints a page
    Request {
        /// GET
        method: String,
        /// Path, such as debug/syncz
        path: String,
    },
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Only reading is possible.
    #[error("method {0:?}: only GET is supported")]
    Method(String),
    /// The path would be more than a path.
    #[error("path {0:?}: no spaces or control characters are allowed")]
    Path(String),
    /// The controller cannot be asked.
    #[error("{at}: {error}; is the controller running in this container?")]
    Io {
        /// Its address.
        at: SocketAddr,
        /// What has failed.
        error: io::Error,
    },
    /// It gives no page.
    #[error("{path}: {status}; /debug lists the pages")]
    Status {
        /// What was asked for.
        path: String,
        /// Its words.
        status: String,
    },
}

/// Was the program called by the other name?
pub fn called(program: Option<&std::ffi::OsStr>) -> bool {
    program.map(std::path::Path::new).and_then(|path| path.file_name()).is_some_and(|name| name == NAME)
}

/// Does what the command line says, against the monitoring port of this pod.
///
/// # Errors
/// Why there is no page.
pub fn run() -> Result<(), RequestError> {
    let PilotDiscovery::Request { method, path } = PilotDiscovery::parse();
    let page = get(SocketAddr::from(([127, 0, 0, 1], 15014)), &method, &path)?;
    print!("{page}");
    Ok(())
}

fn get(at: SocketAddr, method: &str, path: &str) -> Result<String, RequestError> {
    if !method.eq_ignore_ascii_case("get") {
        return Err(RequestError::Method(method.into()));
    }
    if path.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(RequestError::Path(path.into()));
    }
    let path = format!("/{}", path.trim_start_matches('/'));
    let answer = exchange(at, &path).map_err(|error| RequestError::Io { at, error })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        // bug-report throws away all pages of a pod if one of them is an error, and asks for some that mean nothing here: what it
        // collects then says so.
        Some("200" | "404") => Ok(body.into()),
        _ => Err(RequestError::Status { path, status: status.into() }),
    }
}

fn exchange(at: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // 1.0: the answer ends with the connection and is not cut into chunks.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {at}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use std::{ffi::OsStr, net::TcpListener};

    #[test]
    fn what_the_controller_says_is_printed_and_a_failure_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for answer in [
                "HTTP/1.0 200 OK\r\na: b\r\n\r\n[1]\n",
                "HTTP/1.0 404 Not Found\r\n\r\nno\n",
                "HTTP/1.0 500 Oops\r\n\r\n",
            ] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = [0; 512];
                let read = stream.read(&mut head).unwrap();
                assert!(head[..read].starts_with(b"GET /debug/syncz HTTP/1.0\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert_eq!(get(at, "GET", "debug/syncz").unwrap(), "[1]\n");
        assert_eq!(get(at, "get", "/debug/syncz").unwrap(), "no\n");
        let refused = get(at, "get", "/debug/syncz").unwrap_err();
        assert_eq!(refused.to_string(), "/debug/syncz: HTTP/1.0 500 Oops; /debug lists the pages");
        server.join().unwrap();
        assert!(matches!(get(at, "POST", "x"), Err(RequestError::Method(_))));
        assert!(matches!(get(at, "GET", "a HTTP/1.1\r\nx: y"), Err(RequestError::Path(_))));
    }

    #[test]
    fn only_the_other_name_is_the_other_program() {
        for (program, is) in
            [("/usr/local/bin/pilot-discovery", true), ("pilot-discovery", true), ("/bin/karst-controller", false)]
        {
            assert_eq!(called(Some(OsStr::new(program))), is, "{program}");
        }
        assert!(!called(None));
    }
}
