//! Time as a parameter.
//!
//! Everything that needs the time is handed a [`Clock`]; `clippy.toml` bans the other ways. A [`Timestamp`] counts
//! microseconds, the finest unit that Postgres keeps, so a value read back equals the value written.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The years that RFC 3339 can write, 0 to 9999.
const WRITABLE: RangeInclusive<i64> = -62_167_219_200_000_000..=253_402_300_799_999_999;

/// A point in time: microseconds since 1970-01-01T00:00:00Z. In JSON an RFC 3339 string.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Returns this time moved by a number of seconds, which may be negative, but not out of the years that JSON can tell.
    #[must_use]
    pub fn plus_seconds(self, seconds: i64) -> Self {
        let moved = self.0.saturating_add(seconds.saturating_mul(1_000_000));
        Timestamp(moved.clamp(*WRITABLE.start(), *WRITABLE.end()))
    }

    /// Returns the time that has passed since `earlier`, zero if none has.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// Returns the whole seconds since the epoch.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    fn to_rfc3339(self) -> Option<String> {
        let nanos = i128::from(self.0) * 1_000;
        OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?.format(&Rfc3339).ok()
    }

    fn from_rfc3339(text: &str) -> Option<Self> {
        let nanos = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos();
        // An offset can carry a time over the edge: 9999-12-31T23:59:59-01:00 is in the year 10000.
        i64::try_from(nanos.div_euclid(1_000)).ok().filter(|micros| WRITABLE.contains(micros)).map(Timestamp)
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.to_rfc3339() {
            Some(text) => f.write_str(&text),
            None => write!(f, "{}us", self.0),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Timestamp::from_rfc3339(&text)
            .ok_or_else(|| serde::de::Error::custom("expected a time as in RFC 3339, such as 2026-01-31T12:00:00Z"))
    }
}

impl schemars::JsonSchema for Timestamp {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "date-time"})
    }
}

/// Tells the time: the system's, or one that a test moves by hand.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    manual: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// Returns a clock that stands at `start` until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        Clock { manual: Some(Arc::new(AtomicI64::new(start.0))) }
    }

    /// Returns the current time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system for the time")]
    pub fn now(&self) -> Timestamp {
        if let Some(manual) = &self.manual {
            return Timestamp(manual.load(Ordering::Acquire));
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
    }

    /// Moves a manual clock forward; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Some(manual) = &self.manual {
            manual.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_json() {
        let at = Timestamp(1_790_000_000_000_919);
        let json = serde_json::to_string(&at).unwrap();
        assert_eq!(json, "\"2026-09-21T14:13:20.000919Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), at);
    }

    #[test]
    fn a_time_that_is_read_can_be_written() {
        for edge in ["9999-12-31T23:59:59.999999Z", "0000-01-01T00:00:00Z"] {
            let at: Timestamp = serde_json::from_value(edge.into()).unwrap();
            assert_eq!(serde_json::to_value(at).unwrap(), edge);
        }
        for beyond in ["9999-12-31T23:59:59-00:01", "0000-01-01T00:00:00+00:01"] {
            assert!(serde_json::from_value::<Timestamp>(beyond.into()).is_err(), "{beyond}");
        }
    }

    #[test]
    fn no_number_of_seconds_leaves_the_years_that_can_be_written() {
        assert_eq!(Timestamp(0).plus_seconds(i64::MAX).to_string(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(Timestamp(0).plus_seconds(i64::MIN).to_string(), "0000-01-01T00:00:00Z");
    }

    #[test]
    fn a_manual_clock_stands_until_it_is_moved() {
        let clock = Clock::manual(Timestamp(5));
        assert_eq!(clock.now(), Timestamp(5));
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.now(), Timestamp(1_000_005));
    }
}
