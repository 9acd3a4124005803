//! What must hold after any number of crashes, checked over what the clients recorded and what the store says. Pure.
//!
//! Clients record each attempt of each send: [`Answer::Ok`], [`Answer::Refused`], or [`Answer::Unknown`] if the
//! connection broke first. Readers record each event that they applied. [`check`] returns every promise that was broken,
//! as sentences; none is a proof for this run.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use colink::client::Event;
use colink::domain::id::{ChannelId, EventId, MessageId, UserId};
use colink::domain::message::{Mentions, Message};
use serde_json::Value;

/// What came of one attempt to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Ok {
        seq: i64,
        message_id: MessageId,
        duplicate: bool,
    },
    /// A definite no: this attempt changed nothing.
    Refused(String),
    /// Whether it took effect is not known.
    Unknown,
}

/// One message that a client wanted to send, and all its attempts. The key is also the first word of the text.
#[derive(Clone, Debug)]
pub(crate) struct Attempted {
    pub(crate) author: UserId,
    pub(crate) channel: ChannelId,
    pub(crate) key: String,
    pub(crate) answers: Vec<Answer>,
}

/// A change other than a message that was acknowledged with the number of its event.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) actor: UserId,
    pub(crate) channel: ChannelId,
    pub(crate) seq: i64,
    pub(crate) kind: &'static str,
}

/// One event, as the log has it or as a reader applied it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) seq: i64,
    pub(crate) event_id: EventId,
    pub(crate) kind: String,
    pub(crate) actor: Option<UserId>,
    pub(crate) data: String,
}

impl Entry {
    /// Takes what is compared out of an event; nothing if it is ephemeral or not a channel's.
    pub(crate) fn of(event: &Event) -> Option<(ChannelId, Entry)> {
        let entry = Entry {
            seq: event.seq?,
            event_id: event.event_id?,
            kind: event.kind.clone(),
            actor: event.actor_id,
            data: event.data.get().to_owned(),
        };
        Some((event.channel_id?, entry))
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_default()
    }

    /// The message that an edit, deletion, reaction or pin is about.
    fn target(&self) -> Option<i64> {
        self.json()["message_seq"].as_i64()
    }
}

/// What one reader applied, in the order of its applying.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) name: String,
    pub(crate) channels: Vec<ChannelId>,
    pub(crate) applied: HashMap<ChannelId, Vec<Entry>>,
}

/// Everything that the clients recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) attempted: Vec<Attempted>,
    pub(crate) changes: Vec<Change>,
    pub(crate) readers: Vec<Reader>,
}

/// A member's place in a channel, as the server says.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) user: UserId,
    pub(crate) last_seq: i64,
    pub(crate) last_message_no: i64,
    pub(crate) read_seq: i64,
    pub(crate) unread_count: i64,
    pub(crate) mention_count: i64,
}

/// A channel, as read back over REST when all is over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stored {
    pub(crate) log: Vec<Entry>,
    /// Top-level messages and replies, by `seq`.
    pub(crate) messages: Vec<Message>,
    pub(crate) places: Vec<Place>,
}

/// Returns every promise that was broken.
pub(crate) fn check(recorded: &Recorded, stored: &BTreeMap<ChannelId, Stored>) -> Vec<String> {
    let mut broken = Vec::new();
    for (id, channel) in stored {
        let mut say = |text: String| broken.push(format!("channel {id}: {text}"));
        check_numbers(channel, &mut say);
        check_history(channel, &mut say);
        check_places(channel, &mut say);
    }
    check_sends(recorded, stored, &mut |text| broken.push(text));
    check_changes(recorded, stored, &mut |text| broken.push(text));
    for reader in &recorded.readers {
        check_reader(reader, stored, &mut |text| broken.push(format!("reader {}: {text}", reader.name)));
    }
    broken
}

type Say<'a> = &'a mut dyn FnMut(String);

/// Events are numbered 1..N without a hole, messages 1..M, and an identifier is used once.
fn check_numbers(channel: &Stored, say: Say) {
    for (expected, entry) in (1..).zip(&channel.log) {
        if entry.seq != expected {
            say(format!("the log has event {} where {expected} belongs", entry.seq));
            break;
        }
    }
    let ids: HashSet<EventId> = channel.log.iter().map(|entry| entry.event_id).collect();
    if ids.len() != channel.log.len() {
        say("two events of the log have the same identifier".to_owned());
    }
    let numbered = channel.messages.iter().filter(|message| message.message_no.is_some());
    for (expected, message) in (1..).zip(numbered) {
        if message.message_no != Some(expected) {
            say(format!("the message at {} is number {:?}, not {expected}", message.seq, message.message_no));
            break;
        }
    }
    let mut replies: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for message in &channel.messages {
        if let (Some(thread), Some(number)) = (message.thread_seq, message.reply_no) {
            replies.entry(thread).or_default().push(number);
        }
    }
    for (thread, numbers) in replies {
        if numbers.iter().copied().ne(1..=numbers.len() as i64) {
            say(format!("the replies of thread {thread} are numbered {numbers:?}"));
        }
    }
}

#[derive(Default)]
struct Told {
    text: String,
    deleted: bool,
    pinned: bool,
    replies: i64,
    reactions: BTreeSet<(String, String)>,
}

/// The rows of messages are what the log tells, event by event.
fn check_history(channel: &Stored, say: Say) {
    let mut told: BTreeMap<i64, Told> = BTreeMap::new();
    for entry in &channel.log {
        let data = entry.json();
        let word = |field: &str| data[field].as_str().unwrap_or_default().to_owned();
        if entry.kind == "message.created" {
            told.insert(entry.seq, Told { text: word("text"), ..Told::default() });
            if let Some(root) = data["thread_seq"].as_i64().and_then(|thread| told.get_mut(&thread)) {
                root.replies += 1;
            }
            continue;
        }
        let Some(message) = entry.target().and_then(|seq| told.get_mut(&seq)) else { continue };
        match entry.kind.as_str() {
            "message.updated" => message.text = word("text"),
            "message.deleted" => {
                let replies = message.replies;
                *message = Told { deleted: true, replies, ..Told::default() };
            }
            "reaction.added" => drop(message.reactions.insert((word("emoji"), word("user_id")))),
            "reaction.removed" => drop(message.reactions.remove(&(word("emoji"), word("user_id")))),
            "pin.added" => message.pinned = true,
            "pin.removed" => message.pinned = false,
            _ => {}
        }
    }
    if told.keys().copied().ne(channel.messages.iter().map(|message| message.seq)) {
        say(format!("the log tells of {} messages, history has {}", told.len(), channel.messages.len()));
    }
    for message in &channel.messages {
        let Some(told) = told.get(&message.seq) else { continue };
        let reactions: BTreeSet<(String, String)> = message
            .reactions
            .iter()
            .flat_map(|one| one.users.iter().map(|user| (one.emoji.clone(), user.to_string())))
            .collect();
        let same = (&message.text, message.deleted_at.is_some(), message.pinned, message.reply_count, &reactions)
            == (&told.text, told.deleted, told.pinned, told.replies, &told.reactions);
        if !same {
            say(format!("the message at {} is not what the log tells of it", message.seq));
        }
    }
}

/// What is unread is what a recount of history finds behind the read mark.
fn check_places(channel: &Stored, say: Say) {
    let head = channel.log.len() as i64;
    for place in &channel.places {
        let unread = || channel.messages.iter().filter(|m| m.message_no.is_some() && m.seq > place.read_seq);
        let counted = unread().count() as i64;
        let mentions = unread().filter(|m| speaks_to(&m.mentions, place.user)).count() as i64;
        if (place.unread_count, place.mention_count) != (counted, mentions) {
            say(format!(
                "{} is told {} unread with {} mentions behind {}, a recount finds {counted} with {mentions}",
                place.user, place.unread_count, place.mention_count, place.read_seq
            ));
        }
        let messages = channel.messages.iter().filter(|m| m.message_no.is_some()).count() as i64;
        if (place.last_seq, place.last_message_no) != (head, messages) {
            say(format!("{} is told that {} is the newest event, the log ends at {head}", place.user, place.last_seq));
        }
    }
}

fn speaks_to(mentions: &Mentions, user: UserId) -> bool {
    mentions.channel || mentions.here || mentions.users.contains(&user)
}

/// Every acknowledged message is stored exactly once, where its answers say; every other one at most once.
fn check_sends(recorded: &Recorded, stored: &BTreeMap<ChannelId, Stored>, say: Say) {
    let mut rows: HashMap<String, Vec<(ChannelId, &Entry)>> = HashMap::new();
    for (id, channel) in stored {
        for entry in channel.log.iter().filter(|entry| entry.kind == "message.created") {
            let data = entry.json();
            let first_word = || data["text"].as_str().and_then(|text| text.split(' ').next()).map(str::to_owned);
            let key = data["client_msg_id"].as_str().map(str::to_owned).or_else(first_word).unwrap_or_default();
            rows.entry(key).or_default().push((*id, entry));
        }
    }
    for send in &recorded.attempted {
        let key = &send.key;
        let found = rows.remove(key).unwrap_or_default();
        if found.len() > 1 {
            say(format!("message {key} is stored {} times", found.len()));
        }
        let answers = || send.answers.iter();
        let places: BTreeSet<(i64, MessageId)> = answers()
            .filter_map(|a| match a {
                Answer::Ok { seq, message_id, .. } => Some((*seq, *message_id)),
                _ => None,
            })
            .collect();
        if places.len() > 1 {
            say(format!("message {key} was acknowledged at {places:?}"));
        }
        if answers().filter(|a| matches!(a, Answer::Ok { duplicate: false, .. })).count() > 1 {
            say(format!("message {key} was acknowledged as new more than once"));
        }
        match (places.first(), found.first()) {
            (Some((seq, _)), None) => say(format!("message {key} was acknowledged at {seq} and is not stored")),
            (Some((seq, message_id)), Some((channel, entry))) => {
                let id = entry.json()["id"].as_str().map(str::to_owned);
                let there = (send.channel, *seq, Some(message_id.to_string()), Some(send.author));
                if (*channel, entry.seq, id, entry.actor) != there {
                    say(format!("message {key} was acknowledged at {seq}, but is stored at {}", entry.seq));
                }
            }
            (None, Some((_, entry))) if answers().all(|a| matches!(a, Answer::Refused(_))) => {
                say(format!("message {key} was refused and is stored at {}", entry.seq));
            }
            (None, _) => {}
        }
    }
    for key in rows.keys() {
        say(format!("message {key} is stored, and nobody sent it"));
    }
}

/// The number in an answer is that of the event that tells of the change.
fn check_changes(recorded: &Recorded, stored: &BTreeMap<ChannelId, Stored>, say: Say) {
    for change in &recorded.changes {
        let entry = stored.get(&change.channel).and_then(|c| c.log.iter().find(|entry| entry.seq == change.seq));
        if entry.is_none_or(|entry| entry.kind != change.kind || entry.actor != Some(change.actor)) {
            say(format!("{} was acknowledged at {}, where the log has {entry:?}", change.kind, change.seq));
        }
    }
}

/// A reader applied exactly the log of each of its channels, and nothing else.
fn check_reader(reader: &Reader, stored: &BTreeMap<ChannelId, Stored>, say: Say) {
    for (channel, applied) in &reader.applied {
        let Some(Stored { log, .. }) = stored.get(channel).filter(|_| reader.channels.contains(channel)) else {
            say(format!("was sent {} events of {channel}, which it may not read", applied.len()));
            continue;
        };
        let deleted: HashSet<i64> =
            log.iter().filter(|entry| entry.kind == "message.deleted").filter_map(Entry::target).collect();
        // The log forgets the text of a deleted message; a reader may have seen it before.
        let forgotten = |entry: &Entry| match entry.kind.as_str() {
            "message.created" => deleted.contains(&entry.seq),
            "message.updated" => entry.target().is_some_and(|seq| deleted.contains(&seq)),
            _ => false,
        };
        if applied.len() != log.len() {
            say(format!("applied {} events of {channel}, the log has {}", applied.len(), log.len()));
        }
        for (seen, entry) in applied.iter().zip(log) {
            let same_head = (seen.seq, seen.event_id, &seen.kind, seen.actor)
                == (entry.seq, entry.event_id, &entry.kind, entry.actor);
            if !same_head || (seen.data != entry.data && !forgotten(entry)) {
                say(format!("applied {seen:?} of {channel} where the log has {entry:?}"));
                break;
            }
        }
    }
    for channel in reader.channels.iter().filter(|channel| !reader.applied.contains_key(channel)) {
        say(format!("applied nothing of {channel}"));
    }
}

#[cfg(test)]
mod tests {
    use colink::clock::Timestamp;
    use serde_json::json;

    use super::*;

    struct Case {
        recorded: Recorded,
        stored: BTreeMap<ChannelId, Stored>,
        channel: ChannelId,
        bob: UserId,
    }

    impl Case {
        /// Ana posts `k1`, whose first attempt was cut off, and mentions Bob, who reacts and listens.
        fn new() -> Case {
            let at = Timestamp(1_790_000_000_000_000);
            let (ana, bob, channel) = (UserId::new(at), UserId::new(at), ChannelId::new(at));
            let message_id = MessageId::new(at);
            let entry = |seq, kind: &str, actor, data: Value| Entry {
                seq,
                event_id: EventId::new(at),
                kind: kind.into(),
                actor: Some(actor),
                data: data.to_string(),
            };
            let log = vec![
                entry(1, "channel.created", ana, json!({})),
                entry(2, "message.created", ana, json!({"id": message_id, "text": "k1 hi", "client_msg_id": "k1"})),
                entry(3, "reaction.added", bob, json!({"message_seq": 2, "emoji": "+1", "user_id": bob})),
            ];
            let message = json!({"id": message_id, "channel_id": channel, "seq": 2, "message_no": 1, "author_id": ana,
                "text": "k1 hi", "mentions": {"users": [bob]}, "created_at": at,
                "reactions": [{"emoji": "+1", "users": [bob]}]});
            let place = |user, read_seq, unread_count, mention_count| Place {
                user,
                last_seq: 3,
                last_message_no: 1,
                read_seq,
                unread_count,
                mention_count,
            };
            let stored = Stored {
                log: log.clone(),
                messages: vec![serde_json::from_value(message).unwrap()],
                places: vec![place(ana, 2, 0, 0), place(bob, 1, 1, 1)],
            };
            let ok = |duplicate| Answer::Ok { seq: 2, message_id, duplicate };
            let send = Attempted { author: ana, channel, key: "k1".into(), answers: vec![Answer::Unknown, ok(true)] };
            let reader =
                Reader { name: "bob".into(), channels: vec![channel], applied: HashMap::from([(channel, log)]) };
            let change = Change { actor: bob, channel, seq: 3, kind: "reaction.added" };
            let recorded = Recorded { attempted: vec![send], changes: vec![change], readers: vec![reader] };
            Case { recorded, stored: BTreeMap::from([(channel, stored)]), channel, bob }
        }

        fn stored(&mut self) -> &mut Stored {
            self.stored.get_mut(&self.channel).unwrap()
        }

        fn applied(&mut self) -> &mut Vec<Entry> {
            self.recorded.readers[0].applied.get_mut(&self.channel).unwrap()
        }
    }

    fn broken(change: impl FnOnce(&mut Case)) -> String {
        let mut case = Case::new();
        change(&mut case);
        check(&case.recorded, &case.stored).join("\n")
    }

    #[test]
    fn a_run_in_which_all_went_well_breaks_nothing() {
        assert_eq!(broken(|_| {}), "");
    }

    #[test]
    fn a_lost_message_is_found() {
        let text = broken(|case| {
            case.stored().log.remove(1);
        });
        assert!(text.contains("k1 was acknowledged at 2 and is not stored"), "{text}");
        assert!(text.contains("has event 3 where 2 belongs"), "{text}");
    }

    #[test]
    fn a_message_stored_twice_is_found() {
        let text = broken(|case| {
            let twin = Entry { seq: 4, event_id: EventId::new(Timestamp(1)), ..case.stored().log[1].clone() };
            case.stored().log.push(twin);
        });
        assert!(text.contains("k1 is stored 2 times"), "{text}");
    }

    #[test]
    fn answers_that_disagree_are_found() {
        let text = broken(|case| {
            let answers = &mut case.recorded.attempted[0].answers;
            answers.push(Answer::Ok { seq: 9, message_id: MessageId::new(Timestamp(1)), duplicate: false });
        });
        assert!(text.contains("was acknowledged at {"), "{text}");
    }

    #[test]
    fn a_refused_message_must_not_be_there_and_one_of_nobodys_neither() {
        let refused = Answer::Refused("forbidden".into());
        let text = broken(|case| case.recorded.attempted[0].answers = vec![refused]);
        assert!(text.contains("was refused and is stored at 2"), "{text}");
        let text = broken(|case| case.recorded.attempted.clear());
        assert!(text.contains("nobody sent it"), "{text}");
    }

    #[test]
    fn a_reader_with_a_gap_a_repeat_or_another_payload_is_found() {
        let gap = broken(|case| drop(case.applied().remove(1)));
        let repeat = broken(|case| {
            let again = case.applied()[1].clone();
            case.applied().insert(2, again);
        });
        let other = broken(|case| case.applied()[2].data = "{}".into());
        let foreign = broken(|case| case.applied()[2].event_id = EventId::new(Timestamp(1)));
        for text in [gap, repeat, other, foreign] {
            assert!(text.contains("reader bob: applied"), "{text}");
        }
        let outside = broken(|case| case.recorded.readers[0].channels.clear());
        assert!(outside.contains("may not read"), "{outside}");
    }

    #[test]
    fn a_reader_may_have_seen_what_was_deleted_later() {
        let text = broken(|case| {
            let deleted = Entry {
                seq: 4,
                event_id: EventId::new(Timestamp(1)),
                kind: "message.deleted".into(),
                actor: None,
                data: json!({"message_seq": 2}).to_string(),
            };
            case.applied().push(deleted.clone());
            let stored = case.stored();
            stored.log.push(deleted);
            let created = &mut stored.log[1];
            created.data = created.data.replace("k1 hi", "");
            let message = &mut stored.messages[0];
            (message.text, message.mentions, message.reactions) = Default::default();
            message.deleted_at = Some(Timestamp(1));
            for place in &mut stored.places {
                (place.last_seq, place.mention_count) = (4, 0);
            }
        });
        assert_eq!(text, "");
    }

    #[test]
    fn counts_and_history_that_do_not_add_up_are_found() {
        let text = broken(|case| case.stored().places[1].mention_count = 0);
        assert!(text.contains("a recount finds 1 with 1"), "{text}");
        let text = broken(|case| case.stored().messages[0].text = "something else".into());
        assert!(text.contains("not what the log tells"), "{text}");
        let text = broken(|case| case.recorded.changes[0].actor = case.recorded.attempted[0].author);
        assert!(text.contains("reaction.added was acknowledged at 3"), "{text}");
        assert_eq!(broken(|case| case.recorded.changes[0].actor = case.bob), "");
    }
}
