//! What a node decides about commands and other nodes. Pure: takes `now`, returns what is to be done.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::delay::Delay;
use super::envelope::Run;
use super::forwards::Forwards;
use super::line::{Here, Line, Turn};
use super::members::{Members, Way};
use super::replay::Came;
use crate::domain::id::NodeId;
use crate::storage::writer::Claim;

/// The state of one node in the cluster; `W` is what a command is with all that belongs to it.
pub struct Core<W> {
    /// Who is there.
    pub members: Members,
    forwards: Forwards<W>,
    here: Here,
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
    /// To this node's own actor, in this name. What the same user asked of the same stream before and is still out comes
    /// back, to be carried out first, beside the owner.
    Here(Vec<W>, Claim, W),
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
        let (members, forwards) = (Members::new(me, name), Forwards::new(most));
        Core { members, forwards, here: Here::default(), born: now, from: BTreeMap::new() }
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
    pub fn route(&mut self, line: Line, write: W, now: Instant) -> Routed<'_, W> {
        let claim = match self.members.way(line.1, now) {
            Way::There(node) if self.may_go(line, node) => {
                let (number, write) = self.forwards.begin(node, line, write, now);
                return Routed::There(node, number, write);
            }
            Way::There(_) => Claim::Beside,
            Way::Here(claim) => claim,
        };
        Routed::Here(self.forwards.take_line(line, u64::MAX), claim, write)
    }

    /// Returns whether one more command may be sent to a node, and overtakes nothing on its way there.
    fn may_go(&self, line: Line, node: NodeId) -> bool {
        let is_elsewhere = self.here.has(line) || self.forwards.last_of(line).is_some_and(|last| last != node);
        !is_elsewhere && self.forwards.has_room()
    }

    /// Notes that a command is carried out here, until what this returns is dropped.
    #[must_use]
    pub fn enters(&self, line: Line) -> Turn {
        self.here.begin(line)
    }

    /// Takes back what was asked before the command of this number and is still out: that one is carried out here.
    pub fn asked_before(&mut self, line: Line, number: u64) -> Vec<W> {
        self.forwards.take_line(line, number)
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
    /// can write to the bus. This node's own, which it does not hear, are no others'.
    pub fn is_new(&mut self, from: NodeId, number: u64) -> bool {
        !self.members.is_me(from) && self.from.entry(from).or_default().came.is_new(number)
    }

    /// Notes a command that came from another node; returns for how long its answer is still waited for. Nothing is returned
    /// if it was held back until nobody waited any more: who asked was given another answer, and may have done something
    /// else since. Nor is anything if it does not tell when it was sent.
    pub fn comes(&mut self, from: NodeId, run: &Run, now: Instant) -> Option<Duration> {
        let here = self.age_ms(now);
        let delay = self.from.entry(from).or_default().delay.of(run.sent_ms?, here);
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
    use crate::domain::id::{StreamId, TokenId, UserId};
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
        assert!(!core.is_new(me, 7), "this node says nothing to itself");
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
        let line = |user| (UserId(Uuid::from_u128(user)), theirs);
        let mut goes = |user, n| matches!(core.route(line(user), n, now), Routed::There(node, ..) if node == other);
        assert!(goes(1, 1) && goes(1, 2));
        let Routed::Here(before, Claim::Beside, 3) = core.route(line(2), 3, now) else { panic!("it went on") };
        assert!(before.is_empty(), "of another user's nothing comes back");
        let Routed::Here(before, Claim::Beside, 4) = core.route(line(1), 4, now) else { panic!("it went on") };
        assert_eq!(before, [1, 2]);
    }

    #[test]
    fn what_one_user_asks_of_a_stream_goes_one_way_at_a_time() {
        let [me, other, third] = [1, 2, 3].map(|n| NodeId::new(Timestamp(n)));
        let now = Instant::now();
        let mut core = Core::new(me, "hub-1".to_owned(), 9, now);
        core.members.set_bus(true);
        core.members.showed(now);
        let hears = |core: &mut Core<u8>| {
            core.members.heard(other, "hub-2", false, now);
            core.members.heard(third, "hub-3", false, now);
        };
        hears(&mut core);
        let mut streams = (0..).map(|n| StreamId(Uuid::from_u128(n)));
        // Without its owner it is the third's.
        let theirs = streams.find(|stream| {
            let owner = core.members.owner(*stream, now);
            core.members.set_cut_off(other, true);
            let next = core.members.owner(*stream, now);
            core.members.set_cut_off(other, false);
            (owner, next) == (Some(other), Some(third))
        });
        let line = (UserId(Uuid::nil()), theirs.expect("there is one"));
        assert!(matches!(core.route(line, 1, now), Routed::There(node, 1, _) if node == other));

        core.members.set_cut_off(other, true);
        let Routed::Here(before, Claim::Beside, 2) = core.route(line, 2, now) else { panic!("it overtakes") };
        assert_eq!(before, [1]);
        let turns = [core.enters(line), core.enters(line)];
        core.members.set_cut_off(other, false);
        assert!(matches!(core.route(line, 3, now), Routed::Here(..)), "two are not done");
        drop(turns);
        assert!(matches!(core.route(line, 4, now), Routed::There(node, ..) if node == other));
        assert!(matches!(core.route(line, 5, now), Routed::There(node, ..) if node == other));
        assert_eq!(core.asked_before(line, 3), [4], "the last could not be sent");
        assert_eq!(core.answered(3, other), Some(5));
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
