//! The time line: of each slot of 10 s what each edge has seen, for an hour, in bounded memory.

use crate::cell::Cell;
use serde::Serialize;
use std::collections::VecDeque;

/// Length of a slot, in seconds.
pub const SLOT: u64 = 10;
/// How far it goes back, in seconds.
const HOUR: u64 = 3600;
/// Most rows: 28 bytes each, so the time line is never larger than 28 MB. An hour of 2,700 edges that are all busy; with more
/// it begins later.
pub const MAX_ROWS: usize = 1_000_000;

/// One edge in one slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) edge: u32,
    requests: u32,
    errors: u32,
    /// Connections, where there were no requests.
    opened: u32,
    refused: u32,
    /// Bytes in both directions.
    bytes: f32,
    /// In milliseconds; NaN: not known.
    p99: f32,
}

/// Bytes of one.
#[cfg(test)]
pub(crate) const ROW: usize = size_of::<Row>();

/// A slot as it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Point {
    /// When the slot ended, in seconds since 1970.
    pub at: u64,
    /// Requests per second.
    pub rate: f64,
    /// Of these: errors of the server.
    pub errors: f64,
    /// Connections opened per second.
    pub opened: f64,
    /// Calls refused, and connections that did not come about, per second.
    pub refused: f64,
    /// Bytes per second, in both directions.
    pub bytes: f64,
    /// In milliseconds; of a sum there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
}

/// Slots in the order of time. Slots in which nothing was read are not there.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct History {
    /// Length of a slot, in seconds.
    pub slot: u64,
    /// The slots.
    pub points: Vec<Point>,
}

struct Frame {
    at: u64,
    /// How long it was, in seconds: a slot, or several where reading took longer.
    seconds: u64,
    rows: Box<[Row]>,
}

/// All slots.
#[derive(Default)]
pub(crate) struct Line {
    frames: VecDeque<Frame>,
    rows: usize,
}

fn capped(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Row {
    pub(crate) fn new(edge: u32, cell: &Cell) -> Self {
        Self {
            edge,
            requests: capped(cell.requests),
            errors: capped(cell.errors),
            opened: capped(cell.opened),
            refused: capped(cell.refused.max(cell.failed)),
            bytes: (cell.sent + cell.received) as f32,
            p99: cell.quantile(0.99).map_or(f32::NAN, |ms| ms as f32),
        }
    }
}

impl Point {
    fn add(&mut self, row: &Row, seconds: u64) {
        let each = |count: u32| f64::from(count) / seconds as f64;
        self.rate += each(row.requests);
        self.errors += each(row.errors);
        self.opened += each(row.opened);
        self.refused += each(row.refused);
        self.bytes += f64::from(row.bytes) / seconds as f64;
    }
}

impl Line {
    /// What has ended at this time (in seconds since 1970), and how long it was. Rows in the order of their edges.
    pub(crate) fn push(&mut self, at: u64, seconds: u64, rows: Vec<Row>) {
        self.rows += rows.len();
        self.frames.push_back(Frame { at, seconds: seconds.max(1), rows: rows.into() });
        while self.rows > MAX_ROWS || self.frames.front().is_some_and(|frame| frame.at + HOUR <= at) {
            let Some(gone) = self.frames.pop_front() else { return };
            self.rows -= gone.rows.len();
        }
    }

    /// When the oldest slot ended; None: there is none.
    pub(crate) fn since(&self) -> Option<u64> {
        self.frames.front().map(|frame| frame.at)
    }

    /// One edge.
    pub(crate) fn of(&self, edge: u32) -> History {
        let points = self.frames.iter().map(|frame| {
            let mut point = Point { at: frame.at, ..Point::default() };
            if let Ok(at) = frame.rows.binary_search_by_key(&edge, |row| row.edge) {
                point.add(&frame.rows[at], frame.seconds);
                point.p99 = Some(f64::from(frame.rows[at].p99)).filter(|ms| ms.is_finite());
            }
            point
        });
        History { slot: SLOT, points: points.collect() }
    }

    /// The sum of those that are wanted.
    pub(crate) fn sum(&self, wanted: impl Fn(u32) -> bool) -> History {
        let points = self.frames.iter().map(|frame| {
            let mut point = Point { at: frame.at, ..Point::default() };
            frame.rows.iter().filter(|row| wanted(row.edge)).for_each(|row| point.add(row, frame.seconds));
            point
        });
        History { slot: SLOT, points: points.collect() }
    }

    /// Calls a function with each slot's length in seconds, and each of its rows.
    pub(crate) fn each(&self, mut with: impl FnMut(u64, u32, Point)) {
        for frame in &self.frames {
            for row in &frame.rows {
                let mut point = Point { at: frame.at, ..Point::default() };
                point.add(row, frame.seconds);
                with(frame.seconds, row.edge, point);
            }
        }
    }

    /// Bytes that it takes, without the allocator's own.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.rows * size_of::<Row>() + self.frames.capacity() * size_of::<Frame>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(edges: u32, requests: u64) -> Vec<Row> {
        (0..edges).map(|edge| Row::new(edge, &Cell { requests, ..Cell::default() })).collect()
    }

    #[test]
    fn an_hour_of_a_thousand_services_is_whole_in_32_mib() {
        let mut line = Line::default();
        // Each service is called by 2.5 others, all the time, for two hours.
        for slot in 1..=720 {
            line.push(slot * SLOT, SLOT, rows(2500, 20));
        }
        assert_eq!(line.of(7).points.len(), 360, "the whole hour, and no more");
        assert!(line.bytes() <= 32 << 20, "{} bytes", line.bytes());
    }

    #[test]
    fn more_edges_make_the_line_shorter_and_not_larger() {
        let mut line = Line::default();
        for slot in 1..=360 {
            line.push(slot * SLOT, SLOT, rows(20_000, 1));
        }
        assert!(line.bytes() <= 32 << 20, "{} bytes", line.bytes());
        assert_eq!(line.of(0).points.len(), MAX_ROWS / 20_000);
        assert_eq!(line.of(0).points.last().map(|point| point.at), Some(3600), "what is newest is kept");
    }

    #[test]
    fn a_slot_is_per_second_and_a_sum_is_of_those_that_are_wanted() {
        let mut line = Line::default();
        line.push(10, SLOT, rows(3, 50));
        line.push(20, SLOT, vec![]);
        line.push(50, 3 * SLOT, rows(3, 60));
        let rates = |history: History| history.points.iter().map(|point| point.rate).collect::<Vec<_>>();
        assert_eq!(rates(line.of(1)), [5.0, 0.0, 2.0]);
        assert_eq!(rates(line.sum(|edge| edge != 1)), [10.0, 0.0, 4.0]);
        assert_eq!(rates(line.of(9)), [0.0, 0.0, 0.0]);
    }
}
