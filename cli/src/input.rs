//! Files that a user names; `-` is standard input.

use crate::problem::{Exit, Problem};
use std::{
    fs,
    io::{self, Read},
    path::Path,
};

/// Reads a file as text.
///
/// # Errors
/// If it cannot be read.
pub fn read(file: &Path) -> Result<String, Problem> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    text.map_err(|e| {
        Problem::new(format!("{}: cannot be read", file.display()))
            .because(e)
            .next("check the path; - reads standard input")
            .exit(Exit::Data)
    })
}
