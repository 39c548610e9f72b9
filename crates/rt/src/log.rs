//! Log output in Istio's two formats, text (`time<TAB>level<TAB>scope<TAB>message<TAB>k=v`) and JSON, written by a
//! thread of its own: nobody waits for who reads it. What does not fit into the queue is lost and counted ([`lost`]), of one pod
//! before it has filled the queue for all.

use karst_core::{civil::Civil, limits};
use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, SendError, Sender, channel},
    },
    time::SystemTime,
};
use tracing::{Event, Level, Subscriber, field::Visit};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::ParseError, layer::SubscriberExt, registry::LookupSpan, reload,
};

/// After a write, lines are gathered for this long. (One line for each request: without this the waypoint's workers and this
/// thread woke each other 15,000 times a second.)
const GATHER: std::time::Duration = std::time::Duration::from_millis(2);
/// Bytes that are written at once, about.
const BATCH: usize = 64 << 10;

static OUT: OnceLock<(Queue, Format)> = OnceLock::new();

/// Who causes lines: so many of its may wait.
#[derive(Debug, Default)]
pub struct Cause(AtomicUsize);

/// A line that waits to be written, and whose it is.
struct Line(String, Option<Arc<Cause>>);

impl Line {
    /// It waits no longer.
    fn taken(self) -> String {
        if let Some(cause) = &self.1 {
            cause.0.fetch_sub(1, Relaxed);
        }
        self.0
    }
}

/// The lines that wait. Their number is counted here, and the channel is one that grows: a channel with a bound takes the memory of all
/// its places when it is made (400 KB), in every process, and hardly ever do a hundred lines wait.
struct Queue {
    lines: Sender<Line>,
    waiting: Arc<AtomicUsize>,
    lost: AtomicU64,
}

/// The other end.
struct Waiting {
    lines: Receiver<Line>,
    count: Arc<AtomicUsize>,
}

impl Waiting {
    /// A line that is there already.
    fn at_once(&self) -> Option<String> {
        self.lines.try_recv().ok().map(|line| self.taken(line))
    }

    /// The next line, for which it waits. None: there will be no more.
    fn next(&self) -> Option<String> {
        self.lines.recv().ok().map(|line| self.taken(line))
    }

    fn taken(&self, line: Line) -> String {
        self.count.fetch_sub(1, Relaxed);
        line.taken()
    }
}

impl Queue {
    fn new() -> (Self, Waiting) {
        let ((lines, rx), waiting) = (channel(), Arc::new(AtomicUsize::new(0)));
        let other = Waiting { lines: rx, count: waiting.clone() };
        (Self { lines, waiting, lost: AtomicU64::new(0) }, other)
    }

    fn put(&self, text: String, cause: Option<&Arc<Cause>>) {
        if let Some(cause) = cause
            && cause.0.fetch_add(1, Relaxed) >= limits::LOG_LINES_OF_POD
        {
            cause.0.fetch_sub(1, Relaxed);
            self.lost.fetch_add(1, Relaxed);
            return;
        }
        let line = Line(text, cause.cloned());
        let has_place = self.waiting.fetch_add(1, Relaxed) < limits::LOG_LINES;
        let put = if has_place { self.lines.send(line) } else { Err(SendError(line)) };
        if let Err(SendError(line)) = put {
            self.waiting.fetch_sub(1, Relaxed);
            drop(line.taken());
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

/// The filter, and the text that it was at start.
static FILTER: OnceLock<(reload::Handle<EnvFilter, Registry>, String)> = OnceLock::new();

/// Why the log is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No format has that name.
    #[error("{0:?} is not a log format: use text or json")]
    Format(String),
    /// The filter cannot be read.
    #[error("log filter {filter:?}: {error}")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        error: ParseError,
    },
    /// No level has that name.
    #[error("log level {0:?}: use off, error, warn, info, debug or trace, or SCOPE:LEVEL")]
    Level(String),
    /// A part of a query that asks for nothing that there is.
    #[error("{0:?}: use level=SPEC or reset")]
    Query(String),
    /// The log has not been started.
    #[error("the log has not been started")]
    NotStarted,
    /// There is no thread to write it.
    #[error("log thread: {0}")]
    Thread(io::Error),
    /// Something else of the process has started one.
    #[error(transparent)]
    Started(#[from] tracing::subscriber::SetGlobalDefaultError),
    /// The filter is no longer there.
    #[error(transparent)]
    Reload(#[from] reload::Error),
}

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Tab-separated.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = LogError;
    fn from_str(name: &str) -> Result<Self, LogError> {
        match name {
            "text" | "plain" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            _ => Err(LogError::Format(name.into())),
        }
    }
}

/// Starts logging for the process, to standard output. `filter` is a tracing filter such as `info` or `info,access=debug`.
///
/// # Errors
/// If the filter cannot be read.
pub fn start(format: Format, filter: &str) -> Result<(), LogError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let (queue, rx) = Queue::new();
    if OUT.set((queue, format)).is_err() {
        return Ok(());
    }
    std::thread::Builder::new().name("log".into()).spawn(move || write_lines(&rx)).map_err(LogError::Thread)?;
    let _ = FILTER.set((handle, filter.into()));
    let subscriber = tracing_subscriber::registry().with(Lines(format).with_filter(layer));
    Ok(tracing::subscriber::set_global_default(subscriber)?)
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(filter).map_err(|error| LogError::Filter { filter: filter.into(), error })
}

/// What is logged, as a filter. With `query` (of Istio's page `/logging`), it is changed: `level=SPEC`, where SPEC is a level or a
/// comma separated list of `SCOPE:LEVEL` (or `SCOPE=LEVEL`) and a level for the rest; `reset` goes back to that of the start.
///
/// # Errors
/// If the filter cannot be read, or the log has not been started.
pub fn level(query: &str) -> Result<String, LogError> {
    let (handle, first) = FILTER.get().ok_or(LogError::NotStarted)?;
    for part in query.split('&').filter(|p| !p.is_empty()) {
        let filter = match part.split_once('=') {
            Some(("level", "reset")) => parse(first)?,
            Some(("level", spec)) => parse(&directives(spec)?)?,
            None if part == "reset" => parse(first)?,
            _ => return Err(LogError::Query(part.into())),
        };
        handle.reload(filter)?;
    }
    Ok(handle.with_current(ToString::to_string)?)
}

/// `a::b:debug,info` as `a::b=debug,info`. (A word alone that is no level would be a scope to the filter, with everything in it.)
fn directives(spec: &str) -> Result<String, LogError> {
    let level = |d: &str| !d.is_empty() && d.parse::<tracing::level_filters::LevelFilter>().is_ok();
    let one = |d: &str| match d.rsplit_once(':') {
        Some((scope, l)) if level(l) && !scope.ends_with(':') => Ok(format!("{scope}={l}")),
        _ if level(d) || d.split_once('=').is_some_and(|(_, l)| level(l)) => Ok(d.to_string()),
        _ => Err(LogError::Level(d.into())),
    };
    spec.split(',').map(one).collect::<Result<Vec<_>, _>>().map(|d| d.join(","))
}

/// Writes one line as it is. For records that are formatted elsewhere (the access log).
pub fn line(text: String) {
    if let Some((queue, _)) = OUT.get() {
        queue.put(text, None);
    }
}

/// The same for one who has a share of the lines that may wait, and no more.
pub fn line_of(cause: &Arc<Cause>, text: String) {
    if let Some((queue, _)) = OUT.get() {
        queue.put(text, Some(cause));
    }
}

/// Lines that were lost because they came faster than they were read.
pub fn lost() -> u64 {
    OUT.get().map_or(0, |(queue, _)| queue.lost.load(Relaxed))
}

/// The format that was chosen at start.
pub fn format() -> Format {
    OUT.get().map_or(Format::Text, |o| o.1)
}

fn write_lines(waiting: &Waiting) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut told = 0;
    while let Some(first) = waiting.next() {
        let mut next = Some(first);
        while let Some(line) = next {
            batch.extend_from_slice(line.as_bytes());
            batch.push(b'\n');
            next = if batch.len() < BATCH { waiting.at_once() } else { None };
        }
        let lost = lost();
        if lost > told {
            let count = (lost - told).to_string();
            let fields = [("lines", count.as_str())].into_iter();
            let text = "lines of the log were lost: they came faster than they were read";
            batch.extend_from_slice(record(format(), Level::WARN, "log", text, fields).as_bytes());
            batch.push(b'\n');
            told = lost;
        }
        let full = batch.len() >= BATCH;
        let _ = std::io::stdout().write_all(&batch);
        batch.clear();
        if batch.capacity() > 4 * BATCH {
            batch.shrink_to(BATCH);
        }
        // Lines of the next moment wait for each other: a sender whose line nobody waits for wakes nobody.
        if !full {
            std::thread::sleep(GATHER);
        }
    }
}

/// The time as RFC 3339 in UTC with microseconds.
pub fn timestamp(time: SystemTime) -> String {
    let Civil { year, month, day, hour, minute, second, nanosecond } = time.into();
    let mut out = String::with_capacity(32);
    // A line of the log has one each: digit by digit, which takes a tenth of the time that a format does.
    let mut put = |number: u64, digits: u32, after: char| {
        for place in (0..digits).rev() {
            out.push(char::from(b'0' + (number / 10_u64.pow(place) % 10) as u8));
        }
        out.push(after);
    };
    put(year.unsigned_abs(), 4, '-');
    for (number, after) in [(month, '-'), (day, 'T'), (hour, ':'), (minute, ':'), (second, '.')] {
        put(number, 2, after);
    }
    put(u64::from(nanosecond) / 1000, 6, 'Z');
    out
}

struct Lines(Format);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        line(record(
            self.0,
            *event.metadata().level(),
            event.metadata().target(),
            &fields.message,
            fields.rest.iter().map(|(k, v)| (*k, v.as_str())),
        ));
    }
}

/// Formats one record.
pub fn record<'a>(
    format: Format,
    level: Level,
    scope: &str,
    message: &str,
    fields: impl Iterator<Item = (&'static str, &'a str)>,
) -> String {
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let time = timestamp(crate::clock::wall());
    match format {
        Format::Text => {
            let mut out = format!("{time}\t{level}\t{scope}\t{}\t", escaped(message));
            let mut first = true;
            for (key, value) in fields {
                if !std::mem::take(&mut first) {
                    out.push(' ');
                }
                let value = escaped(value);
                let quote = value.contains([' ', '=']) || value.is_empty();
                let _ = if quote { write!(out, "{key}=\"{value}\"") } else { write!(out, "{key}={value}") };
            }
            if first {
                out.pop();
            }
            out
        }
        Format::Json => {
            let quoted = |s: &str| serde_json::Value::from(s).to_string();
            let mut out = format!(
                "{{\"level\":\"{level}\",\"time\":\"{time}\",\"scope\":{},\"message\":{}",
                quoted(scope),
                quoted(message)
            );
            for (key, value) in fields {
                let _ = write!(out, ",\"{key}\":{}", quoted(value));
            }
            out.push('}');
            out
        }
    }
}

fn escaped(text: &str) -> std::borrow::Cow<'_, str> {
    if text.chars().any(|c| c.is_control()) {
        let mut out = String::with_capacity(text.len() + 8);
        for char in text.chars() {
            if char.is_control() { out.extend(char.escape_unicode()) } else { out.push(char) }
        }
        out.into()
    } else {
        text.into()
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "message" {
            self.message = value.into()
        } else {
            self.rest.push((field.name(), value.into()))
        }
    }
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_slowly_holds_up_nobody_and_who_writes_much_leaves_room() {
        let (queue, waiting) = Queue::new();
        let (loud, quiet) = (Arc::new(Cause::default()), Arc::new(Cause::default()));
        let put = |cause: Option<&Arc<Cause>>, lines: usize| {
            let before = queue.lost.load(Relaxed);
            (0..lines).for_each(|_| queue.put("x".into(), cause));
            lines - (queue.lost.load(Relaxed) - before) as usize
        };
        assert_eq!(put(Some(&loud), 2 * limits::LOG_LINES), limits::LOG_LINES_OF_POD);
        assert_eq!((put(Some(&quiet), 100), put(None, 100)), (100, 100));
        assert_eq!(put(None, limits::LOG_LINES), limits::LOG_LINES - limits::LOG_LINES_OF_POD - 200, "then it is full");
        assert_eq!(put(Some(&quiet), 1), 0, "and nobody waits");
        let written = std::iter::from_fn(|| waiting.at_once()).count();
        assert_eq!((written, loud.0.load(Relaxed), quiet.0.load(Relaxed)), (limits::LOG_LINES, 0, 0));
        assert_eq!((put(Some(&loud), 1), queue.waiting.load(Relaxed)), (1, 1));
        drop(waiting);
        assert_eq!((put(Some(&loud), 1), loud.0.load(Relaxed)), (0, 1), "nobody writes any more");
    }

    #[test]
    fn istio_s_way_to_write_levels_is_read() {
        for (given, read) in [
            ("debug", "debug"),
            ("a::b:debug,info", "a::b=debug,info"),
            ("a=trace,warn", "a=trace,warn"),
            ("a::b=off", "a::b=off"),
        ] {
            assert_eq!(directives(given).unwrap(), read);
            assert!(parse(read).is_ok(), "{given}");
        }
        for bad in ["loud", "a:loud", "a::b", ""] {
            assert!(directives(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_event_is_one_line() {
        let r = record(Format::Text, Level::INFO, "access", "a\nb", [("k", "v\r\x1b[0m"), ("e", "x y")].into_iter());
        assert_eq!(r.lines().count(), 1);
        assert!(r.ends_with("a\\u{a}b\tk=v\\u{d}\\u{1b}[0m e=\"x y\""), "{r}");
        let j = record(Format::Json, Level::WARN, "x", "m\"", [("k", "v\n")].into_iter());
        assert_eq!(serde_json::from_str::<serde_json::Value>(&j).unwrap()["k"], "v\n");
    }

    #[test]
    fn timestamps_are_civil() {
        let t = SystemTime::UNIX_EPOCH + std::time::Duration::from_micros(1_709_210_096_123_456);
        assert_eq!(timestamp(t), "2024-02-29T12:34:56.123456Z");
    }
}
