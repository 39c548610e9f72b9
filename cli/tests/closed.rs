//! Whoever reads an answer may stop before its end, as `head` does: the program ends quietly, as others do.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::{
    io::{Read, pipe},
    process::{Command, Stdio},
};

/// Runs it, its output closed after a byte; gives its status and what it says of it.
fn closed_after_a_byte(line: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karst"));
    let (mut reader, writer) = pipe().unwrap();
    command.env_clear().args(line.split(' ')).stdout(writer).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    drop(command); // it has the other end of the pipe
    reader.read_exact(&mut [0]).unwrap();
    drop(reader);
    let out = child.wait_with_output().unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    // More than a pipe holds (64 KiB), so that some of it is always written too late.
    for line in ["manifest generate", "manifest generate --set profile=demo"] {
        assert_eq!(closed_after_a_byte(line), (Some(141), String::new()), "karst {line}");
    }
}
