//! What the writer remembers of the channels that it sends to: where each one's head is, and who may post there.
//!
//! It saves the question before a send. It is true as long as nobody else writes: whatever decides about a send is
//! written with an event of its channel or of the workspace, so what this writer commits itself is enough to forget by;
//! what another process writes moves the head, and the send's own guard finds that out. Whether a key was used before
//! is not remembered: a unique index says so, and then the question is asked.

use std::collections::HashMap;

use super::send::{Item, Known};
use crate::domain::channel::{ChannelKind, ChannelRole, Posting};
use crate::domain::event::Event;
use crate::domain::id::{ChannelId, StreamId, UserId};
use crate::domain::user::Role;

/// The most channels and the most people that are remembered; then all is forgotten.
const MOST: usize = 100_000;

struct Room {
    last_seq: i64,
    last_message_no: i64,
    kind: ChannelKind,
    posting: Posting,
    archived: Option<u8>,
    who: HashMap<UserId, (Role, Option<ChannelRole>)>,
}

/// The memory of one writer.
#[derive(Default)]
pub(super) struct Remembered {
    rooms: HashMap<ChannelId, Room>,
    /// How many people all rooms hold.
    people: usize,
}

impl Remembered {
    /// Returns what is known of all of the items, or nothing if the store has to be asked about one.
    pub(super) fn recall(&self, items: &[Item<'_>]) -> Option<Vec<Known>> {
        let known = |(at, item): (usize, &Item<'_>)| {
            let room = self.rooms.get(&item.send.channel_id)?;
            let (role, channel_role) = *room.who.get(&item.author)?;
            let (last_seq, last_message_no) = (room.last_seq, room.last_message_no);
            let (kind, posting, archived) = (room.kind, room.posting, room.archived);
            let (body_hash, response) = (None, None);
            Some(Known {
                at,
                last_seq,
                last_message_no,
                role,
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
            let room = self.rooms.entry(item.send.channel_id).or_insert_with(|| Room {
                last_seq: 0,
                last_message_no: 0,
                kind: known.kind,
                posting: known.posting,
                archived: known.archived,
                who: HashMap::new(),
            });
            (room.last_seq, room.last_message_no) = (known.last_seq, known.last_message_no);
            (room.kind, room.posting, room.archived) = (known.kind, known.posting, known.archived);
            self.people += usize::from(room.who.insert(item.author, (known.role, known.channel_role)).is_none());
        }
    }

    /// Notes where a channel's head is now, if its messages were stored; else it is where another process moved it.
    pub(super) fn move_head(&mut self, channel: ChannelId, seq: i64, number: i64, stored: bool) {
        if !stored {
            return self.forget(channel);
        }
        if let Some(room) = self.rooms.get_mut(&channel) {
            (room.last_seq, room.last_message_no) = (seq, number);
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
        *self = Remembered::default();
    }

    fn forget(&mut self, channel: ChannelId) {
        if let Some(room) = self.rooms.remove(&channel) {
            self.people -= room.who.len();
        }
    }
}
