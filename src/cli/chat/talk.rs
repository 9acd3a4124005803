//! What the model asks of the network, and what the network tells the model.

use crate::client::{Event, History};
use crate::domain::channel::Membership;
use crate::domain::id::{ChannelId, UserId};
use crate::domain::user::{Presence, User};

/// A message on its way out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Post {
    pub(super) channel: ChannelId,
    pub(super) text: String,
    /// The message that it answers.
    pub(super) thread: Option<i64>,
    /// What makes a repeat harmless: its `client_msg_id`.
    pub(super) key: String,
}

/// Something to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Want {
    /// Post this, behind what is on its way already.
    Post(Post),
    /// Mark a channel read up to an event.
    Read { channel: ChannelId, seq: i64 },
    /// Show the others that the user is typing.
    Typing(ChannelId),
    /// Read a page of history: the newest, or those before an event.
    History { channel: ChannelId, before: Option<i64> },
    /// Be told when these come and go.
    Watch(Vec<UserId>),
    /// Read users and channels again.
    Refresh,
    /// Join the public channel with this name and open it.
    Join(String),
    /// Make a public channel and open it.
    Create(String),
    /// Open the direct message with a user.
    Direct(UserId),
    /// Leave a channel.
    Leave(ChannelId),
    /// Change a channel's topic.
    Topic { channel: ChannelId, topic: String },
    /// Change the user's own status.
    Status { emoji: String, text: String },
    /// React to a message.
    React { channel: ChannelId, seq: i64, emoji: String },
    /// Say who is in a channel.
    Members(ChannelId),
    /// End the program.
    Quit,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) enum News {
    /// The connection is there again. If `anew`, nothing that was known about messages can be relied on.
    Up { anew: bool },
    /// The connection is gone; it is being brought back.
    Down,
    /// The connection is gone for good.
    Over(String),
    /// Who there is, and which channels the user is in.
    State { users: Vec<User>, channels: Vec<Membership> },
    /// An event: in order, and only once.
    Event(Box<Event>),
    /// A page of history, with the replies of its threads; nothing if it could not be read.
    History { channel: ChannelId, page: Option<History> },
    /// A message is stored.
    Posted { channel: ChannelId, key: String, seq: i64 },
    /// A message is not stored, and why.
    Unposted { post: Post, why: String },
    /// Something else did not work, and why.
    Refused(String),
    /// A channel that was asked for is there: show it.
    Opened(ChannelId),
    /// Who is in a channel.
    Members { channel: ChannelId, members: Vec<(UserId, Presence)> },
}
