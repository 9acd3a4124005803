//! Figures: what a row measured, what it was meant to be, and how both are shown.

use std::fmt;
use std::time::{Duration, Instant};

use colink::domain::id::ChannelId;

use crate::load::{Call, Heard, Record};

/// One figure of a row.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) goal: Option<Goal>,
}

/// What a figure is meant to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// A time or a share, which depends on the machine: shown, and not a failure in itself.
    AtMost(f64),
    /// The same from below.
    AtLeast(f64),
    /// A promise, whatever the machine.
    Exactly(f64),
}

impl Figure {
    /// Returns whether it is what it was meant to be.
    pub(crate) fn is_met(&self) -> bool {
        match self.goal {
            None => true,
            Some(Goal::AtMost(most)) => self.value <= most,
            Some(Goal::AtLeast(least)) => self.value >= least,
            Some(Goal::Exactly(value)) => (self.value - value).abs() < f64::EPSILON,
        }
    }

    /// Returns whether a promise was broken.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.goal, Some(Goal::Exactly(_))) && !self.is_met()
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figure { what, value, unit, goal } = self;
        write!(f, "{what} {value:.*}{unit}", if value.fract() == 0.0 { 0 } else { 2 })?;
        match goal {
            Some(Goal::AtMost(most)) if !self.is_met() => write!(f, " (goal {most})"),
            Some(Goal::AtLeast(least)) if !self.is_met() => write!(f, " (goal {least})"),
            Some(Goal::Exactly(exactly)) if !self.is_met() => write!(f, " (NOT {exactly})"),
            _ => Ok(()),
        }
    }
}

/// The figures of one row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(pub(crate) Vec<Figure>);

impl Figures {
    pub(crate) fn add(&mut self, what: &'static str, value: f64, unit: &'static str, goal: impl Into<Option<Goal>>) {
        self.0.push(Figure { what, value, unit, goal: goal.into() });
    }

    pub(crate) fn time(&mut self, what: &'static str, time: Option<Duration>, most: f64) {
        if let Some(time) = time {
            self.add(what, time.as_secs_f64(), " s", Goal::AtMost(most));
        }
    }

    pub(crate) fn count(&mut self, what: &'static str, count: usize, goal: impl Into<Option<Goal>>) {
        self.add(what, count as f64, "", goal);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> = self.0.iter().map(Figure::to_string).collect();
        f.write_str(&shown.join(", "))
    }
}

/// Returns the time below which this share of them lies.
pub(crate) fn percentile(mut times: Vec<Duration>, share: f64) -> Option<Duration> {
    times.sort_unstable();
    let at = (times.len() as f64 * share).ceil() as usize;
    times.get(at.clamp(1, times.len().max(1)) - 1).copied()
}

/// A stretch of time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Span {
    pub(crate) fn since(from: Instant) -> Span {
        Span { from, to: Instant::now() }
    }

    pub(crate) fn has(self, at: Instant) -> bool {
        (self.from..=self.to).contains(&at)
    }
}

impl Record {
    /// Returns how many connections ended within a span.
    pub(crate) fn ended(&self, span: Span) -> usize {
        self.ends.iter().filter(|end| span.has(end.at)).count()
    }

    /// Returns the attempts that began within a span.
    pub(crate) fn calls(&self, span: Span) -> Vec<Call> {
        self.calls.iter().filter(|call| span.has(call.began)).copied().collect()
    }

    /// Returns how long messages took that were sent within a span, from one node to another.
    pub(crate) fn across(&self, span: Span) -> Vec<Duration> {
        let sent = |heard: &&Heard| heard.across() && heard.at.checked_sub(heard.took).is_some_and(|at| span.has(at));
        self.heard.iter().filter(sent).map(|heard| heard.took).collect()
    }

    /// Returns how long after a moment the last message came that was said before it.
    pub(crate) fn converged(&self, moment: Instant) -> Option<Duration> {
        let late = |heard: &&Heard| heard.at > moment && heard.at - heard.took <= moment;
        self.heard.iter().filter(late).map(|heard| heard.at - moment).max()
    }

    /// Returns the longest that a write within a span had to wait, of those to certain channels that asked certain nodes
    /// alone: from its first attempt, or the beginning of the span, to its answer.
    pub(crate) fn blocked(
        &self,
        span: Span,
        channels: impl Fn(ChannelId) -> bool,
        nodes: impl Fn(usize) -> bool,
    ) -> Option<Duration> {
        let mut writes: std::collections::HashMap<u64, Vec<&Call>> = std::collections::HashMap::new();
        for call in self.calls.iter().filter(|call| channels(call.channel)) {
            writes.entry(call.write).or_default().push(call);
        }
        let waited = |calls: Vec<&Call>| {
            let (began, last) = (calls.first()?.began, calls.last().filter(|call| call.ok)?);
            let end = last.began + last.took;
            let counts = calls.iter().all(|call| nodes(call.node)) && end > span.from && began < span.to;
            counts.then(|| end - began.max(span.from))
        };
        writes.into_values().filter_map(waited).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_secs).collect();
        assert_eq!(percentile(times.clone(), 0.99), Some(Duration::from_secs(99)));
        assert_eq!(percentile(times, 1.0), Some(Duration::from_secs(100)));
        assert_eq!(percentile(Vec::new(), 0.5), None);
    }

    #[test]
    fn only_a_promise_can_be_broken() {
        let figure = |goal| Figure { what: "sockets closed", value: 2.0, unit: "", goal };
        assert!(!figure(Some(Goal::AtMost(1.0))).is_broken());
        assert!(!figure(Some(Goal::AtMost(1.0))).is_met());
        assert!(figure(Some(Goal::Exactly(0.0))).is_broken());
        assert!(figure(Some(Goal::AtLeast(2.0))).is_met());
        assert!(figure(None).is_met());
    }
}
