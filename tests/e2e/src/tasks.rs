//! The pages of tasks (docs/tasks) on the cluster, line by line. Each line of a block of `sh` is one command: it is run as it is written, or, where that would change
//! what the other pages need, the API server is asked what it would say (`--dry-run=server`). Each block of `yaml` is asked so, too. What is not done as
//! the rules have it is in one table with its reason (`tasks/table.rs`); a line that is in neither is a fault of the page.

mod line;
mod table;

pub use line::{How, Line, Part, parts, usual};

use crate::{LONG, Said, Shell, dry_apply, exercise, root};
use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};
use table::{BEFORE, FILLED, FOLLOWED, OTHERWISE, REFUSED, VALUES_OF_OTHERS};

const POLL: Duration = Duration::from_millis(300);
/// A line that goes on (`$HOME/.line`) is ended once it has said what is wanted.
const SERVE: &str = "exec 3< <(exec timeout 30 bash ./.line 2>&1); server=$!
grep -m 1 -F \"$WANTED\" <&3; found=$?
kill $server 2> /dev/null
exit $found";
/// A chart with these values, and what our own command says of the mesh configuration in it.
const RENDER: &str =
    "helm template x charts/istiod --kube-version=1.34.0 -n istio-system -f of-page.yaml > rendered.yaml
{ karst analyze --use-kube=false -n istio-system rendered.yaml || [ $? = 79 ]; } > judged
! grep 'KARST-071' judged";

/// A page, and what the tables say of it.
pub struct Page {
    /// Its path within docs/, without the ending.
    name: String,
    text: String,
}

impl Page {
    /// All of docs/tasks, in order, and the exercises that are no more than asked about.
    pub fn all() -> Vec<Self> {
        let folder = root().join("docs/tasks");
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let tasks = names.filter_map(|name| Some(format!("tasks/{}", name.strip_suffix(".md")?)));
        let mut names: Vec<String> = tasks.chain(["exercises/places".to_string()]).collect();
        names.sort();
        let read = |name: String| {
            let text = fs::read_to_string(root().join(format!("docs/{name}.md"))).unwrap();
            Self { name, text }
        };
        names.into_iter().map(read).collect()
    }

    /// Its path within docs/, without the ending.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Is what it changes changed, and taken back at its end?
    pub fn is_followed(&self) -> bool {
        self.undo().is_some()
    }

    fn undo(&self) -> Option<&'static str> {
        FOLLOWED.iter().find(|(page, _)| *page == self.name).map(|(_, undo)| *undo)
    }

    /// How a line is treated: as the table has it, else by the rules.
    ///
    /// # Errors
    /// With page and line, if nobody knows.
    pub fn how(&self, line: &Line) -> Result<How, String> {
        let named = OTHERWISE.iter().find(|(page, start, _)| *page == self.name && line.text.starts_with(start));
        named.map(|(_, _, how)| *how).map_or_else(|| usual(&line.text, self.is_followed()), Ok).map_err(|why| {
            let place = format!("docs/{}.md:{}: {}", self.name, line.at, line.text);
            format!("{place}\n  {why}: teach tests/e2e/src/tasks/line.rs, or list it with a reason in tasks/table.rs")
        })
    }

    /// What is wrong with the page and with the tables' entries for it, before anything is run.
    pub fn faults(&self) -> Vec<String> {
        let parts = parts(&self.text);
        let lines: Vec<&Line> = parts.iter().flat_map(Part::lines).collect();
        let mut faults: Vec<String> = lines.iter().filter_map(|line| self.how(line).err()).collect();
        let unread = line::unread(&self.text).into_iter();
        faults.extend(unread.map(|at| format!("docs/{}.md:{at}: put this command into a block of sh", self.name)));
        let has_line = |start: &str| lines.iter().any(|line| line.text.starts_with(start));
        let stale = OTHERWISE.iter().filter(|(page, start, _)| *page == self.name && !has_line(start));
        faults.extend(stale.map(|(page, start, _)| format!("docs/{page}.md has no line {start:?} any more")));
        let filled = FILLED.iter().filter(|(page, ..)| *page == self.name);
        let stale = filled.filter(|(_, written, _)| !lines.iter().any(|line| line.text.contains(written)));
        faults.extend(stale.map(|(page, written, _)| format!("docs/{page}.md has no {written:?} any more")));
        let has_block = |words: &str| parts.iter().any(|part| part.manifest().is_some_and(|text| text.contains(words)));
        let stale = REFUSED.iter().filter(|refused| refused.page == self.name && !has_block(refused.has));
        faults.extend(stale.map(|refused| format!("docs/{}.md has no manifest with {:?}", refused.page, refused.has)));
        faults
    }

    /// Runs what can be run of it, and asks about the rest.
    pub fn run(&self) {
        let begun = Instant::now();
        let faults = self.faults();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        let reader = Reader { page: self, shell: exercise::shell(&self.text) };
        if let Some((_, lines)) = BEFORE.iter().find(|(page, _)| *page == self.name) {
            reader.must(lines);
        }
        let parts = parts(&self.text);
        reader.manifests(&parts);
        for part in &parts {
            match part {
                Part::Commands(lines) => reader.commands(lines),
                Part::Values(at, text) => reader.values(*at, text),
                Part::Manifest(..) => {}
            }
        }
        if let Some(undo) = self.undo() {
            reader.must(undo);
        }
        println!("docs/{}.md: {:.1} s", self.name, begun.elapsed().as_secs_f64());
    }
}

/// The names of pages that the tables have.
pub fn named() -> Vec<&'static str> {
    let pages = OTHERWISE.iter().map(|(page, ..)| *page).chain(FILLED.iter().map(|(page, ..)| *page));
    let pages = pages.chain(FOLLOWED.iter().chain(BEFORE).map(|(page, _)| *page));
    pages.chain(REFUSED.iter().map(|refused| refused.page)).collect()
}

/// Somebody who types what a page says.
struct Reader<'p> {
    page: &'p Page,
    shell: Shell,
}

impl Reader<'_> {
    fn at(&self, line: usize) -> String {
        format!("docs/{}.md:{line}", self.page.name)
    }

    fn say(&self, commands: &str) -> Said {
        self.shell.run(&format!("{}{commands}", exercise::STATE), "")
    }

    /// What no page says: the state that a page begins with, and its end.
    fn must(&self, commands: &str) {
        let said = self.say(&format!("set -e\n{commands}"));
        assert!(said.is_success, "around docs/{}.md: {commands}\nit said:\n{}", self.page.name, said.text);
    }

    /// Asks about all manifests at once; one by one if one of them is refused.
    fn manifests(&self, parts: &[Part]) {
        let all = parts.iter().filter_map(|part| match part {
            Part::Manifest(at, text) => Some((*at, text.as_str())),
            Part::Commands(_) | Part::Values(..) => None,
        });
        let refused = |text: &str| REFUSED.iter().find(|r| r.page == self.page.name && text.contains(r.has));
        let (exempt, taken): (Vec<_>, Vec<_>) = all.partition(|(_, text)| refused(text).is_some());
        let together: Vec<&str> = taken.iter().map(|(_, text)| *text).collect();
        if !together.is_empty() && dry_apply(&together.join("---\n")).is_err() {
            for (at, text) in &taken {
                dry_apply(text).unwrap_or_else(|said| panic!("{}: {said}\n{text}", self.at(*at)));
            }
            panic!("docs/{}.md: each of its manifests is taken, but not all of them at once", self.page.name);
        }
        for (at, text) in exempt {
            let expected = refused(text).unwrap();
            let said = dry_apply(text).expect_err(expected.why);
            assert!(
                said.contains(expected.says),
                "{}: it is refused otherwise than {:?}: {said}",
                self.at(at),
                expected.says
            );
        }
    }

    /// Renders values for our charts; a part of another object is asked about within one.
    fn values(&self, at: usize, text: &str) {
        let key = text.split(':').next().unwrap_or_default();
        let within = |indent: &str| text.lines().map(|line| format!("{indent}{line}\n")).collect::<String>();
        let values = match key {
            _ if VALUES_OF_OTHERS.contains(&(self.page.name.as_str(), key)) => return,
            "meshConfig" | "monitoring" => text.to_string(),
            "extensionProviders" => format!("meshConfig:\n{}", within("  ")),
            "customTags" => {
                let head = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: tags, namespace: bookinfo}\nspec:\n  tracing:\n  - randomSamplingPercentage: 1\n";
                let object = format!("{head}{}", within("    "));
                dry_apply(&object).unwrap_or_else(|said| panic!("{}: {said}\n{object}", self.at(at)));
                return;
            }
            _ => panic!("{}: nobody knows what values with {key:?} are of", self.at(at)),
        };
        fs::write(self.shell.folder().join("of-page.yaml"), &values).unwrap();
        let said = self.say(&format!("set -e\n{RENDER}"));
        assert!(said.is_success, "{}: {}\n{values}", self.at(at), said.text);
    }

    fn commands(&self, lines: &[Line]) {
        let mut request: Option<&Line> = None;
        for line in lines {
            let how = self.page.how(line).unwrap_or_else(|fault| panic!("{fault}"));
            let begun = Instant::now();
            let (said, fault) = loop {
                let said = self.one(line, how);
                let fault = said.as_ref().and_then(|said| line.fault(how, said));
                if fault.is_none() || line.changes() || begun.elapsed() > LONG {
                    break (said, fault);
                }
                sleep(POLL);
                // Proxies hear of a change a moment later: what the page asks is asked again, before what it looks for.
                if let Some(request) = request {
                    self.one(request, How::Run);
                }
            };
            println!("{}: {:4.1} s  {how:?}  {}", self.at(line.at), begun.elapsed().as_secs_f64(), line.text);
            if let Some(fault) = fault {
                panic!("{}: {}: {fault}; it said:\n{}", self.at(line.at), line.text, said.unwrap().text);
            }
            if line.asks() && how == How::Run {
                request = Some(line);
            }
        }
    }

    /// Runs a line; none if it is not run.
    fn one(&self, line: &Line, how: How) -> Option<Said> {
        let filled = FILLED.iter().filter(|(page, ..)| *page == self.page.name);
        let text = filled.fold(line.text.clone(), |text, (_, written, meant)| text.replace(written, meant));
        let commands = match how {
            How::Not(_) => return None,
            How::Run | How::Finds => text,
            How::Ask => line::asking(&text),
            How::Look => line::shorter(&text),
            How::Serve(wanted) => {
                fs::write(self.shell.folder().join(".line"), text).unwrap();
                format!("WANTED='{wanted}'\n{SERVE}")
            }
        };
        Some(self.say(&commands))
    }
}
