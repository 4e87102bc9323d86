//! Durations and times as people write them in files: `7d`, `36h`, `250ms`; `2027-01-01T00:00:00Z`.
//!
//! Owns their text. Must not read clocks.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::core::id::Time;
use crate::core::limits;

/// A duration as text: a whole number and one unit of `ms`, `s`, `m`, `h`, `d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span(pub Duration);

/// A duration or a time that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// No duration.
    #[error("{given:?}: expected a whole number and one of ms, s, m, h, d, for example 36h, up to 3660d")]
    Span {
        /// What was given, cut to 64 characters.
        given: String,
    },
    /// No time.
    #[error("{given:?}: expected a time of RFC 3339 from 1970 on, for example 2027-01-01T00:00:00Z")]
    Time {
        /// What was given, cut to 64 characters.
        given: String,
    },
}

impl SpanError {
    /// Whether the same text can be accepted later: never.
    pub fn retryable(&self) -> bool {
        false
    }
}

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let found = UNITS.iter().find(|(_, size)| millis != 0 && millis.is_multiple_of(*size));
        let (unit, size) = found.copied().unwrap_or(("s", 1000));
        write!(f, "{}{unit}", millis / size)
    }
}

impl FromStr for Span {
    type Err = SpanError;
    fn from_str(text: &str) -> Result<Self, SpanError> {
        let wrong = || SpanError::Span { given: text.chars().take(64).collect() };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis = number.checked_mul(*size).filter(|&millis| millis <= limits::LONGEST_SPAN_MILLIS);
        Ok(Self(Duration::from_millis(millis.ok_or_else(wrong)?)))
    }
}

impl serde::Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads an RFC 3339 time; what is below a millisecond is cut. Errors: [`SpanError::Time`].
pub fn read_time(text: &str) -> Result<Time, SpanError> {
    let wrong = || SpanError::Time { given: text.chars().take(64).collect() };
    let time: jiff::Timestamp = text.parse().map_err(|_| wrong())?;
    u64::try_from(time.as_millisecond()).map(Time).map_err(|_| wrong())
}

/// Writes a time as RFC 3339 in UTC; times past the year 9999 are written as its end.
pub fn write_time(time: Time) -> String {
    let millis = i64::try_from(time.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_what_they_write() {
        for (text, seconds) in [("7d", 7 * 86_400), ("36h", 36 * 3600), ("90m", 5400), ("45s", 45), ("0s", 0)] {
            let span: Span = text.parse().expect("a span");
            assert_eq!(span.0, Duration::from_secs(seconds));
            assert_eq!(span.to_string(), text);
        }
        assert_eq!("48h".parse::<Span>().expect("a span").to_string(), "2d");
        assert_eq!("1500ms".parse::<Span>().expect("a span").to_string(), "1500ms");
        for bad in ["", "7", "d", "-1d", "1.5h", "1 d", "1w", "99999999999999999999d", "3661d", "1d2h"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_read_what_they_write() {
        let time = read_time("2100-01-01T00:00:00Z").expect("a time");
        assert_eq!(time, Time(4_102_444_800_000));
        assert_eq!(write_time(time), "2100-01-01T00:00:00Z");
        assert_eq!(read_time("2100-01-01T01:00:00+01:00"), Ok(time));
        for bad in ["", "tomorrow", "2100-01-01", "1960-01-01T00:00:00Z"] {
            assert!(read_time(bad).is_err(), "{bad}");
        }
    }
}
