//! Text that came from a peer. It is shown only with control characters escaped, so that one event stays
//! one line of a log and no terminal sequence gets through.

use std::fmt::{self, Write};

/// Wraps peers' text for display.
pub struct Untrusted<'a>(pub &'a str);

impl fmt::Display for Untrusted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars().take(256) {
            match character {
                '"' | '\\' => {
                    f.write_char('\\')?;
                    f.write_char(character)?;
                }
                control if control.is_control() => write!(f, "\\u{{{:x}}}", control as u32)?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(Untrusted("a\r\n\u{1b}[31m\"b").to_string(), "a\\u{d}\\u{a}\\u{1b}[31m\\\"b");
        assert_eq!(Untrusted(&"x".repeat(1000)).to_string().len(), 256);
    }
}
