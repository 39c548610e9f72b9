//! An exercise's page (docs/exercises) as a reader follows it. Its blocks of `sh` are run one after the other, in one shell as far as
//! variables and functions go; where a block of `text` follows, they are run until they print what it shows. A block whose first line is
//! `# NAME.yaml` is that file.

use crate::{Istioctl, LONG, Said, Shell, root};
use std::{
    fs,
    os::unix::fs::symlink,
    thread::sleep,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(300);
/// What the commands before have set is there again, and is kept for those behind.
pub(crate) const STATE: &str =
    "cd \"$HOME\"; for file in .variables .functions; do if [ -f $file ]; then . ./$file; fi; done
trap 'export -p > \"$HOME/.variables\"; declare -f > \"$HOME/.functions\"' EXIT
set -a
";

/// Commands, and what they print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The commands.
    pub commands: String,
    /// What the page shows of their output; none: they must end well.
    pub shown: Option<String>,
}

/// A block of code of a page.
pub(crate) struct Block<'p> {
    /// What stands behind its fence.
    pub(crate) kind: &'p str,
    /// The page's line of its first line, from 1.
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// The blocks of a page, in its order.
pub(crate) fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut all: Vec<Block<'_>> = vec![];
    // How far the open one is indented, as within a list.
    let mut open: Option<usize> = None;
    for (at, line) in page.lines().enumerate() {
        let bare = line.trim_start();
        if let Some(kind) = bare.strip_prefix("```") {
            if open.is_none() {
                all.push(Block { kind, line: at + 2, text: String::new() });
            }
            open = if open.is_some() { None } else { Some(line.len() - bare.len()) };
        } else if let (Some(indent), Some(block)) = (open, all.last_mut()) {
            block.text += line.get(indent..).unwrap_or(bare);
            block.text.push('\n');
        }
    }
    all
}

/// A shell as a reader of the page has it: in the repository's folder as far as samples and charts go, with the files that the page says to write.
pub(crate) fn shell(page: &str) -> Shell {
    let shell = Shell::new(Istioctl::Ours, "default");
    for folder in ["samples", "charts"] {
        symlink(root().join(folder), shell.folder().join(folder)).unwrap();
    }
    for (file, text) in files(page) {
        fs::write(shell.folder().join(file), text).unwrap();
    }
    shell
}

/// What is run for a page, in its order.
pub fn steps(page: &str) -> Vec<Step> {
    let mut all: Vec<Step> = vec![];
    let mut before = "";
    for Block { kind, text, .. } in blocks(page) {
        if kind == "sh" {
            all.push(Step { commands: text, shown: None });
        } else if kind == "text"
            && before == "sh"
            && let Some(step) = all.last_mut()
        {
            step.shown = Some(text);
        }
        before = kind;
    }
    all
}

/// The files that a page says to write.
pub fn files(page: &str) -> Vec<(String, String)> {
    let named = |text: &str| {
        let name = text.lines().next()?.strip_prefix("# ")?;
        (name.ends_with(".yaml") && !name.contains(['/', ' '])).then(|| name.to_string())
    };
    blocks(page).into_iter().filter_map(|block| Some((named(&block.text)?, block.text))).collect()
}

/// The first line of what is shown that nothing of `said` is; `…` is anything.
pub fn missing<'s>(shown: &'s str, said: &str) -> Option<&'s str> {
    let fits = |line: &str, parts: &[&str]| {
        let mut rest = line;
        parts.iter().all(|part| match rest.split_once(part) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    };
    shown.lines().map(str::trim).filter(|line| !line.is_empty()).find(|wanted| {
        let parts: Vec<&str> = wanted.split('…').map(str::trim).filter(|part| !part.is_empty()).collect();
        !said.lines().any(|line| fits(line, &parts))
    })
}

/// A page that is followed.
pub struct Exercise {
    name: String,
    shell: Shell,
    /// Those that were not run yet.
    steps: Vec<Step>,
}

impl Exercise {
    /// Opens docs/exercises/NAME.md.
    pub fn open(name: &str) -> Self {
        let page = fs::read_to_string(root().join(format!("docs/exercises/{name}.md"))).unwrap();
        Self { name: name.into(), shell: shell(&page), steps: steps(&page) }
    }

    /// Where behind the first commands that have these words is.
    fn behind(&self, words: &str) -> usize {
        let found = self.steps.iter().position(|step| step.commands.contains(words));
        let at =
            found.unwrap_or_else(|| panic!("docs/exercises/{}.md has no (more) commands with {words:?}", self.name));
        at + 1
    }

    /// Without what was followed before: all up to the commands that have these words, with them.
    #[must_use]
    pub fn after(mut self, words: &str) -> Self {
        self.steps = self.steps.split_off(self.behind(words));
        self
    }

    /// Follows it up to the commands that have these words, which are run, too.
    pub fn through(&mut self, words: &str) {
        let rest = self.steps.split_off(self.behind(words));
        for step in std::mem::replace(&mut self.steps, rest) {
            self.one(&step);
        }
    }

    /// Follows it to its end.
    pub fn finish(mut self) {
        for step in std::mem::take(&mut self.steps) {
            self.one(&step);
        }
    }

    fn run(&self, step: &Step) -> Said {
        let strict = if step.shown.is_none() { "set -e\n" } else { "" };
        self.shell.run(&format!("{STATE}{strict}{}", step.commands), "")
    }

    /// What is wrong with an answer.
    fn fault(step: &Step, said: &Said) -> Option<String> {
        match &step.shown {
            Some(shown) => missing(shown, &said.text).map(|line| format!("no line is {line:?}")),
            None => (!said.is_success).then(|| "it fails".into()),
        }
    }

    fn one(&self, step: &Step) {
        let begun = Instant::now();
        let (said, fault) = loop {
            let said = self.run(step);
            let fault = Self::fault(step, &said);
            if fault.is_none() || step.shown.is_none() || begun.elapsed() > LONG {
                break (said, fault);
            }
            sleep(POLL);
        };
        let first = step.commands.lines().next().unwrap_or_default();
        println!(
            "{}: {:4.1} s  {}",
            self.name,
            begun.elapsed().as_secs_f64(),
            first.chars().take(100).collect::<String>()
        );
        if let Some(fault) = fault {
            panic!("docs/exercises/{}.md: {fault}:\n{}\nit said:\n{}", self.name, step.commands, said.text);
        }
    }
}
