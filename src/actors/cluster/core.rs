//! What a node decides about commands and other nodes. Pure: takes `now`, returns what is to be done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::delay::Delay;
use super::envelope::Run;
use super::forwards::Forwards;
use super::members::{Members, Way};
use super::replay::Came;
use crate::domain::id::{NodeId, StreamId};
use crate::storage::writer::Claim;

/// The state of one node in the cluster; `W` is what a command is with all that belongs to it.
pub struct Core<W> {
    /// Who is there.
    pub members: Members,
    forwards: Forwards<W>,
    born: Instant,
    /// What came from each node: some bytes for each of its runs, for as long as this lasts.
    from: BTreeMap<NodeId, From>,
}

#[derive(Default)]
struct From {
    came: Came,
    delay: Delay,
}

/// Where a command goes.
pub enum Routed<'a, W> {
    /// To this node's own actor, in this name.
    Here(Claim, W),
    /// To another node, under this number.
    There(NodeId, u64, &'a mut W),
}

/// What has to be done because time went by.
pub struct Ticked<W> {
    /// Nodes that did not answer in time.
    pub late: Vec<NodeId>,
    /// Commands that are carried out here, beside their owners, in this order.
    pub back: Vec<W>,
    /// Whether the bus, or the first or last of the others, came or went.
    pub changed: bool,
}

impl<W> Core<W> {
    /// Makes the state of a node that just started, which has `most` commands out at most.
    #[must_use]
    pub fn new(me: NodeId, name: String, most: usize, now: Instant) -> Self {
        Core { members: Members::new(me, name), forwards: Forwards::new(most), born: now, from: BTreeMap::new() }
    }

    /// Returns how many milliseconds ago this node started: what it says of when it sends something.
    #[must_use]
    pub fn age_ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).expect("a node runs for less than eons")
    }

    /// Returns how many commands are out.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.forwards.len()
    }

    /// Decides where a command goes. One that goes to another node is kept until it is answered, or comes back.
    pub fn route(&mut self, stream: StreamId, write: W, now: Instant) -> Routed<'_, W> {
        match self.members.way(stream, now) {
            Way::Here(claim) => Routed::Here(claim, write),
            Way::There(node) if self.forwards.has_room() => {
                let (number, write) = self.forwards.begin(node, write, now);
                Routed::There(node, number, write)
            }
            Way::There(_) => Routed::Here(Claim::Beside, write),
        }
    }

    /// Takes the command that a node answered; nothing, if it came back before, or was never sent there.
    pub fn answered(&mut self, number: u64, from: NodeId) -> Option<W> {
        self.forwards.end(number, from)
    }

    /// Notes when a sign of life of another node was sent.
    pub fn beats(&mut self, from: NodeId, sent: Option<u64>, now: Instant) {
        let here = self.age_ms(now);
        if let Some(sent) = sent {
            self.from.entry(from).or_default().delay.of(sent, here);
        }
    }

    /// Notes that a message came from another node; returns whether it is a new one, and not one that is said again by whoever
    /// can write to the bus.
    pub fn is_new(&mut self, from: NodeId, number: u64) -> bool {
        self.from.entry(from).or_default().came.is_new(number)
    }

    /// Notes a command that came from another node; returns for how long its answer is still waited for. Nothing is returned
    /// if it was held back until nobody waited any more: who asked was given another answer, and may have done something
    /// else since.
    pub fn comes(&mut self, from: NodeId, run: &Run, now: Instant) -> Option<Duration> {
        let here = self.age_ms(now);
        let delay = run.sent_ms.map_or(0, |sent| self.from.entry(from).or_default().delay.of(sent, here));
        let left = run.within_ms.checked_sub(delay).filter(|left| *left > 0)?;
        Some(Duration::from_millis(left))
    }

    /// Looks who is there, and takes back what was sent to who is not.
    pub fn tick(&mut self, bus: bool, had_others: bool, now: Instant) -> Ticked<W> {
        let changed = self.members.set_bus(bus) | (self.members.has_others(now) != had_others);
        let members = &self.members;
        let (late, back) = self.forwards.take_back(now, |node| !bus || !members.is_reachable(node, now));
        for node in &late {
            self.members.suspect(*node);
        }
        Ticked { late, back, changed }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::command::Principal;
    use crate::domain::id::{TokenId, UserId};
    use crate::domain::user::Role;

    fn run(sent_ms: u64) -> Run {
        let nobody = Principal { user_id: UserId(Uuid::nil()), role: Role::Member, token_id: TokenId(Uuid::nil()) };
        Run::new(1, 2_000, nobody, "channel.join", "{}".to_owned(), "k".to_owned()).sent(sent_ms)
    }

    #[test]
    fn each_node_has_numbers_of_its_own() {
        let [me, one, other] = [1, 2, 3].map(|n| NodeId::new(Timestamp(n)));
        let mut core: Core<()> = Core::new(me, "hub-1".to_owned(), 4, Instant::now());
        assert!(core.is_new(one, 4) && core.is_new(one, 2) && core.is_new(other, 4));
        assert!(!core.is_new(one, 4) && !core.is_new(one, 2) && !core.is_new(other, 4));
    }

    #[test]
    fn with_too_many_commands_out_the_next_is_carried_out_here() {
        let [me, other] = [1, 2].map(|n| NodeId::new(Timestamp(n)));
        let now = Instant::now();
        let mut core = Core::new(me, "hub-1".to_owned(), 2, now);
        core.members.set_bus(true);
        core.members.showed(now);
        core.members.heard(other, "hub-2", false, now);
        let mut streams = (0..).map(|n| StreamId(Uuid::from_u128(n)));
        let theirs =
            streams.find(|stream| core.members.way(*stream, now) == Way::There(other)).expect("it has a share");
        let mut goes = |n| matches!(core.route(theirs, n, now), Routed::There(node, ..) if node == other);
        assert_eq!([1, 2, 3].map(&mut goes), [true, true, false]);
        assert!(matches!(core.route(theirs, 4, now), Routed::Here(Claim::Beside, 4)));
    }

    #[test]
    fn a_command_that_nobody_waits_for_any_more_is_late() {
        let [me, other] = [1, 2].map(|n| NodeId::new(Timestamp(n)));
        let born = Instant::now();
        let mut core: Core<()> = Core::new(me, "hub-1".to_owned(), 4, born);
        let after = |ms| born + Duration::from_millis(ms);
        core.beats(other, Some(70_000), after(1_000));
        let mut comes = |sent, now| core.comes(other, &run(sent), after(now));
        assert_eq!(comes(70_100, 1_100), Some(Duration::from_secs(2)));
        assert_eq!(comes(70_200, 2_700), Some(Duration::from_millis(500)));
        assert_eq!(comes(70_300, 3_300), None);
        assert_eq!(comes(75_000, 60_000), None);
        assert_eq!(comes(129_000, 60_000), Some(Duration::from_secs(2)));
    }
}
