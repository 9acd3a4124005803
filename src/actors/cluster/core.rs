//! What a node decides about commands and other nodes. Pure: takes `now`, returns what is to be done.

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
        Core { members: Members::new(me, name), forwards: Forwards::new(most) }
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
