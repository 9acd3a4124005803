//! A token bucket: so many a minute, so many at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;

/// How fast something may happen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    /// Tokens that come back each minute; 0 means no limit.
    pub per_minute: u32,
    /// Tokens a full bucket holds.
    pub burst: u32,
}

/// One user's or session's bucket. It starts full.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    at: Timestamp,
}

impl Bucket {
    /// Makes a full bucket.
    #[must_use]
    pub fn full(rate: Rate, now: Timestamp) -> Self {
        Bucket { tokens: f64::from(rate.burst), at: now }
    }

    /// Takes one token, or says how long until there is one.
    pub fn take(&mut self, rate: Rate, now: Timestamp) -> Result<(), Duration> {
        if rate.per_minute == 0 {
            return Ok(());
        }
        let per_second = f64::from(rate.per_minute) / 60.0;
        let refill = now.since(self.at).as_secs_f64() * per_second;
        self.tokens = (self.tokens + refill).min(f64::from(rate.burst.max(1)));
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / per_second))
    }

    /// Returns the whole tokens left.
    #[must_use]
    pub fn left(&self) -> u32 {
        self.tokens.max(0.0).floor() as u32
    }

    /// Returns how long it takes from the last token until the bucket is full again.
    #[must_use]
    pub fn full_in(&self, rate: Rate) -> Duration {
        let missing = (f64::from(rate.burst) - self.tokens).max(0.0);
        Duration::from_secs_f64(missing * 60.0 / f64::from(rate.per_minute.max(1)))
    }

    /// Returns whether the bucket would be full at `now`, so that forgetting it changes nothing.
    #[must_use]
    pub fn is_full(&self, rate: Rate, now: Timestamp) -> bool {
        let per_second = f64::from(rate.per_minute) / 60.0;
        self.tokens + now.since(self.at).as_secs_f64() * per_second >= f64::from(rate.burst)
    }
}

/// How a key stands after it asked for a token.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Standing {
    /// Tokens a full bucket holds.
    pub limit: u32,
    /// Whole tokens left.
    pub left: u32,
    /// How long until the bucket is full again.
    pub full_in: Duration,
    /// How long until there is a token, if there was none.
    pub wait: Option<Duration>,
}

/// How many keys are counted, at least, before full buckets are looked for.
const SWEPT_AT: usize = 1_024;

/// A bucket for each key, with the rate it was last asked for. A full bucket need not be remembered: those that are full
/// are forgotten whenever there are twice as many as were left the last time.
#[derive(Debug)]
pub struct Buckets<K>(Mutex<Counted<K>>);

#[derive(Debug)]
struct Counted<K> {
    buckets: HashMap<K, (Bucket, Rate)>,
    sweep_at: usize,
}

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Buckets(Mutex::new(Counted { buckets: HashMap::new(), sweep_at: SWEPT_AT }))
    }
}

impl<K: Eq + Hash> Buckets<K> {
    /// Takes one token of a key's and returns how many are left, or says how long until there is one.
    pub fn take(&self, key: K, rate: Rate, now: Timestamp) -> Result<u32, Duration> {
        match self.ask(key, rate, now) {
            None => Ok(u32::MAX),
            Some(Standing { wait: None, left, .. }) => Ok(left),
            Some(Standing { wait: Some(wait), .. }) => Err(wait),
        }
    }

    /// Takes one token of a key's, if there is one, and returns how the key stands then; nothing if there is no limit.
    pub fn ask(&self, key: K, rate: Rate, now: Timestamp) -> Option<Standing> {
        if rate.per_minute == 0 {
            return None;
        }
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.buckets.len() >= counted.sweep_at {
            counted.buckets.retain(|_, (bucket, rate)| !bucket.is_full(*rate, now));
            counted.sweep_at = SWEPT_AT.max(2 * counted.buckets.len());
        }
        let (bucket, asked) = counted.buckets.entry(key).or_insert_with(|| (Bucket::full(rate, now), rate));
        *asked = rate;
        let wait = bucket.take(rate, now).err();
        Some(Standing { limit: rate.burst, left: bucket.left(), full_in: bucket.full_in(rate), wait })
    }
}

impl<K: Eq + Hash> Buckets<K> {
    /// Says how long until there is a token of a key's; zero if there is one now. Takes none.
    pub fn wait(&self, key: &K, rate: Rate, now: Timestamp) -> Duration {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken from a copy.
        let left = counted.buckets.get(key).copied().map_or(Ok(()), |(mut bucket, _)| bucket.take(rate, now));
        left.err().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_each_refill() {
        let rate = Rate { per_minute: 60, burst: 3 };
        let mut now = Timestamp(0);
        let mut bucket = Bucket::full(rate, now);
        for _ in 0..3 {
            bucket.take(rate, now).unwrap();
        }
        assert_eq!(bucket.take(rate, now), Err(Duration::from_secs(1)));
        now = now.plus_seconds(1);
        bucket.take(rate, now).unwrap();
        assert!(bucket.take(rate, now).is_err());
        assert!(!bucket.is_full(rate, now));
        assert!(bucket.is_full(rate, now.plus_seconds(3)));
    }

    #[test]
    fn a_key_is_told_how_it_stands() {
        let (rate, now) = (Rate { per_minute: 60, burst: 2 }, Timestamp(0));
        let buckets = Buckets::default();
        let standing =
            |left, full_s, wait| Some(Standing { limit: 2, left, full_in: Duration::from_secs(full_s), wait });
        assert_eq!(buckets.ask("a", rate, now), standing(1, 1, None));
        assert_eq!(buckets.ask("a", rate, now), standing(0, 2, None));
        assert_eq!(buckets.ask("a", rate, now), standing(0, 2, Some(Duration::from_secs(1))));
        assert_eq!(buckets.ask("b", rate, now), standing(1, 1, None));
        assert_eq!(buckets.ask("a", rate, now.plus_seconds(60)), standing(1, 1, None));
        assert_eq!(buckets.ask("a", Rate { per_minute: 0, burst: 2 }, now), None);
    }

    #[test]
    fn full_buckets_are_forgotten_each_by_its_own_rate() {
        let (slow, fast) = (Rate { per_minute: 1, burst: 2 }, Rate { per_minute: 60_000, burst: 2 });
        let buckets = Buckets::default();
        let count = || buckets.0.lock().unwrap().buckets.len();
        for n in 0..10 {
            buckets.ask(n, slow, Timestamp(0));
            buckets.ask(n, slow, Timestamp(0));
        }
        for n in 10..100_000 {
            buckets.ask(n, fast, Timestamp(n * 1_000));
            assert!(count() <= SWEPT_AT);
        }
        let left = buckets.ask(0, slow, Timestamp(0).plus_seconds(1)).unwrap();
        assert!(left.wait.is_some(), "one that is not full is remembered");

        let all_at_once = Buckets::default();
        for n in 0..10_000 {
            all_at_once.ask(n, slow, Timestamp(0));
        }
        assert_eq!(all_at_once.0.lock().unwrap().buckets.len(), 10_000);
        all_at_once.ask(10_000, slow, Timestamp(0).plus_seconds(60));
        assert!(all_at_once.0.lock().unwrap().sweep_at <= 2 * 10_240);
    }

    #[test]
    fn zero_is_no_limit() {
        let rate = Rate { per_minute: 0, burst: 0 };
        let mut bucket = Bucket::full(rate, Timestamp(0));
        for _ in 0..1_000 {
            bucket.take(rate, Timestamp(0)).unwrap();
        }
    }
}
