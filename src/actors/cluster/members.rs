//! Who is there, who can be reached, and who owns what. Pure: takes `now`.
//!
//! A node shows that it lives in two ways: by the bus, and by its row in the database. Either is enough to be a member; only
//! who is heard by the bus can be sent commands. Nothing here is certain, and nothing needs to be: two nodes that disagree
//! about an owner both write correctly, one of them slower.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::domain::id::{NodeId, StreamId};
use crate::storage::writer::Claim;

/// Who gives no sign of life for so long is no member.
pub const DEAD: Duration = Duration::from_secs(5);
/// Who is not heard by the bus for so long is not sent anything.
pub const SILENT: Duration = Duration::from_millis(800);
/// After so long without a sign of life a node is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Whose row moved on so often since the bus brought anything lives, but cannot be heard. Of one that died it moves on once
/// at most.
const MISSES: u8 = 2;

/// Whether what a node told is still believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lease {
    /// Yes: it would be heard if it were not so.
    Holds,
    /// It lives, but it is not heard; or nobody is.
    Doubtful,
    /// It is no more.
    Over,
}

/// Where a command goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// To this node's own actor, which writes in this name.
    Here(Claim),
    /// To the owner.
    There(NodeId),
}

/// What is known of another node.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// When the bus last brought a sign of life.
    pub by_bus: Option<Instant>,
    /// What its row's beat was, and when it was first seen to be that.
    pub by_store: Option<(i64, Instant)>,
    /// How often that moved on since the bus last brought a sign of life.
    misses: u8,
    /// It did not answer a command in time; it is sent nothing until it is heard again.
    suspect: bool,
    /// It leaves: it owns nothing any more.
    left: bool,
    /// It is cut off from the database: it owns nothing, and is sent nothing, until it is not.
    cut_off: bool,
}

impl Peer {
    fn last_sign(&self) -> Option<Instant> {
        self.by_bus.max(self.by_store.map(|(_, at)| at))
    }

    /// Returns whether it is there: a member, or on its way out and serving its clients on.
    #[must_use]
    pub fn is_there(&self, now: Instant) -> bool {
        self.last_sign().is_some_and(|at| now.saturating_duration_since(at) < DEAD)
    }

    /// Returns whether it is a member.
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        !self.left && self.is_there(now)
    }

    /// Returns whether it can be sent a command.
    #[must_use]
    pub fn is_reachable(&self, now: Instant) -> bool {
        let heard = self.by_bus.is_some_and(|at| now.saturating_duration_since(at) < SILENT);
        heard && !self.suspect && !self.left && !self.cut_off
    }
}

/// One node's view of all.
#[derive(Debug)]
pub struct Members {
    me: NodeId,
    name: String,
    /// When this node last showed others that it lives: who was stopped for long has to do that before it owns anything.
    showed: Option<Instant>,
    left: bool,
    cut_off: bool,
    bus: bool,
    /// When the database was last read.
    read: Option<Instant>,
    peers: BTreeMap<NodeId, Peer>,
}

impl Members {
    /// Makes the view of a node that just started.
    #[must_use]
    pub fn new(me: NodeId, name: String) -> Self {
        Members { me, name, showed: None, left: false, cut_off: false, bus: false, read: None, peers: BTreeMap::new() }
    }

    /// Returns whether a node is this one.
    #[must_use]
    pub fn is_me(&self, node: NodeId) -> bool {
        node == self.me
    }

    /// Notes that this node showed that it lives.
    pub fn showed(&mut self, now: Instant) {
        self.showed = Some(now);
    }

    /// Notes that this node leaves: it owns nothing from now on.
    pub fn leave(&mut self) {
        self.left = true;
    }

    /// Notes whether a node, or this one, is cut off from the database.
    pub fn set_cut_off(&mut self, node: NodeId, cut_off: bool) {
        if node == self.me {
            self.cut_off = cut_off;
        } else if let Some(peer) = self.peers.get_mut(&node) {
            peer.cut_off = cut_off;
        }
    }

    /// Notes whether the bus works; returns whether that changed.
    pub fn set_bus(&mut self, up: bool) -> bool {
        std::mem::replace(&mut self.bus, up) != up
    }

    /// Notes a sign of life by the bus, and whether the node is leaving; returns whether it is the first one.
    pub fn heard(&mut self, node: NodeId, name: &str, leaves: bool, now: Instant) -> bool {
        if node == self.me {
            return false;
        }
        let peer = self.peer(node, name);
        let is_new = peer.by_bus.is_none();
        (peer.by_bus, peer.misses, peer.suspect, peer.left) = (Some(now), 0, false, leaves);
        is_new
    }

    /// Notes what the database says.
    pub fn read<'a>(&mut self, rows: impl IntoIterator<Item = (NodeId, &'a str, i64)>, now: Instant) {
        self.read = Some(now);
        let mut there = Vec::new();
        for (node, name, beat) in rows {
            there.push(node);
            if node != self.me {
                let peer = self.peer(node, name);
                match peer.by_store {
                    Some((known, _)) if known == beat => continue,
                    Some(_) => peer.misses = peer.misses.saturating_add(1),
                    None => {}
                }
                peer.by_store = Some((beat, now));
            }
        }
        for (node, peer) in &mut self.peers {
            if !there.contains(node) {
                peer.by_store = None;
            }
        }
    }

    fn peer(&mut self, node: NodeId, name: &str) -> &mut Peer {
        self.peers.entry(node).or_insert_with(|| Peer {
            name: name.to_owned(),
            by_bus: None,
            by_store: None,
            misses: 0,
            suspect: false,
            left: false,
            cut_off: false,
        })
    }

    /// Notes that a node did not answer in time.
    pub fn suspect(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.suspect = true;
        }
    }

    /// Forgets those of whom there was no sign for long; returns them, with the beat of their row.
    pub fn forget_dead(&mut self, now: Instant) -> Vec<(NodeId, Option<i64>)> {
        let is_dead = |peer: &Peer| peer.last_sign().is_none_or(|at| now.saturating_duration_since(at) >= FORGOTTEN);
        let dead: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, peer)| is_dead(peer))
            .map(|(id, peer)| (*id, peer.by_store.map(|(beat, _)| beat)))
            .collect();
        self.peers.retain(|_, peer| !is_dead(peer));
        dead
    }

    /// Returns whether a node can be sent a command.
    #[must_use]
    pub fn is_reachable(&self, node: NodeId, now: Instant) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.is_reachable(now))
    }

    /// Returns the other nodes that are known.
    pub fn peers(&self) -> impl Iterator<Item = (NodeId, &Peer)> {
        self.peers.iter().map(|(id, peer)| (*id, peer))
    }

    /// Returns whether what a node told is still believed. That it leaves changes nothing: its users move one by one.
    #[must_use]
    pub fn lease(&self, node: NodeId, now: Instant) -> Lease {
        let is_recent = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < DEAD);
        let Some(peer) = self.peers.get(&node) else { return Lease::Over };
        match is_recent(peer.last_sign()) {
            true if peer.misses < MISSES => Lease::Holds,
            true => Lease::Doubtful,
            false if self.bus || is_recent(self.read) => Lease::Over,
            false => Lease::Doubtful,
        }
    }

    /// Returns whether any other node is there, to be told things.
    #[must_use]
    pub fn has_others(&self, now: Instant) -> bool {
        self.peers.values().any(|peer| peer.is_there(now))
    }

    /// Returns whether live events of some other member may not get here, so that the log is looked at more often.
    #[must_use]
    pub fn is_degraded(&self, now: Instant) -> bool {
        !self.bus || self.peers.values().any(|peer| peer.is_live(now) && !peer.is_reachable(now))
    }

    /// Returns whether this node counts as a member itself.
    #[must_use]
    pub fn am_live(&self, now: Instant) -> bool {
        !self.left && self.showed.is_some_and(|at| now.saturating_duration_since(at) < DEAD)
    }

    /// Returns who owns a stream: of all members that are not cut off from the database the one that scores highest with it.
    #[must_use]
    pub fn owner(&self, stream: StreamId, now: Instant) -> Option<NodeId> {
        let me = (self.am_live(now) && !self.cut_off).then_some((self.me, &self.name));
        let may_own = |peer: &Peer| peer.is_live(now) && !peer.cut_off;
        let others = self.peers.iter().filter(|(_, peer)| may_own(peer)).map(|(id, peer)| (*id, &peer.name));
        let best = me.into_iter().chain(others).max_by_key(|(id, name)| (score(name, stream), *id));
        best.map(|(id, _)| id)
    }

    /// Returns where a command for a stream goes.
    #[must_use]
    pub fn way(&self, stream: StreamId, now: Instant) -> Way {
        match self.owner(stream, now) {
            Some(owner) if owner == self.me => Way::Here(Claim::Owner),
            Some(owner) if self.bus && self.is_reachable(owner, now) => Way::There(owner),
            _ => Way::Here(Claim::Beside),
        }
    }
}

/// Scores a node for a stream (rendezvous hashing): when a node comes or goes, only what it owns moves. The same in every
/// release, or nodes of two would disagree.
fn score(name: &str, stream: StreamId) -> u64 {
    // FNV-1a of the name, then the finalizer of splitmix64 over it and both halves of the stream.
    let name = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let (high, low) = stream.0.as_u64_pair();
    mix(mix(name ^ high).wrapping_add(low))
}

fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn nodes(count: i64) -> Vec<NodeId> {
        (1..=count).map(|n| NodeId::new(Timestamp(n))).collect()
    }

    fn view(me: NodeId, all: &[NodeId], now: Instant) -> Members {
        let name = |id: NodeId| format!("hub-{}", all.iter().position(|n| *n == id).unwrap());
        let mut members = Members::new(me, name(me));
        members.set_bus(true);
        members.showed(now);
        for id in all {
            members.heard(*id, &name(*id), false, now);
        }
        members
    }

    fn streams() -> Vec<StreamId> {
        (0..3_000).map(|n| StreamId::new(Timestamp(n))).collect()
    }

    #[test]
    fn all_agree_on_the_owner_and_each_owns_its_share() {
        let (all, now) = (nodes(3), Instant::now());
        let views: Vec<Members> = all.iter().map(|me| view(*me, &all, now)).collect();
        let mut owned = BTreeMap::new();
        for stream in streams() {
            let owner = views[0].owner(stream, now).unwrap();
            assert!(views.iter().all(|view| view.owner(stream, now) == Some(owner)));
            *owned.entry(owner).or_insert(0) += 1;
        }
        assert!(owned.values().all(|count| (850..1_150).contains(count)), "{owned:?}");
    }

    #[test]
    fn when_a_node_dies_only_what_it_owned_moves() {
        let (all, now) = (nodes(4), Instant::now());
        let mut members = view(all[0], &all, now);
        let before: Vec<_> = streams().into_iter().map(|s| (s, members.owner(s, now).unwrap())).collect();
        let later = now + DEAD;
        members.showed(later);
        for id in &all[..3] {
            members.heard(*id, "", false, later);
        }
        for (stream, owner) in before {
            let after = members.owner(stream, later).unwrap();
            assert!(after == owner || owner == all[3]);
            assert_ne!(after, all[3]);
        }
    }

    #[test]
    fn the_score_is_the_same_in_every_release() {
        assert_eq!(score("hub-1", StreamId::WORKSPACE), 16_374_679_095_499_242_489);
    }

    #[test]
    fn who_cannot_be_reached_is_not_sent_anything_but_still_owns() {
        let (all, now) = (nodes(2), Instant::now());
        let mut members = view(all[0], &all, now);
        let theirs = streams().into_iter().find(|s| members.owner(*s, now) == Some(all[1])).unwrap();
        let mine = streams().into_iter().find(|s| members.owner(*s, now) == Some(all[0])).unwrap();
        assert_eq!(members.way(theirs, now), Way::There(all[1]));
        assert_eq!(members.way(mine, now), Way::Here(Claim::Owner));

        members.suspect(all[1]);
        assert_eq!(members.way(theirs, now), Way::Here(Claim::Beside));
        assert!(members.is_degraded(now));
        members.heard(all[1], "hub-1", false, now);
        assert_eq!(members.way(theirs, now), Way::There(all[1]));
        assert!(!members.is_degraded(now));

        let silent = now + SILENT;
        assert_eq!(members.way(theirs, silent), Way::Here(Claim::Beside), "the bus brings nothing");
        members.read([(all[1], "hub-1", 7)], silent);
        let later = silent + DEAD - Duration::from_millis(1);
        members.showed(later);
        assert_eq!(members.owner(theirs, later), Some(all[1]), "the database says that it lives");
        members.read([(all[1], "hub-1", 7)], later);
        let dead = silent + DEAD;
        assert_eq!(members.owner(theirs, dead), Some(all[0]), "its beat stands still");
        assert_eq!(members.way(theirs, dead), Way::Here(Claim::Owner));
    }

    #[test]
    fn who_was_stopped_for_long_owns_nothing_until_it_shows_itself() {
        let (all, now) = (nodes(1), Instant::now());
        let mut members = view(all[0], &all, now);
        let stream = streams()[0];
        assert_eq!(members.way(stream, now), Way::Here(Claim::Owner));
        let later = now + DEAD;
        assert_eq!(members.way(stream, later), Way::Here(Claim::Beside));
        members.showed(later);
        assert_eq!(members.way(stream, later), Way::Here(Claim::Owner));
        members.leave();
        assert_eq!(members.way(stream, later), Way::Here(Claim::Beside));
    }

    #[test]
    fn who_leaves_owns_nothing_at_once() {
        let (all, now) = (nodes(2), Instant::now());
        let mut members = view(all[0], &all, now);
        members.heard(all[1], "hub-1", true, now);
        assert!(streams().into_iter().all(|s| members.owner(s, now) == Some(all[0])));
        assert!(members.has_others(now), "it serves its clients on, and is told what is new");
        assert!(!members.has_others(now + DEAD));
        assert!(members.forget_dead(now).is_empty());
        assert_eq!(members.forget_dead(now + FORGOTTEN).len(), 1);
    }

    #[test]
    fn who_is_cut_off_from_the_database_owns_nothing_until_it_is_not() {
        let (all, now) = (nodes(2), Instant::now());
        let mut members = view(all[0], &all, now);
        let (theirs, mine) = {
            let of = |node| streams().into_iter().find(|s| members.owner(*s, now) == Some(node)).unwrap();
            (of(all[1]), of(all[0]))
        };
        members.set_cut_off(all[1], true);
        assert_eq!(members.way(theirs, now), Way::Here(Claim::Owner));
        assert!(members.has_others(now), "it is told what is committed");
        assert_eq!(members.lease(all[1], now), Lease::Holds, "and its users are there");

        members.set_cut_off(all[0], true);
        assert_eq!(members.way(mine, now), Way::Here(Claim::Beside), "nobody is to take it over");
        members.set_cut_off(all[1], false);
        assert_eq!(members.way(mine, now), Way::There(all[1]), "the other one can write");
        members.set_cut_off(all[0], false);
        assert_eq!(members.way(mine, now), Way::Here(Claim::Owner));
    }

    #[test]
    fn who_lives_and_is_not_heard_is_doubted_and_who_is_dead_is_not() {
        let (all, now) = (nodes(2), Instant::now());
        let after = |s| now + Duration::from_secs(s);
        let mut members = view(all[0], &all, now);
        members.read([(all[1], "hub-1", 1)], now);
        assert_eq!(members.lease(all[1], now), Lease::Holds);
        members.read([(all[1], "hub-1", 2)], after(2));
        assert_eq!(members.lease(all[1], after(6)), Lease::Holds, "it may have died behind that");
        members.read([(all[1], "hub-1", 2)], after(7));
        assert_eq!(members.lease(all[1], after(7)), Lease::Over);
        members.read([(all[1], "hub-1", 3)], after(8));
        assert_eq!(members.lease(all[1], after(8)), Lease::Doubtful);
        members.heard(all[1], "hub-1", true, after(9));
        members.read([], after(9));
        assert_eq!(members.lease(all[1], after(9)), Lease::Holds, "it leaves, and tells until it is gone");
        assert_eq!(members.lease(all[1], after(14)), Lease::Over);
        members.set_bus(false);
        assert_eq!(members.lease(all[1], after(14)), Lease::Doubtful, "nobody is heard, and nothing is read");
        members.read([], after(14));
        assert_eq!(members.lease(all[1], after(14)), Lease::Over);
    }

    #[test]
    fn who_took_its_row_away_is_known_by_the_bus_alone() {
        let (all, now) = (nodes(2), Instant::now());
        let mut members = view(all[0], &all, now);
        let later = now + DEAD - SILENT;
        members.read([(all[1], "hub-1", 1)], later);
        assert!(members.has_others(now + DEAD));
        members.read([], now + DEAD);
        assert!(!members.has_others(now + DEAD));
    }
}
