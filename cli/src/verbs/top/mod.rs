//! `top`: rates, success and latencies of what is seen live.

mod rates;

use crate::{
    live::{Failures, Live, Told, Wanted},
    output::Format,
    problem::Problem,
    session::Session,
    verbs::install::duration,
};
use clap::Args;
use karst_core::limits;
use karst_flows::tap::Line;
use karst_rt::clock::Instant;
use rates::Rates;
use std::time::Duration;

/// How often the table on a terminal is renewed.
const RENEW: Duration = Duration::from_secs(2);
/// The table on a terminal is of the last one to two of these.
const WINDOW: Duration = Duration::from_secs(10);
/// Rows that fit a usual terminal.
const SHOWN: usize = 40;
/// Begins at the terminal's first line and empties it.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// Options of `top`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst top -n shop                    who calls whom in a namespace, renewed every 2 s
  karst top svc/reviews -n shop --paths   by method and path
  karst top -A --once --for 30s        one table of half a minute
  karst top -n shop -o json            for programs

Requests are counted at waypoints and gateways, and at ztunnels where no waypoint is, connections (tcp) at ztunnels, when
they end. Success: no answer of 5xx, no failure, no refusal. It needs the same rights as `karst tap`.")]
pub struct Top {
    #[command(flatten)]
    wanted: Wanted,
    /// A row for each method and path
    #[arg(long)]
    paths: bool,
    /// Print one table, after the time of --for; so it is where the output is no terminal
    #[arg(long)]
    once: bool,
    /// End after this time, of at most 30m [default: 10s for one table, else 30m]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    time: Option<Duration>,
    /// Output format; JSON and YAML are one table
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Counts of the last stretches of time.
struct Windows {
    current: Rates,
    begun: Instant,
    previous: Option<(Rates, Duration)>,
    failures: Failures,
}

impl Windows {
    fn new() -> Self {
        Self { current: Rates::default(), begun: Instant::now(), previous: None, failures: Failures::default() }
    }

    fn take(&mut self, session: &Session<'_>, told: Told, with_paths: bool) {
        match told {
            Told::Failed(problem) => self.failures.take(session, problem),
            Told::Line { line, .. } => {
                self.failures.heard(session);
                match *line {
                    Line::Flow(record) => self.current.add(&record.event(), with_paths),
                    Line::LostEvents { num_events_lost } => self.current.lost += num_events_lost,
                    Line::NodeStatus { .. } | Line::End { .. } => {}
                }
            }
        }
    }

    /// What is shown, and over which time; the oldest stretch goes.
    fn now(&mut self) -> (Rates, Duration) {
        let time = self.begun.elapsed();
        let all = match &self.previous {
            Some((before, long)) => (self.current.with(before), time + *long),
            None => (self.current.clone(), time),
        };
        if time >= WINDOW {
            self.previous = Some((std::mem::take(&mut self.current), time));
            self.begun = Instant::now();
        }
        all
    }
}

impl Top {
    /// Prints tables until the time is over.
    ///
    /// # Errors
    /// If no proxy can be looked at.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let one = self.once || self.output != Format::Table || session.width().is_none();
        let unasked = if one { WINDOW } else { limits::TAP_TIME };
        let time = self.time.unwrap_or(unasked).clamp(Duration::from_secs(1), limits::TAP_TIME);
        let mut live = Live::begin(session, &self.wanted, |filter| {
            (filter.limit, filter.time) = (limits::TAP_RECORDS, time);
        })
        .await?;
        live.notes.iter().for_each(|note| session.note(format!("note: {note}")));
        let mut windows = Windows::new();
        if !one {
            self.renew(session, &mut live, &mut windows).await?;
            return windows.failures.end(session);
        }
        while let Some(told) = live.next().await {
            windows.take(session, told, self.paths);
        }
        windows.failures.end(session)?;
        // Of a file it is not known how long it took.
        let took = if live.proxies == 0 { Duration::from_secs(1) } else { windows.begun.elapsed() };
        self.show(session, &windows.current, took, usize::MAX)
    }

    async fn renew(&self, session: &mut Session<'_>, live: &mut Live, windows: &mut Windows) -> Result<(), Problem> {
        let mut next = Instant::now();
        loop {
            if next <= Instant::now() {
                next = Instant::now() + RENEW;
                let (rates, time) = windows.now();
                session.text(CLEAR)?;
                session.line(format!("{} proxies, the last {} s; Ctrl+C ends it", live.proxies, time.as_secs()))?;
                self.show(session, &rates, time, SHOWN)?;
            }
            match live.next_within(next.saturating_duration_since(Instant::now())).await {
                Ok(Some(told)) => windows.take(session, told, self.paths),
                Ok(None) => return Ok(()),
                Err(_) => {}
            }
        }
    }

    fn show(&self, session: &mut Session<'_>, rates: &Rates, time: Duration, most: usize) -> Result<(), Problem> {
        let mut rows = rates.written(time);
        rows.truncate(most);
        session.show(self.output, &rates::table(&rows), &rows)?;
        if rates.lost > 0 {
            session.note(format!("note: lost: {} more than could be sent; true rates are higher", rates.lost));
        }
        Ok(())
    }
}
