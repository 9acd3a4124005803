//! Messages, and what hangs on one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{ChannelId, MessageId, UserId};
use crate::clock::Timestamp;

/// Who a message speaks to.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Mentions {
    /// Members named by `@name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<UserId>,
    /// Whether `@channel` stands in it: every member.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub channel: bool,
    /// Whether `@here` stands in it: meant for who is around, and counted for every member.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub here: bool,
}

impl Mentions {
    /// Returns whether nobody is mentioned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && !self.channel && !self.here
    }
}

/// One emoji on a message and who put it there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Reaction {
    /// The emoji's name without colons, or the emoji itself.
    pub emoji: String,
    /// Who reacted, first first.
    pub users: Vec<UserId>,
}

/// A message as its readers see it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// The identifier.
    pub id: MessageId,
    /// The channel it was posted in.
    pub channel_id: ChannelId,
    /// Its number among the channel's events.
    pub seq: i64,
    /// Its number among the channel's top-level messages; absent for a reply that stays in its thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_no: Option<i64>,
    /// For a reply: the `seq` of the message that the thread hangs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_seq: Option<i64>,
    /// For a reply: its number in the thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_no: Option<i64>,
    /// Who wrote it.
    pub author_id: UserId,
    /// The Markdown text; empty once deleted.
    pub text: String,
    /// Who it speaks to.
    #[serde(default, skip_serializing_if = "Mentions::is_empty")]
    pub mentions: Mentions,
    /// The sender's own identifier for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_msg_id: Option<String>,
    /// When it was stored.
    pub created_at: Timestamp,
    /// When it was last edited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited_at: Option<Timestamp>,
    /// When it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
    /// Replies in the thread that hangs on it, deleted ones counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reply_count: i64,
    /// The `seq` of the thread's newest reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reply_seq: Option<i64>,
    /// Whether it is pinned to the channel.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// The reactions on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reactions: Vec<Reaction>,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// An earlier text of an edited message.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Edit {
    /// The number of the event that replaced this text.
    pub edit_seq: i64,
    /// The text before the edit.
    pub text: String,
    /// Who edited it.
    pub editor_id: UserId,
    /// When.
    pub edited_at: Timestamp,
}

/// What the sender of a message is told: where it stands.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Sent {
    /// The channel.
    pub channel_id: ChannelId,
    /// The message's number among the channel's events.
    pub seq: i64,
    /// The message.
    pub message_id: MessageId,
    /// When it was stored, in seconds with six decimals, as Slack writes it.
    pub ts: String,
    /// Whether this repeats the answer to an earlier request with the same `client_msg_id`.
    pub duplicate: bool,
}

impl Sent {
    /// Describes a stored message.
    #[must_use]
    pub fn new(channel_id: ChannelId, seq: i64, message_id: MessageId, at: Timestamp) -> Self {
        let ts = format!("{}.{:06}", at.seconds(), at.0.rem_euclid(1_000_000));
        Sent { channel_id, seq, message_id, ts, duplicate: false }
    }
}
