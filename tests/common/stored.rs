//! People, their channels, and what is stored of these when all is over, read back over REST.

use std::collections::BTreeMap;
use std::time::Duration;

use colink::client::{Client, Window};
use colink::domain::id::{ChannelId, UserId};
use colink::domain::message::Message;
use serde::Deserialize;

use crate::checker::{Entry, Place, Stored};

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);

/// One user.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) id: UserId,
    pub(crate) name: String,
    pub(crate) token: String,
}

/// One channel and who is in it.
#[derive(Clone)]
pub(crate) struct Room {
    pub(crate) id: ChannelId,
    pub(crate) members: Vec<UserId>,
}

/// Reads every channel over REST: its log, its messages with their replies, and its members' places.
pub(crate) async fn read_back(url: &str, people: &[Person], rooms: &[Room]) -> BTreeMap<ChannelId, Stored> {
    let client = |person: &Person| Client::new(url).unwrap().with_token(&person.token).with_timeout(LIMIT);
    let mut stored = BTreeMap::new();
    for room in rooms {
        let reader = people.iter().find(|person| room.members.contains(&person.id)).unwrap();
        let client = client(reader);
        let log = client.events(room.id, 0).await.unwrap();
        let log = log.iter().map(|event| Entry::of(event).expect("a durable event").1).collect();
        let messages = read_messages(&client, room.id).await;
        stored.insert(room.id, Stored { log, messages, places: Vec::new() });
    }
    for person in people {
        for membership in client(person).my_channels().await.unwrap() {
            let place = Place {
                user: person.id,
                last_seq: membership.channel.last_seq,
                last_message_no: membership.channel.last_message_no,
                read_seq: membership.read_seq,
                unread_count: membership.unread_count,
                mention_count: membership.mention_count,
            };
            stored.get_mut(&membership.channel.id).expect("no other channel was made").places.push(place);
        }
    }
    stored
}

#[derive(Deserialize)]
struct Replies {
    items: Vec<Message>,
    has_more: bool,
}

async fn read_messages(client: &Client, channel: ChannelId) -> Vec<Message> {
    let mut by_seq: BTreeMap<i64, Message> = BTreeMap::new();
    let mut after = 0;
    loop {
        let page = client.messages(channel, Window::After(after), 200).await.unwrap();
        after = page.items.last().map_or(after, |message| message.seq);
        by_seq.extend(page.items.into_iter().map(|message| (message.seq, message)));
        if !page.has_more {
            break;
        }
    }
    let roots: Vec<i64> = by_seq.values().filter(|m| m.reply_count > 0).map(|m| m.seq).collect();
    for root in roots {
        let mut after = 0;
        loop {
            let path = format!("/v1/channels/{channel}/messages/{root}/replies?limit=200&after_seq={after}");
            let page: Replies = client.get(&path).await.unwrap();
            after = page.items.last().map_or(after, |message| message.seq);
            by_seq.extend(page.items.into_iter().map(|message| (message.seq, message)));
            if !page.has_more {
                break;
            }
        }
    }
    by_seq.into_values().collect()
}
