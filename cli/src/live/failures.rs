//! Proxies that cannot be looked at: a note where there are others, an error where there are none.

use crate::{problem::Problem, session::Session};

/// Those of one verb.
#[derive(Debug, Default)]
pub struct Failures {
    /// Nothing was heard of any proxy yet.
    before: Vec<Problem>,
    heard: bool,
}

impl Failures {
    /// A proxy has failed.
    pub fn take(&mut self, session: &Session<'_>, problem: Problem) {
        if self.heard {
            note(session, &problem);
        } else {
            self.before.push(problem);
        }
    }

    /// Something was heard of a proxy.
    pub fn heard(&mut self, session: &Session<'_>) {
        self.heard = true;
        self.before.drain(..).for_each(|problem| note(session, &problem));
    }

    /// All streams have ended.
    ///
    /// # Errors
    /// If there was none.
    pub fn end(mut self, session: &Session<'_>) -> Result<(), Problem> {
        let last = self.before.pop();
        self.before.iter().for_each(|problem| note(session, problem));
        last.map_or(Ok(()), Err)
    }
}

fn note(session: &Session<'_>, problem: &Problem) {
    let text = problem.to_string();
    session.note(format!("note: {}", text.lines().next().unwrap_or_default()));
}
