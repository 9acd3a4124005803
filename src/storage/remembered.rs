//! What the writer remembers of the channels that it sends to: where each one's head is, who owns it, and who may post
//! there.
//!
//! It saves the question before a send. It is true as long as nobody else writes: whatever decides about a send is
//! written with an event of its channel or of the workspace, so what this writer commits itself is enough to forget by;
//! what another node writes moves the head, the owner's epoch or the version of an account, and the send's own
//! fence finds that out. Whether a key was used before is not remembered: a unique index says so, and then the question
//! is asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::send::{Item, Known, Owner};
use super::writer::Claim;
use crate::domain::channel::{ChannelKind, ChannelRole, Posting};
use crate::domain::event::Event;
use crate::domain::id::{ChannelId, NodeId, StreamId, UserId};
use crate::domain::user::Role;

/// The most channels and the most people that are remembered; then all is forgotten.
const MOST: usize = 100_000;

struct Room {
    last_seq: i64,
    last_message_no: i64,
    epoch: i64,
    mine: bool,
    kind: ChannelKind,
    posting: Posting,
    archived: Option<u8>,
    who: HashMap<UserId, (Role, i64, Option<ChannelRole>)>,
}

/// The memory of one writer.
pub(super) struct Remembered {
    node: NodeId,
    rooms: HashMap<ChannelId, Room>,
    /// How many people all rooms hold.
    people: usize,
    /// The epochs under which a write of this node as the owner did not pass the fence: why is seen when it is asked again.
    fenced: HashMap<ChannelId, i64>,
    tally: Arc<Tally>,
}

/// What came of being one of several writers, since the start.
#[derive(Debug, Default)]
pub struct Tally {
    /// Channels that this writer became the owner of.
    pub taken_over: AtomicU64,
    /// Writes as the owner that another node's write came before, or that had lost the channel.
    pub fenced: AtomicU64,
}

impl Remembered {
    /// Makes the memory of a node's writer.
    pub(super) fn new(node: NodeId, tally: Arc<Tally>) -> Self {
        Remembered { node, rooms: HashMap::new(), people: 0, fenced: HashMap::new(), tally }
    }

    /// Returns the node.
    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    /// Returns what is known of all of the items, or nothing if the store has to be asked about one.
    pub(super) fn recall(&self, items: &[Item<'_>]) -> Option<Vec<Known>> {
        let known = |(at, item): (usize, &Item<'_>)| {
            let room = self.rooms.get(&item.send.channel_id)?;
            if item.claim == Claim::Owner && !room.mine {
                return None;
            }
            let (role, version, channel_role) = *room.who.get(&item.author)?;
            let (last_seq, last_message_no, epoch) = (room.last_seq, room.last_message_no, room.epoch);
            let (kind, posting, archived) = (room.kind, room.posting, room.archived);
            let owner = if room.mine { Owner::Me } else { Owner::Recent };
            let (body_hash, response) = (None, None);
            Some(Known {
                at,
                last_seq,
                last_message_no,
                epoch,
                owner,
                role: Some(role),
                version,
                channel_role,
                kind,
                posting,
                archived,
                body_hash,
                response,
            })
        };
        items.iter().enumerate().map(known).collect()
    }

    /// Remembers what the store said.
    pub(super) fn learn(&mut self, items: &[Item<'_>], known: &[Known]) {
        if self.rooms.len() + self.people + known.len() > MOST {
            self.forget_all();
        }
        for known in known {
            let item = &items[known.at];
            if let Some(epoch) = self.fenced.remove(&item.send.channel_id) {
                let why = if epoch == known.epoch { "head" } else { "epoch" };
                self.tally.fenced.fetch_add(1, Ordering::Relaxed);
                metrics::counter!("colink_writes_fenced_total", "why" => why).increment(1);
            }
            let room = self.rooms.entry(item.send.channel_id).or_insert_with(|| Room {
                last_seq: 0,
                last_message_no: 0,
                epoch: 0,
                mine: false,
                kind: known.kind,
                posting: known.posting,
                archived: known.archived,
                who: HashMap::new(),
            });
            if (room.last_seq, room.epoch) != (known.last_seq, known.epoch) {
                // Somebody else wrote, and may have removed whom this does not ask about.
                self.people -= room.who.len();
                room.who.clear();
            }
            (room.last_seq, room.last_message_no) = (known.last_seq, known.last_message_no);
            (room.epoch, room.mine) = (known.epoch, known.owner == Owner::Me);
            (room.kind, room.posting, room.archived) = (known.kind, known.posting, known.archived);
            if let Some(role) = known.role {
                let standing = (role, known.version, known.channel_role);
                self.people += usize::from(room.who.insert(item.author, standing).is_none());
            }
        }
    }

    /// Notes where a channel's head is now, and that this node took it over, if its messages were stored; else another
    /// node was there first.
    pub(super) fn move_head(&mut self, channel: ChannelId, seq: i64, number: i64, taken: bool, stored: bool) {
        if !stored {
            if let Some(room) = self.rooms.get(&channel).filter(|room| room.mine) {
                self.fenced.insert(channel, room.epoch);
            }
            return self.forget(channel);
        }
        if taken {
            self.tally.taken_over.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("colink_channels_taken_over_total").increment(1);
        }
        if let Some(room) = self.rooms.get_mut(&channel) {
            (room.last_seq, room.last_message_no) = (seq, number);
            if taken {
                (room.epoch, room.mine) = (room.epoch + 1, true);
            }
        }
    }

    /// Forgets what these events may have changed: a channel, or with the workspace's somebody's account.
    pub(super) fn note(&mut self, events: &[Event]) {
        for event in events {
            if event.stream == StreamId::WORKSPACE {
                return self.forget_all();
            }
            self.forget(event.stream.into());
        }
    }

    /// Forgets everything.
    pub(super) fn forget_all(&mut self) {
        (self.rooms, self.people) = (HashMap::new(), 0);
        self.fenced.clear();
    }

    fn forget(&mut self, channel: ChannelId) {
        if let Some(room) = self.rooms.remove(&channel) {
            self.people -= room.who.len();
        }
    }
}
