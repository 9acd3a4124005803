//! How late a message of another node comes. Pure: takes the time.
//!
//! No clock is common to two nodes, and clocks are set. But how far apart what two of them count since their start is changes
//! only by how long a message was on its way: whatever comes later than the fastest of late came that much later.
//!
//! That holds while both of them count. A receiver whose machine was suspended did not: what waited for it meanwhile seems to come
//! faster than anything before, and its delay cannot be told, least of all that of the first, which waited longest. Those are
//! commands of the moment until its sender found it silent; each has the key under which that sender did it itself.

/// For how long, in milliseconds, the fastest is remembered, at least. What two machines count drifts apart, and one that
/// was suspended counts on from where it was.
const WINDOW: u64 = 15_000;

/// What is known of the messages of one node.
#[derive(Default)]
pub(super) struct Delay {
    since: u64,
    least: Option<i64>,
    least_before: Option<i64>,
}

impl Delay {
    /// Returns by how many milliseconds a message comes later than the fastest of late. It was `sent` so many milliseconds
    /// after its node's start, and comes `now`, so many after this one's.
    pub(super) fn of(&mut self, sent: u64, now: u64) -> u64 {
        let apart = now.cast_signed().saturating_sub(sent.cast_signed());
        if now >= self.since + WINDOW {
            (self.since, self.least_before) = (now, self.least.take());
        }
        let least = self.least.map_or(apart, |least| least.min(apart));
        self.least = Some(least);
        let fastest = self.least_before.map_or(least, |before| before.min(least));
        apart.abs_diff(fastest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_back_comes_late_and_clocks_need_not_agree() {
        let mut delay = Delay::default();
        assert_eq!(delay.of(900_000, 7), 0, "the first one seems to be fast");
        assert_eq!(delay.of(900_250, 255), 0);
        assert_eq!(delay.of(900_500, 507), 2);
        // Nothing comes for a minute, then all at once.
        for n in 1..200 {
            assert_eq!(delay.of(900_500 + n * 250, 61_000), 61_000 - 505 - n * 250);
        }
        assert_eq!(delay.of(960_995, 61_000), 0);
    }

    #[test]
    fn a_clock_that_stood_is_believed_again() {
        let mut delay = Delay::default();
        for n in 0..4 * WINDOW / 250 {
            let (now, stood) = (n * 250, n * 250 / WINDOW);
            // It stands for five seconds as the second window begins.
            let sent = now + 10_000 - if stood > 0 { 5_000 } else { 0 };
            let late = delay.of(sent, now);
            assert_eq!(late, if stood == 1 { 5_000 } else { 0 }, "after {now} ms");
        }
    }

    #[test]
    fn nonsense_is_some_delay() {
        let mut delay = Delay::default();
        for sent in [u64::MAX, 0, u64::MAX / 2, 1] {
            delay.of(sent, 1);
            delay.of(sent, u64::MAX / 2);
        }
    }
}
