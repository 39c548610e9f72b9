//! Errors as texts.

use std::error::Error;

/// The error and its causes, each after a colon. For errors of others whose own text leaves out the cause; ours have it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Link(&'static str, #[source] Option<Box<Link>>);

    #[test]
    fn every_cause_is_told_in_order() {
        let inner = Link("refused", None);
        let outer = Link("transport error", Some(Box::new(Link("tcp connect", Some(Box::new(inner))))));
        assert_eq!(chain(&outer), "transport error: tcp connect: refused");
        assert_eq!(chain(&Link("alone", None)), "alone");
    }
}
