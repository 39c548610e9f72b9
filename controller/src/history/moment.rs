//! Moments, and times as people write them.

use crate::convert::duration;
use karst_rt::{clock, log};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A moment, in whole milliseconds since 1970. As text it is RFC 3339, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Moment(u64);

/// A time as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// This moment.
    At(Moment),
    /// So long before now.
    Ago(Duration),
}

/// Why the configuration of a time is not told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtError {
    /// It is no time.
    #[error(
        "{0:?} is neither a time nor an age: use for example 2026-10-02T14:03:00Z (RFC 3339), 15m or 2h [KARST-0801]"
    )]
    Unreadable(String),
    /// It has not come yet.
    #[error("{at} is in the future: it is {now} by the controller's clock; use a time before that [KARST-0802]")]
    Future {
        /// The moment that was asked for.
        at: Moment,
        /// Now, by the controller's clock.
        now: Moment,
    },
    /// It is longer ago than what is kept.
    #[error(
        "the configuration of {at} is not kept: the oldest that is kept is of {oldest}; use that time, or a later one [KARST-0803]"
    )]
    NotKept {
        /// The moment that was asked for.
        at: Moment,
        /// The earliest that can be asked for.
        oldest: Moment,
    },
}

impl Moment {
    /// Now, by the time of day.
    pub fn now() -> Self {
        Self::after_1970(clock::since_epoch())
    }

    /// So many milliseconds after the beginning of 1970.
    pub(crate) fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    fn after_1970(time: Duration) -> Self {
        Self(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    /// Milliseconds since 1970.
    pub(crate) fn millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since 1970.
    pub fn seconds(self) -> u64 {
        self.0 / 1000
    }

    /// So long before; 1970 at the earliest.
    pub(crate) fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(Self::after_1970(time).0))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&log::timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(self.0)))
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> Self {
        moment.to_string()
    }
}

impl TryFrom<String> for Moment {
    type Error = AtError;

    fn try_from(text: String) -> Result<Self, AtError> {
        text.parse()
    }
}

impl FromStr for Moment {
    type Err = AtError;

    /// RFC 3339, from 1970 on; what is less than a millisecond is cut off.
    fn from_str(text: &str) -> Result<Self, AtError> {
        let unreadable = || AtError::Unreadable(text.into());
        let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| unreadable())?;
        u64::try_from(time.unix_timestamp_nanos() / 1_000_000).map(Self).map_err(|_| unreadable())
    }
}

impl FromStr for When {
    type Err = AtError;

    /// RFC 3339, or an age as durations are written elsewhere: `90s`, `15m`, `1h30m`.
    fn from_str(text: &str) -> Result<Self, AtError> {
        match duration(text) {
            Ok(millis) => Ok(Self::Ago(Duration::from_millis(millis))),
            Err(_) => text.trim().parse().map(Self::At),
        }
    }
}

impl When {
    /// The moment that is meant at a time.
    ///
    /// # Errors
    /// It is after that time.
    pub fn resolve(self, now: Moment) -> Result<Moment, AtError> {
        match self {
            Self::At(at) if at > now => Err(AtError::Future { at, now }),
            Self::At(at) => Ok(at),
            Self::Ago(age) => Ok(now.before(age)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn a_moment_is_the_same_after_it_was_written_and_read() {
        for millis in [0, 1, 999, 1_000, 1_790_000_000_123] {
            let moment = Moment::from_millis(millis);
            assert_eq!(moment.to_string().parse(), Ok(moment), "{moment}");
            let json = serde_json::to_string(&moment).unwrap();
            assert_eq!(serde_json::from_str::<Moment>(&json).unwrap(), moment, "{json}");
        }
    }

    #[test]
    fn a_time_is_rfc_3339_or_an_age() {
        let at = |millis| Ok(When::At(Moment::from_millis(millis)));
        let ago = |seconds| Ok(When::Ago(Duration::from_secs(seconds)));
        for (text, read) in [
            ("1970-01-01T00:00:01Z", at(1000)),
            ("1970-01-01T02:00:01.2345+02:00", at(1234)),
            ("15m", ago(900)),
            ("2h", ago(7200)),
            ("1h30m", ago(5400)),
            ("0s", ago(0)),
        ] {
            assert_eq!(text.parse::<When>(), read, "{text}");
        }
        for text in
            ["", "yesterday", "15", "-15m", "1969-12-31T23:59:59Z", "2026-10-02", "2026-10-02 14:03:00", "9999999999h"]
        {
            assert_eq!(text.parse::<When>(), Err(AtError::Unreadable(text.into())), "{text}");
        }
    }

    #[test]
    fn what_has_not_come_yet_cannot_be_asked_for() {
        let now = Moment::from_millis(60_000);
        assert_eq!(When::At(now).resolve(now), Ok(now));
        assert_eq!(When::Ago(Duration::from_secs(1)).resolve(now), Ok(Moment::from_millis(59_000)));
        assert_eq!(When::Ago(Duration::from_secs(61)).resolve(now), Ok(Moment::default()), "no earlier than 1970");
        let at = Moment::from_millis(60_001);
        assert_eq!(When::At(at).resolve(now), Err(AtError::Future { at, now }));
    }
}
