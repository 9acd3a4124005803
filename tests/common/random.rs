//! Random choices that a seed repeats, one stream a task.

use std::time::Duration;

/// A source of choices.
pub(crate) struct Random(fastrand::Rng);

impl Random {
    /// Makes the source of one task out of the run's seed.
    pub(crate) fn of(seed: u64, task: u64) -> Random {
        Random(fastrand::Rng::with_seed(seed ^ task.wrapping_mul(0xd1b5_4a32_d192_ed03)))
    }

    /// Returns a number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0.usize(..n.max(1))
    }

    /// Returns whether something happens that does so once in `n` times.
    pub(crate) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Picks one.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Returns a time below `most`.
    pub(crate) fn time_below(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.below(1_000) as f64 / 1_000.0)
    }
}
