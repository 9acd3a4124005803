//! What a chat asks over REST, each answer as [`News`].

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::talk::{News, Post, Want};
use crate::client::{Client, Error, History, Page, Result, Window, escaped};
use crate::domain::channel::{Channel, Member, channel_name};
use crate::domain::command::{CreateChannel, SendMessage};
use crate::domain::id::{ChannelId, UserId};
use crate::domain::message::Sent;
use crate::domain::user::{Presence, User};

/// How many messages a page of history has, and of how many of its threads the replies are read.
const PAGE: u32 = 50;
const THREADS: usize = 10;
/// How many people are named in one question: the length of a query has a limit, `server.max_query_bytes`.
const NAMED: usize = 40;

/// Posts a message: again and again with the same key, until the hub has answered or `patience` is over.
pub(super) async fn send(client: &Client, post: Post, patience: Option<Duration>) -> News {
    let Post { channel, text, thread, key } = post.clone();
    let body = SendMessage {
        channel_id: channel,
        client_msg_id: Some(key.clone()),
        text,
        thread_seq: thread,
        also_in_channel: false,
    };
    let path = format!("/v1/channels/{channel}/messages");
    let deadline = patience.map(|patience| Instant::now() + patience);
    let mut pause = Duration::from_millis(200);
    loop {
        let sent: Result<Sent> = client.post(&path, &body).await;
        let wait = match sent {
            Ok(sent) => return News::Posted { channel, key, seq: sent.seq },
            Err(Error::Refused { retry_after: Some(seconds), .. }) => {
                Duration::from_secs_f64(seconds.clamp(0.05, 60.0))
            }
            Err(Error::Io(_)) if deadline.is_none_or(|at| Instant::now() < at) => pause,
            Err(error) => return News::Unposted { post, why: error.to_string() },
        };
        sleep(wait).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Reads a page of history and the replies of its newest threads.
pub(super) async fn history(client: &Client, channel: ChannelId, before: Option<i64>) -> Result<History> {
    let window = before.map_or(Window::Newest, Window::Before);
    let mut page = client.messages(channel, window, PAGE).await?;
    let threads: Vec<i64> =
        page.items.iter().rev().filter(|message| message.reply_count > 0).map(|m| m.seq).take(THREADS).collect();
    for seq in threads {
        let replies: History = client
            .get(&format!("/v1/channels/{channel}/messages/{seq}/replies?limit=100&before_seq={}", i64::MAX))
            .await?;
        page.items.extend(replies.items);
    }
    Ok(page)
}

/// Joins the public channel with a name.
pub(super) async fn join(client: &Client, name: &str) -> Result<ChannelId> {
    let name = channel_name(name).map_err(|refusal| refused("invalid", &refusal.to_string()))?;
    let public: Vec<Channel> = client.all("/v1/channels/browse?limit=200").await?;
    let Some(channel) = public.iter().find(|channel| channel.name.as_ref() == Some(&name)) else {
        return Err(refused("not_found", &format!("there is no public channel `{name}`")));
    };
    let _: Value = client.post(&format!("/v1/channels/{}/join", channel.id), &json!({})).await?;
    Ok(channel.id)
}

/// Opens the direct message with a user.
pub(super) async fn open_direct(client: &Client, user: UserId) -> Result<ChannelId> {
    let channel: Channel = client.post("/v1/channels/direct", &json!({"user_ids": [user]})).await?;
    Ok(channel.id)
}

fn refused(code: &str, message: &str) -> Error {
    Error::Refused { code: code.to_owned(), message: message.to_owned(), status: None, retry_after: None }
}

/// Carries out what is asked once, and says what came of it.
pub(super) async fn ask(client: &Client, want: Want) -> Vec<News> {
    match try_ask(client, want).await {
        Ok(news) => news,
        Err(Error::Refused { message, .. }) => vec![News::Refused(message)],
        Err(error) => vec![News::Refused(error.to_string())],
    }
}

async fn try_ask(client: &Client, want: Want) -> Result<Vec<News>> {
    match want {
        Want::Join(name) => opened(client, join(client, &name).await?).await,
        Want::Create(name) => {
            let create = CreateChannel {
                name,
                private: false,
                topic: String::new(),
                purpose: String::new(),
                members: Vec::new(),
            };
            opened(client, client.create_channel(&create).await?.id).await
        }
        Want::Direct(user) => opened(client, open_direct(client, user).await?).await,
        Want::Leave(channel) => {
            let _: Value = client.post(&format!("/v1/channels/{channel}/leave"), &json!({})).await?;
            Ok(vec![state(client).await?])
        }
        Want::Topic { channel, topic } => {
            let _: Value = client.patch(&format!("/v1/channels/{channel}"), &json!({"topic": topic})).await?;
            Ok(Vec::new())
        }
        Want::Status { emoji, text } => {
            let _: User = client.put("/v1/users/me/status", &json!({"emoji": emoji, "text": text})).await?;
            Ok(Vec::new())
        }
        Want::React { channel, seq, emoji } => {
            let path = format!("/v1/channels/{channel}/messages/{seq}/reactions/{}", escaped(emoji.trim_matches(':')));
            let _: Value = client.put(&path, &json!({})).await?;
            Ok(Vec::new())
        }
        Want::Members(channel) => Ok(vec![members(client, channel).await?]),
        _ => Ok(Vec::new()),
    }
}

/// Reads users and channels.
pub(super) async fn state(client: &Client) -> Result<News> {
    Ok(News::State { users: client.users().await?, channels: client.my_channels().await? })
}

async fn opened(client: &Client, channel: ChannelId) -> Result<Vec<News>> {
    Ok(vec![state(client).await?, News::Opened(channel)])
}

#[derive(serde::Deserialize)]
struct Seen {
    user_id: UserId,
    presence: Presence,
}

async fn members(client: &Client, channel: ChannelId) -> Result<News> {
    let page: Page<Member> = client.get(&format!("/v1/channels/{channel}/members?limit=200")).await?;
    let mut members = Vec::new();
    for some in page.items.chunks(NAMED) {
        let ids: Vec<String> = some.iter().map(|member| member.user_id.to_string()).collect();
        let seen: Page<Seen> = client.get(&format!("/v1/presence?user_ids={}", ids.join(","))).await?;
        members.extend(seen.items.into_iter().map(|seen| (seen.user_id, seen.presence)));
    }
    Ok(News::Members { channel, members })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::stub::Stub;

    #[tokio::test]
    async fn a_post_is_answered_with_its_number() {
        let stub = Stub::start().await;
        let channel = stub.room(&["ana"]);
        let client = stub.client("ana").await;
        let post = Post { channel, text: "hi".into(), thread: None, key: "k-1".into() };
        let news = send(&client, post, None).await;
        assert!(matches!(news, News::Posted { seq: 1, .. }), "{news:?}");
        let page = history(&client, channel, None).await.unwrap();
        assert_eq!(page.items[0].text, "hi");
    }

    #[tokio::test]
    async fn a_refused_post_comes_back_with_the_reason() {
        let stub = Stub::start().await;
        let channel = stub.room(&["bob"]);
        let client = stub.client("ana").await;
        let post = Post { channel, text: "let me in".into(), thread: None, key: "k-1".into() };
        assert!(matches!(send(&client, post, None).await, News::Unposted { .. }));
    }
}
