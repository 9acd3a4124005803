//! What is counted while a load runs, and how it is summed up.

use hdrhistogram::Histogram;
use serde::Serialize;

/// One receiving thread's counts; added up at the end.
#[derive(Clone)]
pub(super) struct Tally {
    /// Intended send to receive, in microseconds.
    pub(super) receive: Histogram<u64>,
    /// Intended send to reply, in microseconds.
    pub(super) ack: Histogram<u64>,
    /// From a cut to the last missed message, in microseconds, one a client.
    pub(super) caught_up: Histogram<u64>,
    /// Events received, and their payload bytes.
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// System calls that brought something.
    pub(super) reads: u64,
    /// Events at or below the last number seen.
    pub(super) duplicates: u64,
    /// Events that were not the last number plus one.
    pub(super) jumps: u64,
    /// Times that the server said it left events out.
    pub(super) lagged: u64,
    /// Connections that ended by themselves.
    pub(super) closed: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            receive: histogram(),
            ack: histogram(),
            caught_up: histogram(),
            events: 0,
            bytes: 0,
            reads: 0,
            duplicates: 0,
            jumps: 0,
            lagged: 0,
            closed: 0,
        }
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: &Tally) {
        for (mine, theirs) in
            [(&mut self.receive, &other.receive), (&mut self.ack, &other.ack), (&mut self.caught_up, &other.caught_up)]
        {
            mine.add(theirs).expect("all histograms have the same bounds");
        }
        self.events += other.events;
        self.bytes += other.bytes;
        self.reads += other.reads;
        self.duplicates += other.duplicates;
        self.jumps += other.jumps;
        self.lagged += other.lagged;
        self.closed += other.closed;
    }

    /// Returns the mean payload of an event, in bytes.
    pub(super) fn event_bytes(&self) -> usize {
        usize::try_from(self.bytes / self.events.max(1)).unwrap_or(0)
    }
}

/// Makes a histogram from a microsecond to two minutes, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("the bounds are valid")
}

/// Percentiles of a latency, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) count: u64,
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
    /// Percentile and milliseconds, denser towards the end: the curve in the report.
    pub(super) curve: Vec<(f64, f64)>,
}

impl Latency {
    /// Sums a histogram of microseconds up; `None` if it is empty.
    pub(super) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        // 0, 10, … 90, 91, … 99, 99.1, … down to one sample.
        let mut curve = Vec::new();
        let mut step = 0.1;
        let mut from = 0.0;
        while step * histogram.len() as f64 > 0.05 && step > 1e-7 {
            curve.extend((0..9).map(|n| from + f64::from(n) * step).map(|quantile| (quantile * 100.0, at(quantile))));
            from += 9.0 * step;
            step /= 10.0;
        }
        Some(Latency {
            count: histogram.len(),
            mean: histogram.mean() / 1_000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1_000.0,
            curve,
        })
    }
}

/// When each message of an open load is meant to be sent: on time whatever happened to those before, so that a server
/// that stalls is charged for every message that came meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    start: u64,
    per_second: f64,
}

impl Schedule {
    pub(super) fn new(start: u64, per_second: f64) -> Self {
        Schedule { start, per_second }
    }

    /// Returns the time of message `n`, in the ticks of `start`.
    pub(super) fn time_of(self, n: u64) -> u64 {
        self.start + (n as f64 * 1_000_000.0 / self.per_second) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_does_not_drift() {
        let schedule = Schedule::new(1_000, 3.0);
        assert_eq!(schedule.time_of(0), 1_000);
        assert_eq!(schedule.time_of(3), 1_001_000);
        assert_eq!(schedule.time_of(3_000_000), 1_000 + 1_000_000_000_000);
    }

    #[test]
    fn tallies_add_up() {
        let mut all = Tally::default();
        for latency in [1_000, 2_000, 9_000] {
            let mut one = Tally { events: 1, bytes: 300, duplicates: 1, ..Tally::default() };
            one.receive.saturating_record(latency);
            all.add(&one);
        }
        assert_eq!((all.events, all.duplicates, all.event_bytes()), (3, 3, 300));
        let latency = Latency::of(&all.receive).unwrap();
        assert_eq!(latency.count, 3);
        assert!((latency.p50 - 2.0).abs() < 0.01 && (latency.max - 9.0).abs() < 0.01);
        assert!(Latency::of(&all.ack).is_none());
    }

    #[test]
    fn a_curve_rises_and_reaches_the_tail() {
        let mut values = histogram();
        (1..=10_000).for_each(|value| values.saturating_record(value));
        let curve = Latency::of(&values).unwrap().curve;
        assert!(curve.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
        assert!(curve.last().unwrap().0 >= 99.99);
    }
}
