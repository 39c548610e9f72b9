//! Lines of the tutorials, run and compared with what the table of features expects.

use karst_e2e::{Istioctl, Shell};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// For what comes a moment later: a pod that starts, a proxy that is told.
const PATIENCE: Duration = Duration::from_secs(45);
const POLL: Duration = Duration::from_millis(700);
/// Letters of a column.
const WIDTH: usize = 86;

/// A line, and what it must say.
#[derive(Clone, Copy)]
pub struct Step {
    feature: &'static str,
    line: &'static str,
    /// In the table's words.
    expected: &'static str,
    /// For each of these some line of the answer has all of its words.
    says: &'static [&'static str],
    /// Nowhere in the answer.
    lacks: &'static [&'static str],
    /// Typed on the line's standard input.
    input: &'static str,
    by_stock: bool,
    /// Run once, and all that follows depends on it.
    acts: bool,
    /// How it must end; either way: none.
    succeeds: Option<bool>,
}

/// A line that only looks: run until it says what is expected.
pub const fn reads(
    feature: &'static str,
    line: &'static str,
    expected: &'static str,
    says: &'static [&'static str],
) -> Step {
    let (lacks, input, by_stock, acts, succeeds) = (&[] as &[&str], "", false, false, Some(true));
    Step { feature, line, expected, says, lacks, input, by_stock, acts, succeeds }
}

/// A line that changes something: run once.
pub const fn acts(
    feature: &'static str,
    line: &'static str,
    expected: &'static str,
    says: &'static [&'static str],
) -> Step {
    let mut step = reads(feature, line, expected, says);
    step.acts = true;
    step
}

impl Step {
    /// Stock istioctl runs it, too.
    pub const fn by_both(mut self) -> Self {
        self.by_stock = true;
        self
    }
    /// With this typed.
    pub const fn typed(mut self, input: &'static str) -> Self {
        self.input = input;
        self
    }
    /// None of this is in the answer.
    pub const fn without(mut self, lacks: &'static [&'static str]) -> Self {
        self.lacks = lacks;
        self
    }
    /// It ends with another status than 0.
    pub const fn fails(mut self) -> Self {
        self.succeeds = Some(false);
        self
    }
    /// It may end with any status.
    pub const fn ends_anyhow(mut self) -> Self {
        self.succeeds = None;
        self
    }

    /// What is wrong with an answer; none if nothing is.
    fn fault(&self, text: &str, is_success: bool, names: Names<'_>) -> Option<String> {
        if self.succeeds.is_some_and(|wanted| wanted != is_success) {
            return Some(if is_success { "it succeeds".into() } else { "it fails".into() });
        }
        let missing = self.says.iter().map(|words| filled(words, names)).find(|words| row(text, words).is_none());
        if let Some(words) = missing {
            return Some(format!("no line with {words:?}"));
        }
        self.lacks.iter().find(|word| text.contains(**word)).map(|word| format!("it says {word:?}"))
    }
}

/// What stands in braces, and what is put in for it.
type Names<'n> = &'n [(&'n str, &'n str)];

fn filled(text: &str, names: Names<'_>) -> String {
    names.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

/// The first line that has all these words, in this order.
fn row<'t>(text: &'t str, words: &str) -> Option<&'t str> {
    text.lines().find(|line| {
        let mut rest = *line;
        words.split_whitespace().all(|word| match rest.split_once(word) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    })
}

struct Row {
    feature: &'static str,
    by: &'static str,
    line: String,
    expected: &'static str,
    seen: String,
    seconds: f64,
}

/// The shells, and what was seen so far.
pub struct Script {
    ours: Shell,
    stock: Shell,
    rows: Vec<Row>,
    faults: Vec<String>,
    begun: Instant,
}

impl Script {
    /// With this namespace as the kubeconfig's.
    pub fn new(namespace: &str) -> Self {
        let (ours, stock) = (Shell::new(Istioctl::Ours, namespace), Shell::new(Istioctl::Stock, namespace));
        Self { ours, stock, rows: vec![], faults: vec![], begun: Instant::now() }
    }

    /// The shell in which `istioctl` is ours.
    pub fn shell(&self) -> &Shell {
        &self.ours
    }

    /// Runs them. `names` are put in for what stands in braces.
    pub fn run(&mut self, steps: &[Step], names: Names<'_>) {
        for step in steps {
            self.one(step, Istioctl::Ours, names);
            if step.by_stock {
                self.one(step, Istioctl::Stock, names);
            }
        }
    }

    fn one(&mut self, step: &Step, istioctl: Istioctl, names: Names<'_>) {
        let line = filled(step.line, names);
        let shell = if istioctl == Istioctl::Ours { &self.ours } else { &self.stock };
        let begun = Instant::now();
        let (said, fault) = loop {
            let said = shell.run(&line, step.input);
            let fault = step.fault(&said.text, said.is_success, names);
            if fault.is_none() || step.acts || begun.elapsed() > PATIENCE {
                break (said, fault);
            }
            sleep(POLL);
        };
        let by = match (line.contains("istioctl"), istioctl) {
            (false, _) => "-",
            (true, Istioctl::Ours) => "karst",
            (true, Istioctl::Stock) => "istioctl",
        };
        let first = step.says.first().and_then(|words| row(&said.text, &filled(words, names)));
        let seen = match &fault {
            Some(fault) => format!("NOT AS EXPECTED: {fault}"),
            None => first.unwrap_or("(nothing)").split_whitespace().collect::<Vec<_>>().join(" "),
        };
        let seconds = begun.elapsed().as_secs_f64();
        let (feature, expected) = (step.feature, step.expected);
        self.rows.push(Row { feature, by, line: line.clone(), expected, seen, seconds });
        if let Some(fault) = fault {
            self.faults.push(format!("{} by {by}: {line}\n  {fault}; it said:\n{}", step.feature, said.text));
            if step.acts {
                self.print();
                panic!("{}", self.faults.join("\n"));
            }
        }
    }

    fn print(&self) {
        let seconds = self.begun.elapsed().as_secs_f64();
        println!("{:4} {:8} {:>5}  {:WIDTH$}  {:44}  seen", "", "by", "s", "line", "expected");
        for Row { feature, by, line, expected, seen, seconds } in &self.rows {
            let (line, seen) = (short(line), short(seen));
            println!("{feature:4} {by:8} {seconds:5.1}  {line:WIDTH$}  {expected:44}  {seen}");
        }
        println!("{} lines in {seconds:.0} s, {} not as expected", self.rows.len(), self.faults.len());
    }

    /// Prints the table; every line must have said what is expected.
    pub fn end(self) {
        self.print();
        assert!(self.faults.is_empty(), "{}", self.faults.join("\n"));
    }
}

fn short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= WIDTH { line } else { line.chars().take(WIDTH - 1).chain(['…']).collect() }
}
