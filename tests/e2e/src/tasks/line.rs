//! The lines of a page, and how they are treated by the program and the verb that they begin with.

use crate::{
    Said,
    exercise::{self, Block, missing},
};

/// Programs behind a pipe, which only read.
const FILTERS: &[&str] = &["grep", "jq", "tail"];
/// Programs that a page's commands begin with.
const PROGRAMS: &[&str] = &["curl", "helm", "istioctl", "karst", "kubectl"];
/// Verbs of kubectl that change something.
const CHANGES: &[&str] = &["annotate", "apply", "create", "delete", "label", "patch"];
/// The status of `karst analyze` and `karst check` that have found something.
const FINDINGS: i32 = 79;

/// What is done with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is run as it is written, and ends with the status that the page says.
    Run,
    /// It is run, and may find something: what the cluster of the tests has is not the page's business.
    Finds,
    /// It would change something: the API server is asked what it would say.
    Ask,
    /// It goes on, and is run until it says this.
    Serve(&'static str),
    /// It looks at what happens for a time: for a shorter one.
    Look,
    /// It is not run. Why?
    Not(&'static str),
}

/// A command of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The page's line, from 1.
    pub at: usize,
    /// As it is written.
    pub text: String,
    /// What the page shows of its output.
    pub shown: Option<String>,
}

impl Line {
    /// The status that the page says it ends with: `# exit status 1`.
    fn status(&self) -> i32 {
        let said = self.text.split_once("# exit status ").and_then(|(_, rest)| rest.split([',', ' ']).next());
        said.map_or(0, |number| number.parse::<i32>().unwrap_or_else(|e| panic!("{}: {number:?}: {e}", self.text)))
    }

    /// Does it change something, so that it is run once?
    pub(super) fn changes(&self) -> bool {
        let commands = commands(&self.text);
        let words: Vec<&str> = commands.first().map(|first| first.split_whitespace().collect()).unwrap_or_default();
        match words.as_slice() {
            ["kubectl", ..] => CHANGES.contains(&verb(&words)),
            ["karst", "waypoint", verb, ..] => ["apply", "delete"].contains(verb),
            [program, ..] => ["helm", "openssl"].contains(program),
            [] => false,
        }
    }

    /// Is it a request to an application?
    pub(super) fn asks(&self) -> bool {
        self.text.starts_with("kubectl ") && self.text.contains(" exec ")
    }

    /// What is wrong with what it has said.
    pub(super) fn fault(&self, how: How, said: &Said) -> Option<String> {
        let wanted = self.status();
        if said.status != wanted && !(how == How::Finds && said.status == FINDINGS) {
            return Some(format!("it ends with {}, not with {wanted}", said.status));
        }
        let shown = self.shown.as_ref().filter(|_| matches!(how, How::Run | How::Finds))?;
        missing(shown, &said.text).map(|line| format!("no line is {line:?}"))
    }
}

/// A block of a page, with its line where that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Of `sh`.
    Commands(Vec<Line>),
    /// Of `yaml`: objects.
    Manifest(usize, String),
    /// Of `yaml values`: values of a chart, or a part of an object.
    Values(usize, String),
}

impl Part {
    /// Its commands.
    pub fn lines(&self) -> &[Line] {
        match self {
            Self::Commands(lines) => lines,
            Self::Manifest(..) | Self::Values(..) => &[],
        }
    }

    /// Its objects.
    pub fn manifest(&self) -> Option<&str> {
        match self {
            Self::Manifest(_, text) => Some(text),
            Self::Commands(_) | Self::Values(..) => None,
        }
    }
}

/// The blocks of a page. A block of `text` behind a single command is what that one prints.
pub fn parts(page: &str) -> Vec<Part> {
    let mut all: Vec<Part> = vec![];
    let mut before = "";
    for Block { kind, line, text } in exercise::blocks(page) {
        match kind {
            "sh" => all.push(Part::Commands(lines(line, &text))),
            "yaml" => all.push(Part::Manifest(line, text)),
            "yaml values" => all.push(Part::Values(line, text)),
            "text" => {
                if let Some(Part::Commands(lines)) = all.last_mut().filter(|_| before == "sh")
                    && let [only] = lines.as_mut_slice()
                {
                    only.shown = Some(text);
                }
            }
            _ => panic!("line {line}: nobody knows what a block of {kind:?} is"),
        }
        before = kind;
    }
    all
}

/// Lines of the page that are indented as code, and begin with one of our programs: a command that nobody follows.
pub(super) fn unread(page: &str) -> Vec<usize> {
    let mut is_open = false;
    let is_unread = |line: &str| {
        is_open ^= line.trim_start().starts_with("```");
        let program = line.strip_prefix("    ").and_then(|code| code.trim_start_matches("$ ").split(' ').next());
        !is_open && program.is_some_and(|program| PROGRAMS.contains(&program))
    };
    let numbered = page.lines().map(is_unread).zip(1..);
    numbered.filter_map(|(is_unread, at)| is_unread.then_some(at)).collect()
}

fn lines(first: usize, text: &str) -> Vec<Line> {
    let all = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    all.map(|(at, line)| Line { at: first + at, text: line.into(), shown: None }).collect()
}

/// The commands of a line, without its comment: a shell takes them apart at `|`, `;` and `&` outside of quotes and brackets.
fn commands(line: &str) -> Vec<String> {
    let mut all = vec![];
    let (mut now, mut quote, mut depth) = (String::new(), None, 0_usize);
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, '|' | ';' | '&') if depth == 0 => {
                all.push(std::mem::take(&mut now));
                continue;
            }
            (None, '#') if now.is_empty() || now.ends_with(' ') => break,
            _ => {}
        }
        now.push(letter);
    }
    all.push(now);
    all.iter().map(|command| command.trim().to_string()).filter(|command| !command.is_empty()).collect()
}

/// The verb of kubectl's words: the first that is no option, nor the value of `-n`.
fn verb<'w>(words: &[&'w str]) -> &'w str {
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        if *word == "-n" {
            words.next();
        } else if !word.starts_with('-') {
            return word;
        }
    }
    ""
}

/// How a line is treated by the rules. What a page that is followed changes is changed.
///
/// # Errors
/// Why there is no rule.
pub fn usual(line: &str, is_followed: bool) -> Result<How, String> {
    if line.ends_with('\\') || line.contains("<<") || line.starts_with(' ') {
        return Err("a command of these pages is one line".into());
    }
    let commands = commands(line);
    let Some((first, others)) = commands.split_first() else { return Err("it has no command".into()) };
    let program = |command: &String| command.split(' ').next().unwrap_or_default().to_string();
    if let Some(other) = others.iter().map(program).find(|other| !FILTERS.contains(&other.as_str())) {
        return Err(format!("nobody knows {other:?} behind a command"));
    }
    let words: Vec<&str> = first.split_whitespace().collect();
    let change = if is_followed { How::Run } else { How::Ask };
    Ok(match words.as_slice() {
        ["kubectl", ..] => match verb(&words) {
            verb if CHANGES.contains(&verb) => change,
            "exec" | "get" | "logs" | "rollout" | "wait" => How::Run,
            "port-forward" => How::Serve("Forwarding from"),
            verb => return Err(format!("nobody knows kubectl's {verb:?}")),
        },
        ["karst", "admin", "log", ..]
        | ["karst", "bug-report" | "explain" | "proxy-config" | "proxy-status" | "validate" | "ztunnel-config", ..]
        | ["karst", "waypoint", "generate" | "list" | "status", ..]
        | ["karst", "x", "describe", ..] => How::Run,
        ["karst", "analyze" | "check", ..] => How::Finds,
        ["karst", "waypoint", "apply" | "delete", ..] if is_followed => How::Run,
        ["karst", "top", "--file", ..] => How::Run,
        ["karst", "tap" | "top", ..] => How::Look,
        ["karst", "dashboard", ..] => How::Serve("http://"),
        ["helm", "install" | "upgrade", ..] => How::Ask,
        ["openssl", "req", ..] => How::Run,
        [word, ..] if word.split_once("=$(kubectl").is_some_and(|(name, _)| is_name(name)) => How::Run,
        [program, verb, ..] => return Err(format!("nobody knows \"{program} {verb}\"")),
        _ => return Err(format!("nobody knows {first:?}")),
    })
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|letter| letter.is_ascii_uppercase() || letter == b'_')
}

/// A line that changes something, as a question to the API server.
pub(super) fn asking(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let verb = verb(&words);
    line.replacen(&format!(" {verb} "), &format!(" {verb} --dry-run=server "), 1)
}

/// A line that looks for a time, which looks for a second.
pub(super) fn shorter(line: &str) -> String {
    let line = match line.split_once(" --for ") {
        Some((before, after)) => format!("{before}{}", after.find(' ').map_or("", |end| &after[end..])),
        None => line.to_string(),
    };
    ["karst tap", "karst top"].iter().fold(line, |line, start| line.replacen(start, &format!("{start} --for 1s"), 1))
}
