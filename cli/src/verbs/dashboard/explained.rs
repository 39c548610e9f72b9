//! `karst explain` for the page: the same verb, with its answer as JSON.

use crate::{
    options::Global,
    page::{Explainer, Question},
    problem::Problem,
    session::Session,
    verbs::explain::Explain,
};
use clap::{Args, FromArgMatches};
use serde_json::Value;
use std::rc::Rc;

/// Asks with the flags of this process.
pub(super) fn explainer(global: Global) -> Explainer {
    let global = Rc::new(global);
    Rc::new(move |question| {
        let global = global.clone();
        Box::pin(async move { ask(&global, &question).await })
    })
}

async fn ask(global: &Global, question: &Question) -> Result<Value, Problem> {
    let (words, wrong) = (words(question), |e: clap::Error| Problem::new(e.to_string()));
    let tree = Explain::augment_args(clap::Command::new("explain"));
    let matches = tree.try_get_matches_from(&words).map_err(wrong)?;
    let verb = Explain::from_arg_matches(&matches).map_err(wrong)?;
    let mut out = vec![];
    let ended = verb.run(&mut Session::to(global, "karst", &mut out)).await;
    // A call that is refused has an answer, and ends as an error.
    match (serde_json::from_slice(&out), ended) {
        (Ok(answer), _) => Ok(answer),
        (Err(_), Err(problem)) => Err(problem),
        (Err(e), Ok(())) => Err(Problem::new("the answer of karst explain").because(e)),
    }
}

/// Names come from proxies: behind `--` none of them is an option.
fn words(question: &Question) -> Vec<String> {
    let mut words: Vec<String> = ["explain", "-o", "json"].map(String::from).to_vec();
    words.extend(question.port.map(|port| format!("--port={port}")));
    match &question.request {
        Some((method, path)) => words.extend([format!("--method={method}"), format!("--path={path}")]),
        None => words.push("--tcp".into()),
    }
    words.extend(["--".into(), question.from.clone(), question.to.clone()]);
    words
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn every_question_is_a_command_line_and_no_name_is_an_option() {
        let request = Some(("GET".to_owned(), "--tcp".to_owned()));
        for (from, request) in [("spiffe://c/ns/a/sa/b", None), ("--by-objects", request)] {
            let question = Question { from: from.into(), to: "-f".into(), port: Some(80), request };
            let tree = Explain::augment_args(clap::Command::new("explain"));
            let matches = tree.try_get_matches_from(words(&question)).unwrap();
            assert_eq!(matches.get_one::<String>("from").unwrap(), from);
            assert!(!matches.get_flag("by_objects") && matches.get_flag("tcp") == question.request.is_none());
        }
    }
}
