//! What a node decides about commands and other nodes. Pure: takes `now`, returns what is to be done.

use std::collections::BTreeMap;
use std::time::Instant;

use super::forwards::Forwards;
use super::members::{Members, Way};
use crate::domain::id::{NodeId, StreamId};
use crate::storage::writer::Claim;

/// The state of one node in the cluster; `W` is what a command is with all that belongs to it.
pub struct Core<W> {
    /// Who is there.
    pub members: Members,
    forwards: Forwards<W>,
    /// The number of the newest command that came from each node: a few bytes for each of its runs, for as long as this lasts.
    came: BTreeMap<NodeId, u64>,
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
    pub fn new(me: NodeId, name: String, most: usize) -> Self {
        Core { members: Members::new(me, name), forwards: Forwards::new(most), came: BTreeMap::new() }
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

    /// Notes a command that came from another node; returns whether it is a new one. A node numbers them as it sends them, and
    /// they come in that order; what was said before and is said again, by whoever can write to the bus, is not done again.
    pub fn is_new(&mut self, number: u64, from: NodeId) -> bool {
        let newest = self.came.entry(from).or_default();
        let is_new = number > *newest;
        *newest = number.max(*newest);
        is_new
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
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn a_command_that_is_said_again_is_no_new_one() {
        let [me, one, other] = [1, 2, 3].map(|n| NodeId::new(Timestamp(n)));
        let mut core: Core<()> = Core::new(me, "hub-1".to_owned(), 4);
        assert!(core.is_new(1, one) && core.is_new(4, one) && core.is_new(1, other));
        assert!(!core.is_new(4, one) && !core.is_new(2, one) && !core.is_new(1, other));
        assert!(core.is_new(5, one));
    }
}
