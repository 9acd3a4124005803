//! How often something may fail before it is left alone for a while. Pure: takes `now`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many restarts, within what time, and how long the quarantine lasts.
#[derive(Clone, Copy, Debug)]
pub struct Intensity {
    /// Restarts allowed within the window.
    pub restarts: usize,
    /// The window.
    pub window: Duration,
    /// How long something that failed too often stays down.
    pub quarantine: Duration,
}

/// The failures of one actor.
#[derive(Debug, Default)]
pub struct Failures {
    recent: VecDeque<Instant>,
    quarantined_until: Option<Instant>,
}

impl Failures {
    /// Notes a failure; returns whether a restart is due at once.
    pub fn note(&mut self, intensity: Intensity, now: Instant) -> bool {
        self.recent.push_back(now);
        while self.recent.front().is_some_and(|at| now.saturating_duration_since(*at) > intensity.window) {
            self.recent.pop_front();
        }
        if self.recent.len() <= intensity.restarts {
            return true;
        }
        self.recent.clear();
        self.quarantined_until = Some(now + intensity.quarantine);
        false
    }

    /// Returns how long the quarantine still lasts.
    pub fn quarantine(&self, now: Instant) -> Option<Duration> {
        self.quarantined_until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_failures_restart_and_a_loop_of_them_quarantines() {
        let intensity = Intensity { restarts: 2, window: Duration::from_secs(10), quarantine: Duration::from_secs(60) };
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut failures = Failures::default();
        assert!(failures.note(intensity, at(0)) && failures.note(intensity, at(1)));
        assert!(failures.note(intensity, at(20)), "the first two are forgotten");
        assert!(failures.note(intensity, at(21)));
        assert!(!failures.note(intensity, at(22)));
        assert_eq!(failures.quarantine(at(22)), Some(Duration::from_secs(60)));
        assert_eq!(failures.quarantine(at(82)), None);
    }
}
