//! What a verb is run with: the global flags, where its answer goes, and the cluster when it asks for it.

use crate::{
    cluster::Cluster,
    options::Global,
    output::{Format, Table},
    problem::{Exit, Problem},
};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// Of a terminal that does not say how wide it is.
const COLUMNS: usize = 80;

/// The surroundings of a verb.
pub struct Session<'a> {
    /// The flags of every verb.
    pub global: &'a Global,
    /// The name that the program was called by: `karst` or `istioctl`.
    pub program: &'a str,
    out: Box<dyn Write + 'a>,
    colour: bool,
    width: Option<usize>,
}

impl<'a> Session<'a> {
    /// Writes to standard output, in colours on a terminal (unless NO_COLOR is set).
    pub fn new(global: &'a Global, program: &'a str) -> Self {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let width = io::stdout().is_terminal().then(|| terminal_size::terminal_size_of(io::stdout()));
        let width = width.map(|size| size.map_or(COLUMNS, |(width, _)| usize::from(width.0)));
        Self { global, program, out: Box::new(io::stdout()), colour, width }
    }
    /// Writes elsewhere, without colours (tests).
    pub fn to(global: &'a Global, program: &'a str, out: impl Write + 'a) -> Self {
        Self { global, program, out: Box::new(out), colour: false, width: None }
    }
    /// Whether the answer may have colours.
    pub fn has_colour(&self) -> bool {
        self.colour
    }
    /// Columns of the terminal that the answer goes to; None: it goes to no terminal.
    pub fn width(&self) -> Option<usize> {
        self.width
    }
    /// Connects to the cluster.
    ///
    /// # Errors
    /// If there is no usable configuration.
    pub async fn cluster(&self) -> Result<Cluster, Problem> {
        Cluster::connect(self.global).await
    }
    /// Writes text as it is.
    ///
    /// # Errors
    /// If the output is closed.
    pub fn text(&mut self, text: &str) -> Result<(), Problem> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(|e| closed(&e))
    }
    /// Writes one line.
    ///
    /// # Errors
    /// If the output is closed.
    pub fn line(&mut self, line: impl AsRef<str>) -> Result<(), Problem> {
        self.text(&format!("{}\n", line.as_ref()))
    }
    /// Writes a note that is no part of the answer, to standard error.
    pub fn note(&self, note: impl AsRef<str>) {
        // Nobody may be reading it: that ends nothing.
        let _ = writeln!(io::stderr(), "{}", note.as_ref());
    }
    /// Writes a table.
    ///
    /// # Errors
    /// If the output is closed.
    pub fn table(&mut self, table: &Table) -> Result<(), Problem> {
        let text = table.render(self.colour);
        self.text(&text)
    }
    /// Writes a table, or what it was made from as JSON or YAML.
    ///
    /// # Errors
    /// If the output is closed.
    pub fn show(&mut self, format: Format, table: &Table, value: &impl Serialize) -> Result<(), Problem> {
        match format.encode(value)? {
            Some(text) => self.text(&text),
            None => self.table(table),
        }
    }
}

fn closed(error: &io::Error) -> Problem {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Problem::new("the reader of the answer has ended").exit(Exit::Closed);
    }
    Problem::new("cannot write the answer").because(error).next("check the disk or the program that reads the output")
}
