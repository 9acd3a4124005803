//! What of a message is searched.

use sha2::{Digest as _, Sha256};

use super::analysis::{Analysis, analyze, stem};
use super::wanted::Key;
use crate::clock::Timestamp;
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ChannelId, UserId};

/// A yes or no about a message that can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mark {
    /// There is a link in it: `has:link`.
    Link,
    /// Somebody reacted: `has:reaction`.
    Reaction,
    /// It is a reply, or has replies: `is:thread`.
    Thread,
    /// It is pinned: `is:pinned`.
    Pinned,
}

impl Mark {
    /// All of them.
    pub const ALL: [Mark; 4] = [Mark::Link, Mark::Reaction, Mark::Thread, Mark::Pinned];

    /// Returns what stands for it in an index.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Mark::Link => "link",
            Mark::Reaction => "reaction",
            Mark::Thread => "thread",
            Mark::Pinned => "pinned",
        }
    }
}

/// A message as an index has it. It says which message, not what to show: that is read from the database.
#[derive(Clone, PartialEq, Debug)]
pub struct Document {
    /// Its channel.
    pub channel: ChannelId,
    /// Its number there.
    pub seq: i64,
    /// Who wrote it.
    pub author: UserId,
    /// When.
    pub created_at: Timestamp,
    /// Whom it mentions.
    pub mentions: Vec<UserId>,
    /// What else is true of it.
    pub marks: Vec<Mark>,
    /// Its text.
    pub text: String,
    /// The number of its channel's newest event when it was like this.
    pub version: i64,
}

impl Document {
    /// Returns the words of its text, prepared to be indexed or matched.
    #[must_use]
    pub fn forms(&self) -> Forms {
        Forms::of(&self.text)
    }

    /// Returns a number that is another one if anything in it is.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.channel.0.as_bytes());
        hash.update(self.seq.to_be_bytes());
        hash.update(self.author.0.as_bytes());
        hash.update(self.created_at.0.to_be_bytes());
        for user in &self.mentions {
            hash.update(user.0.as_bytes());
        }
        for mark in &self.marks {
            hash.update(mark.as_str());
            hash.update([0]);
        }
        hash.update([1]);
        hash.update(&self.text);
        let digest: [u8; 32] = hash.finalize().into();
        u64::from_be_bytes([digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]])
    }
}

/// The words of a text in all the forms by which they are found.
#[derive(Clone, PartialEq, Debug)]
pub struct Forms {
    /// Its words and joined spellings.
    pub analysis: Analysis,
    /// Stems that are not words of it themselves, each with the place of its word among them.
    pub stems: Vec<(String, usize)>,
}

impl Forms {
    /// Prepares a text.
    #[must_use]
    pub fn of(text: &str) -> Forms {
        let analysis = analyze(text);
        let stems = (0..).zip(&analysis.words).filter_map(|(at, word)| Some((stem(&word.text)?, at))).collect();
        Forms { analysis, stems }
    }
}

/// Returns which messages an event makes look different to who searches.
#[must_use]
pub fn touched(event: &Event) -> Vec<Key> {
    #[derive(serde::Deserialize)]
    struct Told {
        message_seq: Option<i64>,
        thread_seq: Option<i64>,
    }
    let channel = ChannelId::from(event.stream);
    match event.kind {
        EventKind::MessageCreated => {
            let told: Option<Told> = serde_json::from_str(&event.payload).ok();
            let thread = told.and_then(|told| told.thread_seq);
            [Some(event.seq), thread].into_iter().flatten().map(|seq| (channel, seq)).collect()
        }
        EventKind::MessageUpdated
        | EventKind::MessageDeleted
        | EventKind::ReactionAdded
        | EventKind::ReactionRemoved
        | EventKind::PinAdded
        | EventKind::PinRemoved => {
            let told: Option<Told> = serde_json::from_str(&event.payload).ok();
            told.and_then(|told| told.message_seq).map(|seq| (channel, seq)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// Returns whether there is a link in a text.
#[must_use]
pub fn has_link(text: &str) -> bool {
    ["https://", "http://"].iter().any(|scheme| {
        text.match_indices(scheme).any(|(at, _)| text[at + scheme.len()..].starts_with(char::is_alphanumeric))
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn links_are_seen() {
        assert!(has_link("see https://example.com/a") && has_link("(http://1.2.3.4)"));
        assert!(!has_link("https:// is a scheme") && !has_link("example.com"));
    }

    #[test]
    fn whatever_differs_changes_the_digest() {
        let id = |n| UserId(Uuid::from_u128(n));
        let one = Document {
            channel: ChannelId(Uuid::from_u128(1)),
            seq: 2,
            author: id(3),
            created_at: Timestamp(4),
            mentions: vec![id(5)],
            marks: vec![Mark::Link],
            text: "six".to_owned(),
            version: 7,
        };
        let mut others = vec![one.clone(); 7];
        others[0].channel = ChannelId(Uuid::from_u128(9));
        others[1].seq = 9;
        others[2].author = id(9);
        others[3].created_at = Timestamp(9);
        others[4].mentions.clear();
        others[5].marks = vec![Mark::Pinned];
        others[6].text = "nine".to_owned();
        assert_eq!(one.digest(), Document { version: 9, ..one.clone() }.digest());
        assert!(others.iter().all(|other| other.digest() != one.digest()));
    }
}
