//! Lines out of pieces. A line that is in one piece is not copied.

use crate::{exchange::Surprise, limits::MAX_LINE};

/// What a buffer may keep between two lines that were cut, in bytes.
const KEPT: usize = 1024;

/// The line that has not ended.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    held: Vec<u8>,
    /// What is held has been given out.
    spent: bool,
}

impl Lines {
    /// The next line, without its end (CRLF, or LF alone: RFC 9112 §2.2). None: it has not ended, and is kept.
    pub fn next<'a, 'b: 'a>(&'a mut self, bytes: &mut &'b [u8]) -> Result<Option<&'a [u8]>, Surprise> {
        if self.spent {
            self.spent = false;
            self.held.clear();
            self.held.shrink_to(KEPT);
        }
        let end = memchr::memchr(b'\n', bytes).map(|at| at + 1);
        let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        *bytes = rest;
        if self.held.len() + line.len() > MAX_LINE {
            return Err(Surprise::TooLong);
        }
        if end.is_some() && self.held.is_empty() {
            return Ok(Some(trimmed(line)));
        }
        self.held.extend_from_slice(line);
        self.spent = end.is_some();
        if self.spent { Ok(Some(trimmed(&self.held))) } else { Ok(None) }
    }

    /// What there is of the line that has not ended.
    pub fn held(&self) -> &[u8] {
        if self.spent { &[] } else { &self.held }
    }
}

fn trimmed(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}
