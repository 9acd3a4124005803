//! Channels and what a member has in one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Refusal, invalid};
use super::id::{ChannelId, UserId};
use super::user::text_enum;
use crate::clock::Timestamp;

text_enum! {
    /// What sort of conversation it is.
    ChannelKind {
        /// Anyone but a guest may find and join it.
        Public = "public",
        /// By invitation; others do not learn that it exists.
        Private = "private",
        /// Two people, or one with themselves. Found again, never duplicated.
        Direct = "direct",
        /// Three to nine people. Found again, never duplicated.
        Group = "group",
    }
}

impl ChannelKind {
    /// Returns whether this is a direct message or a group.
    #[must_use]
    pub fn is_direct(self) -> bool {
        matches!(self, ChannelKind::Direct | ChannelKind::Group)
    }
}

text_enum! {
    /// A member's role in one channel, least first.
    ChannelRole {
        /// Reads and, if the posting policy lets them, writes.
        Member = "member",
        /// Also changes topic and purpose, removes members, and deletes what others wrote.
        Moderator = "moderator",
        /// Also renames, archives and gives roles.
        Owner = "owner",
    }
}

text_enum! {
    /// Who may post top-level messages.
    Posting {
        /// Every member.
        Everyone = "everyone",
        /// The channel's moderators and owners: an announcement channel.
        Moderators = "moderators",
        /// The channel's owners.
        Owners = "owners",
    }
}

text_enum! {
    /// What a member wants to be told of.
    Notify {
        /// Every message.
        All = "all",
        /// Mentions only.
        Mentions = "mentions",
        /// Nothing.
        Nothing = "nothing",
    }
}

/// A channel as its readers see it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Channel {
    /// The identifier; also that of the channel's stream.
    pub id: ChannelId,
    /// What sort of conversation it is.
    pub kind: ChannelKind,
    /// The name, unique among public and private channels; absent for direct messages and groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is talked about now, up to 250 characters.
    #[serde(default)]
    pub topic: String,
    /// What the channel is for, up to 250 characters.
    #[serde(default)]
    pub purpose: String,
    /// Who may post.
    pub posting: Posting,
    /// Who made it.
    pub created_by: UserId,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was archived, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archived_at: Option<Timestamp>,
    /// The number of the channel's newest event.
    pub last_seq: i64,
    /// The number of the channel's newest top-level message.
    pub last_message_no: i64,
}

/// A channel as one of its members sees it: the channel, and their place in it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Membership {
    /// The channel.
    #[serde(flatten)]
    pub channel: Channel,
    /// The member's role in it.
    pub role: ChannelRole,
    /// Everything up to this event was read.
    pub read_seq: i64,
    /// Top-level messages above the last one read: `last_message_no - read_no`.
    pub unread_count: i64,
    /// Unread messages that mention the member.
    pub mention_count: i64,
    /// Whether the member muted the channel.
    pub muted: bool,
    /// What the member wants to be told of.
    pub notify: Notify,
    /// The other people of a direct message or a group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<UserId>,
}

/// One member of a channel.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// The user.
    pub user_id: UserId,
    /// Their role in the channel.
    pub role: ChannelRole,
    /// When they came in.
    pub joined_at: Timestamp,
}

/// The largest group: nine people, as in Slack.
pub const GROUP_MAX: usize = 9;

/// Checks a channel name: 1 to 80 lower-case letters of any script, digits, dashes and underscores.
pub fn channel_name(name: &str) -> Result<String, Refusal> {
    let name = name.trim().trim_start_matches('#').to_lowercase();
    let fits =
        (1..=80).contains(&name.chars().count()) && name.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_');
    if fits { Ok(name) } else { Err(invalid("a channel name has 1 to 80 letters, digits, dashes or underscores")) }
}

/// Returns the key under which a direct message or group is found again: its members, sorted.
#[must_use]
pub fn direct_key(members: &[UserId]) -> String {
    let mut ids: Vec<String> = members.iter().map(|id| id.0.simple().to_string()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folded_and_bounded() {
        assert_eq!(channel_name("#General").unwrap(), "general");
        assert_eq!(channel_name("büro_2").unwrap(), "büro_2");
        for bad in ["", "a b", "a/b", "a.b", &"x".repeat(81)] {
            assert!(channel_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_direct_key_does_not_depend_on_order_or_repeats() {
        let (a, b) = (UserId::new(Timestamp(1)), UserId::new(Timestamp(2)));
        assert_eq!(direct_key(&[a, b]), direct_key(&[b, a, b]));
    }
}
