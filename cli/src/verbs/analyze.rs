//! `analyze` and `validate`: the rule book of the webhook and of the control plane, for files and for the cluster.

use crate::{
    analysis::{
        self, Input, Level, Message, Stored, Suppression,
        rules::{self, Item, Objects},
        table_line,
    },
    output::{Format, Table},
    problem::{Exit, Problem},
    session::Session,
};
use clap::Args;
use karst_controller::analysis::{Settings, alone, whole, written};
use karst_manifest::code::CODES;
use std::{collections::BTreeSet, path::PathBuf};

/// Annotation of objects: codes that are not to be told (`*`: all), separated by commas.
const SUPPRESS: &str = "/metadata/annotations/galley.istio.io~1analyze-suppress";

/// Options of `analyze`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst analyze                                    the namespace of the context
  karst analyze -A -o json
  karst analyze new.yaml                           files, among what the cluster has
  karst analyze --use-kube=false -R manifests/     files alone, for CI
  karst analyze -S \"IST0101=VirtualService web.shop\" --failure-threshold Warning

Ends with 79 if there is a message at or above the threshold, with 65 if a file cannot be read.
An object's annotation galley.istio.io/analyze-suppress names codes that are not told, or *.")]
pub struct Analyze {
    /// Files or directories; - is standard input
    files: Vec<PathBuf>,
    /// Read what the cluster has
    #[arg(
        short = 'k',
        long,
        num_args = 0..=1,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        require_equals = true
    )]
    use_kube: bool,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Directories with all of their sub-directories
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Not to be told: CODE=RESOURCE, the resource as "Kind name.namespace", with * for any text
    #[arg(short = 'S', long = "suppress", value_name = "CODE=RESOURCE")]
    suppress: Vec<Suppression>,
    /// Level at which the exit status tells of a failure
    #[arg(long, value_enum, default_value_t = Level::Error, value_name = "LEVEL")]
    failure_threshold: Level,
    /// Only messages of this level and above
    #[arg(long, value_enum, default_value_t = Level::Info, value_name = "LEVEL")]
    output_threshold: Level,
    /// Print all codes and their meanings
    #[arg(short = 'L', long)]
    list_analyzers: bool,
    /// Accepted for compatibility: kinds that are not the mesh's are never looked at
    #[arg(long, hide = true)]
    ignore_unknown: bool,
    /// Accepted for compatibility: colours follow the terminal
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, value_name = "BOOL")]
    color: Option<Option<bool>>,
    /// Accepted for compatibility: there is nothing more to tell
    #[arg(short, long, hide = true)]
    verbose: bool,
    /// Accepted for compatibility: an API server that does not answer is given up after a minute
    #[arg(long, hide = true, value_name = "TIME")]
    timeout: Option<String>,
    /// Output format: log (lines), json or yaml
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Options of `validate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst validate -f policy.yaml
  kubectl get virtualservice -A -o yaml | karst validate -f -
  karst validate -f manifests/ -o json

What it refuses, the webhook refuses. No cluster is asked. Ends with 65 if something is refused.")]
pub struct Validate {
    /// Files or directories; - is standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE", required_unless_present = "paths")]
    files: Vec<PathBuf>,
    /// Files or directories
    #[arg(value_name = "FILE")]
    paths: Vec<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Analyze {
    /// Prints the messages.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        if self.list_analyzers {
            return list(session, self.output);
        }
        if self.files.is_empty() && !self.use_kube {
            let next = format!("name files, or leave out --use-kube=false: `{} analyze FILE...`", session.program);
            return Err(Problem::usage("analyze: nothing to look at without files and without the cluster", next));
        }
        let paths = analysis::files(&self.files, self.recursive)?;
        let cluster = if self.use_kube { Some(session.cluster().await?) } else { None };
        let namespace = match &cluster {
            Some(cluster) => cluster.namespace.clone(),
            None => session.global.namespace.clone().unwrap_or_else(|| "default".into()),
        };
        let read = analysis::read(&paths, &namespace)?;
        let stored = match &cluster {
            Some(cluster) => analysis::all_stored(cluster).await?,
            None => Stored::default(),
        };
        stored.notes.iter().for_each(|note| session.note(note));
        let settings = Settings { root_namespace: session.global.istio_namespace.clone(), ..Settings::default() };
        let mut messages = judge(&read, stored, &settings);
        let of_namespace = |message: &Message| {
            let Some((kind, path)) = message.origin.split_once(' ') else { return true };
            match path.split_once('/') {
                Some((place, _)) => place == namespace,
                None => kind != "Namespace" || path == namespace,
            }
        };
        messages.retain(|message| {
            (self.all_namespaces || !message.reference.is_empty() || of_namespace(message))
                && message.level >= self.output_threshold
                && !self.suppress.iter().any(|suppression| suppression.covers(message))
        });
        self.tell(session, &messages, &namespace)
    }

    fn tell(&self, session: &mut Session<'_>, messages: &[Message], namespace: &str) -> Result<(), Problem> {
        if let Some(text) = self.output.encode(&messages)? {
            session.text(&text)?;
        } else if messages.is_empty() {
            let names: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
            let what = match (names.is_empty(), self.all_namespaces) {
                (false, _) => names.join(", "),
                (true, true) => "all namespaces".into(),
                (true, false) => format!("namespace: {namespace}"),
            };
            session.line(format!("\u{2714} No validation issues found when analyzing {what}."))?;
        }
        if self.output == Format::Table {
            for message in messages {
                session.line(table_line(message))?;
            }
        }
        let count = messages.iter().filter(|message| message.level >= self.failure_threshold).count();
        if count == 0 {
            return Ok(());
        }
        Err(Problem::new(format!("analyze: {count} messages at or above the failure threshold"))
            .next("each names the fix; --failure-threshold and -S change what counts")
            .exit(Exit::Findings))
    }
}

/// The codes: Istio's where the meaning is, else ours.
fn list(session: &mut Session<'_>, output: Format) -> Result<(), Problem> {
    let mut table = Table::new(&["CODE", "SHOWN AS", "MEANING"]);
    let mut all = vec![];
    for (number, meaning) in CODES {
        let (code, shown) = (format!("KARST-{number:04}"), analysis::shown_as(*number).join(", "));
        table.row([code.clone().into(), shown.clone().into(), (*meaning).into()]);
        all.push(serde_json::json!({ "code": code, "shownAs": shown, "meaning": meaning }));
    }
    for (code, meaning) in rules::CODES {
        table.row([(*code).into(), (*code).into(), (*meaning).into()]);
        all.push(serde_json::json!({ "code": code, "shownAs": code, "meaning": meaning }));
    }
    session.show(output, &table, &all)
}

/// Everything that is to be said, the files among the stored objects.
fn judge(read: &Input, stored: Stored, settings: &Settings) -> Vec<Message> {
    let mut said = read.unread();
    said.extend(whole(&read.over(stored.objects), settings));
    for (file, line, document) in &read.documents {
        said.extend(written(document, file, *line));
    }
    let mut messages: Vec<Message> = said.iter().map(Message::from).collect();
    let item = |(file, line, value): &(PathBuf, usize, serde_json::Value)| Item {
        value: value.clone(),
        reference: format!("{}:{line}", file.display()),
    };
    let written: Vec<Item> = read.documents.iter().map(item).collect();
    let objects = Objects::new(stored.values, written, &settings.root_namespace);
    messages.extend(objects.judge());
    let conditions = objects.conditions(&messages);
    messages.extend(conditions);
    let suppressed: BTreeSet<(String, usize, String)> = read
        .documents
        .iter()
        .flat_map(|(file, line, document)| {
            let codes = document.pointer(SUPPRESS).and_then(serde_json::Value::as_str).unwrap_or_default();
            let one = |code: &str| (file.display().to_string(), *line, code.trim().to_owned());
            codes.split(',').map(one).collect::<Vec<_>>()
        })
        .collect();
    messages.retain(|message| {
        let Some((file, line)) = message.reference.rsplit_once(':') else { return true };
        let line = line.parse().unwrap_or_default();
        let is_suppressed = |code: &str| suppressed.contains(&(file.to_owned(), line, code.to_owned()));
        !is_suppressed(&message.code) && !is_suppressed("*")
    });
    messages.sort_by(|a, b| b.level.cmp(&a.level).then_with(|| a.origin.cmp(&b.origin)));
    messages.dedup();
    messages
}

impl Validate {
    /// Prints what is wrong with each object by itself.
    pub fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let named: Vec<PathBuf> = self.files.iter().chain(&self.paths).cloned().collect();
        let files = analysis::files(&named, true)?;
        let namespace = session.global.namespace.clone().unwrap_or_else(|| "default".into());
        let read = analysis::read(&files, &namespace)?;
        let settings = Settings { root_namespace: session.global.istio_namespace.clone(), ..Settings::default() };
        let mut said = read.unread();
        for (file, line, document) in &read.documents {
            // A document that could not be read is told of once.
            let is_unread = read
                .problems
                .iter()
                .any(|problem| problem.file == *file && problem.line >= *line && is_of(problem, document));
            if !is_unread {
                said.extend(alone(document, file, *line, &settings));
            }
        }
        let mut messages: Vec<Message> = said.iter().map(Message::from).collect();
        messages.dedup();
        if let Some(text) = self.output.encode(&messages)? {
            session.text(&text)?;
        } else {
            for message in &messages {
                session.line(table_line(message))?;
            }
        }
        let errors = messages.iter().filter(|message| message.level == Level::Error).count();
        let names: Vec<String> = named.iter().map(|file| file.display().to_string()).collect();
        if errors > 0 {
            return Err(Problem::new(format!("{}: {errors} errors", names.join(", ")))
                .next("each names the field and the fix")
                .exit(Exit::Data));
        }
        match self.output {
            Format::Table => session.line(format!("{:?} is valid", names.join(", "))),
            Format::Json | Format::Yaml => Ok(()),
        }
    }
}

/// Whether a problem is of the object of a document. (Its namespace may be the one of -n, which the problem does not know.)
fn is_of(problem: &karst_manifest::Problem, document: &serde_json::Value) -> bool {
    let text = |pointer: &str| document.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default();
    let (kind, path) = problem.object.split_once(' ').unwrap_or((&problem.object, ""));
    let name = path.rsplit('/').next().unwrap_or_default();
    kind == text("/kind") && name == text("/metadata/name")
}
