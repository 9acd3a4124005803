//! What the other nodes tell of their users, and what this one tells them. Pure: takes `now`.
//!
//! Each node is the truth for the users who are there by its own sessions. What changes of them is told in [`Changes`], which
//! have a number: who misses one, or hears by a beat of a newer one than came, asks for [`All`]. So everything may be lost,
//! repeated or reordered: what is known of a node is always what it told at one time, and never goes back.
//!
//! A node is believed as long as it is heard. Of one that lives, but is not heard, its users are unknown. One that is no more
//! is believed for a while: its users come back elsewhere, and nobody is to be told that they were away.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::table::Table;
use crate::actors::cluster::envelope::{All, Changes};
use crate::actors::cluster::members::Lease;
use crate::domain::id::{NodeId, UserId};
use crate::domain::user::Presence;

/// The most users in one message.
const PIECE: usize = 2_000;
/// How long a beat may be ahead of the changes that it tells of.
const GRACE: Duration = Duration::from_secs(1);
/// How often a node is asked at most.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What this node tells the others.
#[derive(Debug)]
pub struct Voice {
    version: u64,
    untold: HashSet<UserId>,
    /// The most users in one message.
    piece: usize,
}

impl Voice {
    /// Makes the voice of a node that told up to `version` what may not be so any more.
    #[must_use]
    pub fn new(version: u64) -> Self {
        Voice { version: version + 1, untold: HashSet::new(), piece: PIECE }
    }

    /// Returns the number of what was told last.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Notes that a user is shown in another way here.
    pub fn note(&mut self, user: UserId) {
        self.untold.insert(user);
    }

    /// Returns whether there is something to tell.
    #[must_use]
    pub fn has_news(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Takes what there is to tell.
    pub fn changes(&mut self, here: &Table) -> Vec<Changes> {
        let users: Vec<_> = self.untold.drain().map(|user| (user, here.shown(user))).collect();
        let changes = users.chunks(self.piece).zip(self.version + 1..);
        let changes: Vec<_> = changes.map(|(users, version)| Changes { version, users: users.to_vec() }).collect();
        self.version += changes.len() as u64;
        changes
    }

    /// Returns all that this node shows, of one version always in the same parts. What changed has to be told before.
    #[must_use]
    pub fn all(&self, here: &Table) -> Vec<All> {
        let mut users: Vec<_> = here.all().collect();
        users.sort_unstable_by_key(|(user, _)| *user);
        let parts = users.len().div_ceil(self.piece).max(1);
        let part = |part: usize| users.iter().skip(part * self.piece).take(self.piece).copied().collect();
        let all = (0..parts).map(|n| All { version: self.version, part: n, parts, users: part(n) });
        all.collect()
    }
}

/// What is known of one node.
#[derive(Debug, Default)]
struct Node {
    /// Those who are there.
    users: HashMap<UserId, Presence>,
    /// The number of what it told last, of what came here.
    version: u64,
    /// The greatest number that was heard of.
    newest: u64,
    /// Since when something is missing.
    behind: Option<Instant>,
    /// It will not come by itself.
    is_lost: bool,
    asked: Option<Instant>,
    /// Parts of a later version, until all of them are there.
    parts: BTreeMap<usize, Vec<(UserId, Presence)>>,
    parts_of: u64,
    lease: Option<Lease>,
    /// It was not heard for so long that its users are unknown, until it is known again how they are.
    is_doubtful: bool,
    /// It beat since it is believed again.
    vouched: bool,
    /// Since when it is no more.
    over: Option<Instant>,
}

impl Node {
    /// Notes that there is a version, and whether it will not come by itself.
    fn is_at(&mut self, version: u64, is_lost: bool, now: Instant) {
        self.newest = self.newest.max(version);
        if self.newest > self.version {
            self.behind.get_or_insert(now);
            self.is_lost |= is_lost;
        }
    }

    fn came_to(&mut self, version: u64) {
        self.version = version;
        self.newest = self.newest.max(version);
        if self.newest == version {
            (self.behind, self.is_lost) = (None, false);
        }
        if self.parts_of <= version {
            self.parts = BTreeMap::new();
        }
    }

    fn set(&mut self, user: UserId, presence: Presence) {
        if presence == Presence::Offline {
            self.users.remove(&user);
        } else {
            self.users.insert(user, presence);
        }
    }

    /// Takes the place of all that was known; returns who may be shown in another way.
    fn replace(&mut self, users: HashMap<UserId, Presence>) -> Vec<UserId> {
        let before = std::mem::replace(&mut self.users, users);
        let gone = before.keys().filter(|user| !self.users.contains_key(user));
        let other = self.users.iter().filter(|(user, presence)| before.get(user) != Some(presence));
        gone.chain(other.map(|(user, _)| user)).copied().collect()
    }

    fn is_due(&self, now: Instant) -> bool {
        let for_so_long = |at: Instant, long| now.saturating_duration_since(at) >= long;
        let Some(behind) = self.behind else { return false };
        self.lease.is_none_or(|lease| lease == Lease::Holds)
            && (self.is_lost || for_so_long(behind, GRACE))
            && self.asked.is_none_or(|at| for_so_long(at, ASK_EVERY))
    }
}

/// What is known of the other nodes' users.
#[derive(Debug, Default)]
pub struct Peers {
    nodes: BTreeMap<NodeId, Node>,
}

impl Peers {
    /// Returns what the nodes that are believed say of a user, and what is left of the others' word.
    #[must_use]
    pub fn seen(&self, user: UserId) -> (Presence, Presence) {
        let (mut sure, mut unsure) = (Presence::Offline, Presence::Offline);
        for node in self.nodes.values() {
            match node.users.get(&user) {
                None => {}
                Some(_) if node.is_doubtful => unsure = unsure.max(Presence::Unknown),
                Some(presence) if node.over.is_some() => unsure = unsure.max(*presence),
                Some(presence) => sure = sure.max(*presence),
            }
        }
        (sure, unsure)
    }

    /// Returns the nodes on which a user is.
    pub fn nodes_of(&self, user: UserId) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().filter(move |(_, node)| node.users.contains_key(&user)).map(|(id, _)| *id)
    }

    /// Returns how many users are on other nodes, and of how many of these it is not known how they are; who is on several
    /// counts for each.
    #[must_use]
    pub fn count(&self) -> (usize, usize) {
        let all = self.nodes.values().map(|node| node.users.len()).sum();
        let unknown = self.nodes.values().filter(|node| node.is_doubtful).map(|node| node.users.len()).sum();
        (all, unknown)
    }

    /// Takes a node's beat, which says what it told last; 0, if it does not tell anything.
    pub fn beat(&mut self, node: NodeId, version: u64, now: Instant) {
        if version == 0 {
            return;
        }
        let node = self.nodes.entry(node).or_default();
        node.vouched = true;
        // Of whom nothing is known, nothing is on its way.
        node.is_at(version, node.version == 0, now);
    }

    /// Takes what changed on a node; returns who may be shown in another way.
    pub fn changes(&mut self, node: NodeId, changes: Changes, now: Instant) -> Vec<UserId> {
        let node = self.nodes.entry(node).or_default();
        if changes.version <= node.version {
            return Vec::new();
        }
        if node.version == 0 || changes.version > node.version + 1 {
            node.is_at(changes.version, true, now);
            return Vec::new();
        }
        for (user, presence) in &changes.users {
            node.set(*user, *presence);
        }
        node.came_to(changes.version);
        changes.users.into_iter().map(|(user, _)| user).collect()
    }

    /// Takes a part of all that a node shows; returns who may be shown in another way, when it is the last that was missing.
    pub fn all(&mut self, node: NodeId, all: All, now: Instant) -> Vec<UserId> {
        let node = self.nodes.entry(node).or_default();
        let is_old = all.version <= node.version || all.version < node.parts_of;
        if is_old || all.part >= all.parts {
            return Vec::new();
        }
        if all.version > node.parts_of {
            (node.parts_of, node.parts) = (all.version, BTreeMap::new());
        }
        node.is_at(all.version, false, now);
        node.parts.insert(all.part, all.users);
        if node.parts.len() < all.parts {
            return Vec::new();
        }
        let users = std::mem::take(&mut node.parts).into_values().flatten();
        let users = users.filter(|(_, presence)| *presence != Presence::Offline).collect();
        node.came_to(all.version);
        node.replace(users)
    }

    /// Looks which nodes are believed; returns who may be shown in another way.
    pub fn look(&mut self, lease: impl Fn(NodeId) -> Lease, linger: Duration, now: Instant) -> Vec<UserId> {
        let mut touched = Vec::new();
        self.nodes.retain(|id, node| {
            let lease = lease(*id);
            let was = (node.is_doubtful, node.over.is_some());
            node.lease = Some(lease);
            match lease {
                Lease::Holds => {
                    node.over = None;
                    node.is_lost |= node.is_doubtful && node.behind.is_some();
                    node.is_doubtful &= !node.vouched || node.behind.is_some();
                }
                Lease::Doubtful => (node.over, node.is_doubtful, node.vouched) = (None, true, false),
                Lease::Over => {
                    node.over.get_or_insert(now);
                }
            }
            let is_over = node.over.is_some_and(|since| now.saturating_duration_since(since) >= linger);
            if is_over || was != (node.is_doubtful, node.over.is_some()) {
                touched.extend(node.users.keys());
            }
            !is_over
        });
        touched
    }

    /// Takes whom to ask for all.
    pub fn due(&mut self, now: Instant) -> Vec<NodeId> {
        let due = self.nodes.iter_mut().filter(|(_, node)| node.is_due(now));
        due.map(|(id, node)| {
            node.asked = Some(now);
            *id
        })
        .collect()
    }
}

#[cfg(test)]
mod tests;
