//! Everything that can be asked of the hub and changes what is stored.
//!
//! REST and the gateway are two doors to these same commands: one struct each, one enum over all, one reply type each.
//! A command goes to the actor of the stream that it changes ([`Command::stream`]) and from there to the store.
//!
//! To add one: write it in the `commands!` list, give it a stream, apply it in `storage::apply`, ask
//! [`super::permission`] there, and give it a URL in `http::endpoints`.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::channel::{Channel, ChannelRole, Membership, Notify, Posting};
use super::error::{Code, Refusal, invalid};
use super::id::{ChannelId, InviteId, StreamId, TokenId, UserId};
use super::message::Sent;
use super::user::{PresenceMode, Role, User};
use crate::clock::Timestamp;

/// Who asks: a signed-in user, by a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Principal {
    /// The user.
    pub user_id: UserId,
    /// The role at the time of the last look; the store looks again when it writes.
    pub role: Role,
    /// The sign-in behind the request.
    pub token_id: TokenId,
}

/// What every command says of itself.
pub trait Spec: DeserializeOwned + Serialize + JsonSchema + Into<Command> + Send + 'static {
    /// The type on the wire.
    const NAME: &'static str;
    /// What the answer looks like.
    type Reply: JsonSchema;
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $text:literal -> $reply:ty {
        $($(#[$fdoc:meta])* $field:ident : $type:ty),* $(,)?
    })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
            pub struct $name { $($(#[$fdoc])* pub $field: $type),* }

            impl Spec for $name {
                const NAME: &'static str = $text;
                type Reply = $reply;
            }

            impl From<$name> for Command {
                fn from(command: $name) -> Self {
                    Command::$name(command)
                }
            }
        )*

        /// Any command.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Command { $($(#[$doc])* $name($name),)* }

        impl Command {
            /// The type of every command on the wire.
            pub const NAMES: &[&str] = &[$($text),*];

            /// Returns this command's type on the wire.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Command::$name(_) => $text,)* }
            }

            /// Reads a command from its type and its JSON body; `None` if there is no such type.
            #[must_use]
            pub fn decode(name: &str, body: &str) -> Option<Result<Command, Refusal>> {
                match name {
                    $($text => Some(serde_json::from_str::<$name>(body).map(Command::$name).map_err(bad_body)),)*
                    _ => None,
                }
            }

            /// Returns the command's fields as JSON: what an idempotency key is bound to, besides the type.
            #[must_use]
            pub fn body(&self) -> String {
                let json = match self { $(Command::$name(c) => serde_json::to_string(c),)* };
                json.expect("a command has only string keys")
            }
        }
    };
}

fn bad_body(error: serde_json::Error) -> Refusal {
    // The position is of the inner text; the sentence before it names the field.
    let text = error.to_string();
    let sentence = text.split(" at line ").next().unwrap_or(&text).to_owned();
    invalid(sentence)
}

/// An answer that says only where the change stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// The number of the event that tells of the change in its stream; absent if nothing had to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<i64>,
}

/// An invitation, with the secret that is shown this once.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Invite {
    /// The invitation.
    pub id: InviteId,
    /// What the invited person signs up with; kept only as a hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The role that they get.
    pub role: Role,
    /// How often it may be used.
    pub max_uses: i64,
    /// How often it was.
    pub uses: i64,
    /// When it ends.
    pub expires_at: Timestamp,
}

commands! {
    /// Posts a message, or a reply if `thread_seq` is given.
    SendMessage = "message.send" -> Sent {
        /// The channel.
        channel_id: ChannelId,
        /// The sender's own identifier, at most 64 characters: a repeat with the same one is not stored again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client_msg_id: Option<String>,
        /// Markdown, at most 40,000 bytes.
        text: String,
        /// The message to reply to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        thread_seq: Option<i64>,
        /// Whether a reply also shows in the channel.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        also_in_channel: bool,
    }
    /// Changes the text of a message of one's own. The earlier text stays readable.
    EditMessage = "message.edit" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message.
        seq: i64,
        /// The new text.
        text: String,
    }
    /// Deletes a message: its text and history are gone, its number stays.
    DeleteMessage = "message.delete" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message.
        seq: i64,
    }
    /// Reacts to a message.
    AddReaction = "reaction.add" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message.
        seq: i64,
        /// An emoji's name, or the emoji itself.
        emoji: String,
    }
    /// Takes a reaction back.
    RemoveReaction = "reaction.remove" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message.
        seq: i64,
        /// The emoji.
        emoji: String,
    }
    /// Pins a message to its channel.
    AddPin = "pin.add" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message.
        seq: i64,
    }
    /// Removes a pin.
    RemovePin = "pin.remove" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message.
        seq: i64,
    }
    /// Saves a message for later; only its saver knows.
    AddSaved = "saved.add" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message.
        seq: i64,
    }
    /// Removes a message from the saved ones.
    RemoveSaved = "saved.remove" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message.
        seq: i64,
    }
    /// Keeps a draft, the same on all of the user's devices. An empty text removes it.
    SetDraft = "draft.set" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The thread, if the draft is a reply.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        thread_seq: Option<i64>,
        /// The text so far.
        text: String,
    }
    /// Makes a public or private channel, its maker the owner.
    CreateChannel = "channel.create" -> Channel {
        /// The name: letters, digits, dashes, underscores.
        name: String,
        /// Whether it is by invitation only.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        private: bool,
        /// What is talked about.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        topic: String,
        /// What it is for.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        purpose: String,
        /// Who is in it from the start, besides the maker; at most 1,000.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        members: Vec<UserId>,
    }
    /// Opens the direct message or group with these people, the one that is there if there is one.
    OpenDirect = "channel.open_direct" -> Channel {
        /// The others: none for notes to oneself, one for a direct message, up to eight for a group.
        user_ids: Vec<UserId>,
    }
    /// Changes a channel's name, topic, purpose or posting policy. What is left out stays.
    UpdateChannel = "channel.update" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The new name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// The new topic.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        topic: Option<String>,
        /// The new purpose.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        purpose: Option<String>,
        /// Who may post from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        posting: Option<Posting>,
    }
    /// Archives a channel: it stays readable and takes no changes.
    ArchiveChannel = "channel.archive" -> Done {
        /// The channel.
        channel_id: ChannelId,
    }
    /// Takes a channel out of the archive.
    UnarchiveChannel = "channel.unarchive" -> Done {
        /// The channel.
        channel_id: ChannelId,
    }
    /// Joins a public channel.
    JoinChannel = "channel.join" -> Done {
        /// The channel.
        channel_id: ChannelId,
    }
    /// Leaves a channel.
    LeaveChannel = "channel.leave" -> Done {
        /// The channel.
        channel_id: ChannelId,
    }
    /// Brings somebody into a channel.
    InviteMember = "channel.invite" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// Whom.
        user_id: UserId,
    }
    /// Removes somebody from a channel.
    RemoveMember = "channel.remove" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// Whom.
        user_id: UserId,
    }
    /// Gives a member a role in a channel.
    SetChannelRole = "channel.set_role" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// Whose role.
        user_id: UserId,
        /// The new role.
        role: ChannelRole,
    }
    /// Marks a channel read up to an event; never moves backwards.
    MarkRead = "channel.mark_read" -> Membership {
        /// The channel.
        channel_id: ChannelId,
        /// The last event read.
        seq: i64,
    }
    /// Marks a channel unread from a message on.
    MarkUnread = "channel.mark_unread" -> Membership {
        /// The channel.
        channel_id: ChannelId,
        /// The first message that counts as unread.
        seq: i64,
    }
    /// Mutes a channel or chooses what to be told of. What is left out stays.
    SetChannelPreferences = "channel.set_preferences" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// Whether to mute it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        muted: Option<bool>,
        /// What to be told of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        notify: Option<Notify>,
    }
    /// Follows a thread: its replies count as unread.
    FollowThread = "thread.follow" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message that the thread hangs on.
        thread_seq: i64,
    }
    /// Stops following a thread.
    UnfollowThread = "thread.unfollow" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message that the thread hangs on.
        thread_seq: i64,
    }
    /// Marks a thread read up to a reply; never moves backwards.
    MarkThreadRead = "thread.mark_read" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message that the thread hangs on.
        thread_seq: i64,
        /// The last reply read.
        seq: i64,
    }
    /// Marks a thread that one follows unread from a reply on; from the message that it hangs on: all of it.
    MarkThreadUnread = "thread.mark_unread" -> Done {
        /// The channel.
        channel_id: ChannelId,
        /// The message that the thread hangs on.
        thread_seq: i64,
        /// The first reply that counts as unread.
        seq: i64,
    }
    /// Changes one's profile. What is left out stays.
    UpdateProfile = "user.update" -> User {
        /// The name shown, up to 80 characters.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        display_name: Option<String>,
        /// What one does, up to 100 characters.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        title: Option<String>,
        /// An IANA time zone name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timezone: Option<String>,
    }
    /// Sets one's custom status; empty emoji and text clear it.
    SetStatus = "user.set_status" -> User {
        /// An emoji's name.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        emoji: String,
        /// Up to 100 characters.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        text: String,
        /// When it ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    }
    /// Chooses how one is shown.
    SetPresence = "user.set_presence" -> User {
        /// Automatic, away, or not to be disturbed.
        mode: PresenceMode,
        /// When it ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    }
    /// Makes an account. For administrators.
    CreateUser = "user.create" -> User {
        /// The handle.
        name: String,
        /// The name shown; the handle, if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        display_name: Option<String>,
        /// The role.
        role: Role,
        /// Whether it is a program.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        bot: bool,
    }
    /// Gives a user a role in the workspace. For administrators.
    SetUserRole = "user.set_role" -> User {
        /// Whose role.
        user_id: UserId,
        /// The new role.
        role: Role,
    }
    /// Deactivates an account: its sessions end, what it wrote stays. For administrators.
    DeactivateUser = "user.deactivate" -> User {
        /// Whose.
        user_id: UserId,
    }
    /// Brings an account back. For administrators.
    ReactivateUser = "user.reactivate" -> User {
        /// Whose.
        user_id: UserId,
    }
    /// Makes an invitation to the workspace. For administrators.
    CreateInvite = "invite.create" -> Invite {
        /// The role that the invited get; not above member unless an administrator says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<Role>,
        /// How often it may be used, 1 to 1,000; once, if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_uses: Option<i64>,
        /// How long it lasts, up to 30 days; seven days, if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_in_s: Option<i64>,
    }
    /// Ends an invitation. For administrators.
    RevokeInvite = "invite.revoke" -> Done {
        /// Which.
        invite_id: InviteId,
    }
}

impl Command {
    /// Returns the stream whose actor runs this command: the channel it changes, the caller's own stream for what only
    /// the caller sees, the workspace's for the rest.
    #[must_use]
    pub fn stream(&self, caller: UserId) -> StreamId {
        use Command as C;
        match self {
            C::SendMessage(c) => c.channel_id.into(),
            C::EditMessage(c) => c.channel_id.into(),
            C::DeleteMessage(c) => c.channel_id.into(),
            C::AddReaction(c) => c.channel_id.into(),
            C::RemoveReaction(c) => c.channel_id.into(),
            C::AddPin(c) => c.channel_id.into(),
            C::RemovePin(c) => c.channel_id.into(),
            C::UpdateChannel(c) => c.channel_id.into(),
            C::ArchiveChannel(c) => c.channel_id.into(),
            C::UnarchiveChannel(c) => c.channel_id.into(),
            C::JoinChannel(c) => c.channel_id.into(),
            C::LeaveChannel(c) => c.channel_id.into(),
            C::InviteMember(c) => c.channel_id.into(),
            C::RemoveMember(c) => c.channel_id.into(),
            C::SetChannelRole(c) => c.channel_id.into(),
            C::AddSaved(_)
            | C::RemoveSaved(_)
            | C::SetDraft(_)
            | C::MarkRead(_)
            | C::MarkUnread(_)
            | C::SetChannelPreferences(_)
            | C::FollowThread(_)
            | C::UnfollowThread(_)
            | C::MarkThreadRead(_)
            | C::MarkThreadUnread(_)
            | C::OpenDirect(_) => caller.into(),
            C::CreateChannel(_)
            | C::UpdateProfile(_)
            | C::SetStatus(_)
            | C::SetPresence(_)
            | C::CreateUser(_)
            | C::SetUserRole(_)
            | C::DeactivateUser(_)
            | C::ReactivateUser(_)
            | C::CreateInvite(_)
            | C::RevokeInvite(_) => StreamId::WORKSPACE,
        }
    }

    /// Checks what can be checked without looking anything up.
    pub fn validate(&self) -> Result<(), Refusal> {
        use super::text;
        match self {
            Command::SendMessage(c) => {
                text::check(&c.text)?;
                if let Some(key) = &c.client_msg_id {
                    key_fits("client_msg_id", key)?;
                }
                if c.also_in_channel && c.thread_seq.is_none() {
                    return Err(invalid("also_in_channel is for replies: give thread_seq too"));
                }
                Ok(())
            }
            Command::EditMessage(c) => text::check(&c.text),
            Command::AddReaction(AddReaction { emoji, .. }) | Command::RemoveReaction(RemoveReaction { emoji, .. }) => {
                text::emoji(emoji).map(|_| ())
            }
            Command::SetDraft(c) if !c.text.is_empty() => text::check(&c.text),
            Command::CreateChannel(c) if c.members.len() > 1_000 => Err(invalid("members has more than 1,000 entries")),
            _ => Ok(()),
        }
    }
}

/// Checks an idempotency key or a `client_msg_id`: 1 to 64 printable ASCII characters.
pub fn key_fits(field: &str, key: &str) -> Result<(), Refusal> {
    if (1..=64).contains(&key.len()) && key.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        return Ok(());
    }
    Err(invalid(format!("{field} has 1 to 64 printable ASCII characters without spaces")))
}

/// Refuses a frame whose type is none of the protocol's.
#[must_use]
pub fn unknown_type(name: &str) -> Refusal {
    let shown: String = name.chars().take(64).collect();
    Refusal::new(Code::UnknownType, format!("unknown type `{shown}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_read_by_its_type() {
        let channel_id = ChannelId::new(Timestamp(1));
        let body = format!(r#"{{"channel_id":"{channel_id}","text":"hi","unknown_field":1}}"#);
        let command = Command::decode("message.send", &body).unwrap().unwrap();
        assert_eq!(command.name(), "message.send");
        assert_eq!(command.stream(UserId::new(Timestamp(2))), channel_id.into());
        assert!(Command::decode("message.invented", "{}").is_none());
    }

    #[test]
    fn a_bad_body_names_the_field() {
        let refusal = Command::decode("message.send", r#"{"text":"hi"}"#).unwrap().unwrap_err();
        assert_eq!(refusal.to_string(), "missing field `channel_id`");
    }

    #[test]
    fn keys_are_short_and_printable() {
        key_fits("key", "a-1").unwrap();
        for bad in ["", "two words", "ü", &"x".repeat(65)] {
            assert!(key_fits("key", bad).is_err());
        }
    }
}
