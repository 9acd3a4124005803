//! A question whose names were looked up: what an index is asked, and what decides about a message that no index has yet.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::ops::Range;

use super::document::{Document, Forms, Mark};
use super::query::Text;
use crate::clock::Timestamp;
use crate::domain::id::{ChannelId, UserId};

/// Which message: its channel, and its number there.
pub type Key = (ChannelId, i64);

/// What comes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// What fits best; of what fits as well, the newer.
    #[default]
    Relevance,
    /// The newest.
    Newest,
    /// The oldest.
    Oldest,
}

/// What messages are to be found.
#[derive(Clone, PartialEq, Debug)]
pub struct Search {
    /// All that has to be so.
    pub conditions: Vec<Condition>,
    /// The channels that who asks may read and means.
    pub channels: HashSet<ChannelId>,
    /// Whether these are few that were named.
    pub is_narrow: bool,
    /// What comes first.
    pub sort: Sort,
    /// From when it is looked: ages count from here.
    pub now: Timestamp,
}

/// Something that has to be so, or not.
#[derive(Clone, PartialEq, Debug)]
pub struct Condition {
    /// Whether it is not to be so.
    pub not: bool,
    /// What.
    pub is: Is,
}

/// What can be so about a message.
#[derive(Clone, PartialEq, Debug)]
pub enum Is {
    /// This stands in its text.
    Text(Text),
    /// One of these wrote it.
    By(Vec<UserId>),
    /// It mentions one of these.
    Mentions(Vec<UserId>),
    /// It was written in this time.
    Created(Range<Timestamp>),
    /// This is true of it.
    Mark(Mark),
    /// It is one of these.
    OneOf(HashSet<Key>),
}

impl Search {
    /// Returns whether a message is one of those.
    #[must_use]
    pub fn matches(&self, document: &Document, forms: &Forms) -> bool {
        let is = |is: &Is| match is {
            Is::Text(text) => !text.find(forms).is_empty(),
            Is::By(users) => users.contains(&document.author),
            Is::Mentions(users) => document.mentions.iter().any(|user| users.contains(user)),
            Is::Created(span) => span.contains(&document.created_at),
            Is::Mark(mark) => document.marks.contains(mark),
            Is::OneOf(keys) => keys.contains(&(document.channel, document.seq)),
        };
        self.channels.contains(&document.channel)
            && self.conditions.iter().all(|condition| is(&condition.is) != condition.not)
    }

    /// Returns by how much the score of a message of this age counts: twice when it is new, and once when it is old.
    #[must_use]
    pub fn freshness(&self, created_at: Timestamp) -> f32 {
        let days = self.now.0.saturating_sub(created_at.0).max(0) as f64 / 86_400e6;
        (1.0 + 0.5f64.powf(days / HALF_LIFE_DAYS)) as f32
    }

    /// Returns where a message stands among those that were found.
    #[must_use]
    pub fn rank(&self, score: f32, created_at: Timestamp, (channel, seq): Key) -> Rank {
        let (score, at) = match self.sort {
            Sort::Relevance => (score * self.freshness(created_at), created_at.0),
            Sort::Newest => (0.0, created_at.0),
            Sort::Oldest => (0.0, created_at.0.saturating_neg()),
        };
        let seq = if self.sort == Sort::Oldest { -seq } else { seq };
        Rank { score, at, tie: low(channel), seq }
    }
}

/// After how many days what is new about a message is half gone.
pub const HALF_LIFE_DAYS: f64 = 30.0;

/// Where a message stands among those that were found: the greatest is the first.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rank {
    /// How well it fits; 0, where that does not matter.
    pub score: f32,
    /// When it was written, or the negative of that.
    pub at: i64,
    /// What tells channels apart, where all else is the same.
    pub tie: u64,
    /// Its number in its channel, or the negative of that.
    pub seq: i64,
}

impl Eq for Rank {}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        let (one, two) = ((self.at, self.tie, self.seq), (other.at, other.tie, other.seq));
        self.score.total_cmp(&other.score).then(one.cmp(&two))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Returns the random half of a channel's identifier.
#[must_use]
pub fn low(channel: ChannelId) -> u64 {
    channel.0.as_u64_pair().1
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_new_counts_twice_and_ties_go_by_time() {
        let day = 86_400_000_000;
        let now = Timestamp(1_000 * day);
        let mut search =
            Search { conditions: vec![], channels: HashSet::new(), is_narrow: false, sort: Sort::Relevance, now };
        let near = |one: f32, other: f32| (one - other).abs() < 0.001;
        assert!(near(search.freshness(now), 2.0) && near(search.freshness(Timestamp(now.0 - 30 * day)), 1.5));
        assert!(near(search.freshness(Timestamp(0)), 1.0) && near(search.freshness(Timestamp(now.0 + day)), 2.0));
        let at = |n| (ChannelId(Uuid::from_u128(1)), n);
        let old = Timestamp(now.0 - 900 * day);
        assert!(search.rank(3.0, old, at(1)) > search.rank(1.4, now, at(2)), "what fits much better is first");
        assert!(search.rank(2.0, now, at(2)) > search.rank(2.0, now, at(1)));
        search.sort = Sort::Newest;
        assert!(search.rank(1.0, now, at(1)) > search.rank(9.0, old, at(2)));
        search.sort = Sort::Oldest;
        assert!(search.rank(1.0, old, at(2)) > search.rank(9.0, now, at(1)));
        assert!(search.rank(1.0, old, at(1)) > search.rank(9.0, old, at(2)));
    }
}
