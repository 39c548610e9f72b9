//! Log levels on the way into an address.

use crate::problem::Problem;

/// The levels, if they are made of what words of levels and scopes are made of.
///
/// # Errors
/// If they are not.
pub fn checked(levels: &str) -> Result<&str, Problem> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "_-:,=".contains(letter);
    if !levels.is_empty() && levels.chars().all(fits) {
        return Ok(levels);
    }
    Err(Problem::usage(
        format!("--level {levels:?}: not a level"),
        "use trace, debug, info, warn, error or off, or SCOPE:LEVEL, several separated by commas",
    ))
}
