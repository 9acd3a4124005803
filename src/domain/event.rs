//! Events: everything durable that happens has a kind, a number in its stream, and an audience.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::id::{EventId, StreamId, UserId};
use crate::clock::Timestamp;

/// Who receives an event of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Audience {
    /// The channel's members.
    Members,
    /// The user whose own stream it is.
    Owner,
    /// Every user of the workspace but guests.
    Workspace,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $audience:ident, [$($field:literal),*];)*) => {
        /// What happened.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum EventKind {
            $($(#[$doc])* $name,)*
            /// Something that only a newer release knows, passed on as it is.
            Newer(Newer),
        }

        impl EventKind {
            /// Every kind that this release knows.
            pub const ALL: &[EventKind] = &[$(EventKind::$name,)*];

            /// Returns the text used on the wire and in the `events` table.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(EventKind::$name => $text,)* EventKind::Newer(kind) => kind.text }
            }

            /// Returns who receives it.
            #[must_use]
            pub fn audience(self) -> Audience {
                match self { $(EventKind::$name => Audience::$audience,)* EventKind::Newer(kind) => kind.audience }
            }

            /// Returns the fields that its payload may have: no other ever leaves the server. Those of a newer release's kinds
            /// are not known here: that release saw to them when it stored the event.
            #[must_use]
            pub fn fields(self) -> &'static [&'static str] {
                match self { $(EventKind::$name => &[$($field),*],)* EventKind::Newer(_) => &[] }
            }

            /// Returns the kind that `text` names.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(EventKind::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// A message was posted.
    MessageCreated = "message.created", Members, ["id", "message_no", "thread_seq", "reply_no", "author_id", "text",
        "mentions", "client_msg_id", "created_at"];
    /// A message's text changed.
    MessageUpdated = "message.updated", Members, ["message_seq", "editor_id", "text", "mentions", "edited_at"];
    /// A message was deleted.
    MessageDeleted = "message.deleted", Members, ["message_seq", "deleted_by", "deleted_at"];
    /// Somebody reacted.
    ReactionAdded = "reaction.added", Members, ["message_seq", "user_id", "emoji"];
    /// Somebody took a reaction back.
    ReactionRemoved = "reaction.removed", Members, ["message_seq", "user_id", "emoji"];
    /// A message was pinned.
    PinAdded = "pin.added", Members, ["message_seq", "user_id"];
    /// A pin was removed.
    PinRemoved = "pin.removed", Members, ["message_seq", "user_id"];
    /// The channel was made.
    ChannelCreated = "channel.created", Members, ["id", "kind", "name", "topic", "purpose", "posting", "created_by",
        "created_at", "members"];
    /// Name, topic, purpose or posting policy changed.
    ChannelUpdated = "channel.updated", Members, ["user_id", "name", "topic", "purpose", "posting"];
    /// The channel was archived.
    ChannelArchived = "channel.archived", Members, ["user_id", "archived_at"];
    /// The channel was taken out of the archive.
    ChannelUnarchived = "channel.unarchived", Members, ["user_id"];
    /// Somebody came in.
    MemberJoined = "member.joined", Members, ["user_id", "role", "invited_by"];
    /// Somebody left or was removed. The one who left receives it last.
    MemberLeft = "member.left", Members, ["user_id", "removed_by"];
    /// Somebody's role in the channel changed.
    MemberRoleChanged = "member.role_changed", Members, ["user_id", "role", "changed_by"];

    /// The user is in a channel from now on.
    UserChannelAdded = "user.channel_added", Owner, ["channel_id", "last_seq"];
    /// The user is no longer in a channel.
    UserChannelRemoved = "user.channel_removed", Owner, ["channel_id"];
    /// The user read a channel, or marked it unread, up to an event.
    UserRead = "user.read", Owner, ["channel_id", "read_seq", "unread_count", "mention_count"];
    /// The user read a thread up to a reply.
    UserThreadRead = "user.thread_read", Owner, ["channel_id", "thread_seq", "read_seq", "unread_count", "mention_count"];
    /// The user follows a thread, or no longer does.
    UserThreadFollowed = "user.thread_followed", Owner, ["channel_id", "thread_seq", "following"];
    /// The user's draft changed; an empty text is no draft.
    UserDraft = "user.draft", Owner, ["channel_id", "thread_seq", "text", "updated_at"];
    /// The user saved a message for later, or no longer does.
    UserSaved = "user.saved", Owner, ["channel_id", "message_seq", "saved"];
    /// The user muted a channel or chose what to be told of.
    UserChannelPreferences = "user.channel_preferences", Owner, ["channel_id", "muted", "notify"];

    /// An account was made.
    UserCreated = "user.created", Workspace, ["id", "name", "display_name", "title", "timezone", "role", "bot", "status",
        "presence_mode", "presence_until", "created_at", "deactivated_at"];
    /// A profile, role or status changed, or the account was deactivated or came back.
    UserUpdated = "user.updated", Workspace, ["id", "name", "display_name", "title", "timezone", "role", "bot", "status",
        "presence_mode", "presence_until", "created_at", "deactivated_at"];
    /// A public channel was made, renamed, archived or brought back.
    ChannelListed = "channel.listed", Workspace, ["id", "name", "topic", "purpose", "archived"];
}

/// A kind of event that a newer release stored. Its seq counts like every other, so it is passed on; by rule it changes neither
/// who is in a channel nor who may do what there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Newer {
    text: &'static str,
    audience: Audience,
}

impl EventKind {
    /// Returns the kind of an event of a stream: one of this release, or a newer one's.
    #[must_use]
    pub fn of(text: &str, stream: StreamId) -> Self {
        EventKind::parse(text).unwrap_or_else(|| {
            let audience = match text {
                _ if stream == StreamId::WORKSPACE => Audience::Workspace,
                _ if text.starts_with("user.") => Audience::Owner,
                _ => Audience::Members,
            };
            EventKind::Newer(Newer { text: kept(text), audience })
        })
    }
}

/// Keeps a text for as long as the program runs: there are only as many as the next release has kinds.
fn kept(text: &str) -> &'static str {
    static KEPT: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut kept = KEPT.lock().expect("no panic under this lock");
    if let Some(known) = kept.get(text) {
        return known;
    }
    let text: &'static str = Box::leak(text.into());
    kept.insert(text);
    text
}

/// A stored event.
#[derive(Clone, Debug)]
pub struct Event {
    /// The stream it belongs to.
    pub stream: StreamId,
    /// Its number in the stream, dense from 1.
    pub seq: i64,
    /// Its identifier, the same in every log.
    pub id: EventId,
    /// What happened.
    pub kind: EventKind,
    /// Who did it; nobody for what the server does by itself, or the operator.
    pub actor: Option<UserId>,
    /// The payload: a JSON object as text, encoded once.
    pub payload: Arc<str>,
    /// When it was stored.
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_text() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::parse(kind.as_str()), Some(*kind));
            assert!(!kind.fields().is_empty());
        }
        assert_eq!(EventKind::parse("message.invented"), None);
    }

    #[test]
    fn what_belongs_to_one_user_goes_to_that_user_alone() {
        for kind in EventKind::ALL {
            let private = ["user.channel", "user.read", "user.thread", "user.draft", "user.saved"];
            let owned = private.iter().any(|prefix| kind.as_str().starts_with(prefix));
            assert_eq!(kind.audience() == Audience::Owner, owned, "{}", kind.as_str());
        }
    }

    #[test]
    fn what_a_newer_release_stored_has_the_audience_of_its_stream() {
        let (other, text) = (StreamId(uuid::Uuid::from_u128(1)), "invented.kind");
        let kind = EventKind::of(text, other);
        assert_eq!((kind.as_str(), kind.audience()), (text, Audience::Members));
        assert_eq!(EventKind::of(text, other), kind);
        assert_eq!(EventKind::of(text, StreamId::WORKSPACE).audience(), Audience::Workspace);
        assert_eq!(EventKind::of("user.invented", other).audience(), Audience::Owner);
        for kind in EventKind::ALL {
            let stream = if kind.audience() == Audience::Workspace { StreamId::WORKSPACE } else { other };
            assert_eq!(EventKind::of(kind.as_str(), stream), *kind);
            // By this an older release knows whose a newer kind is.
            let owned = kind.as_str().starts_with("user.") && stream != StreamId::WORKSPACE;
            assert_eq!(kind.audience() == Audience::Owner, owned, "{}", kind.as_str());
        }
    }
}
