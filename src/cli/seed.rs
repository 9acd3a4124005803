//! `seed` and `serve --demo`: a small team that is already talking.
//!
//! On an empty database it is the same each time: people, channels, who is in them, texts, threads, reactions and all
//! numbers of events and messages. Identifiers, times and password hashes are new. Running it again changes nothing: people
//! and channels whose names are there are left as they are. Every step has its idempotency key, so that a run that was cut
//! short is finished by the next one.
#![expect(clippy::print_stdout, reason = "this is the command line")]

use std::collections::HashMap;

use anyhow::Result;
use serde::de::DeserializeOwned;

use super::Settings;
use super::door::Door;
use crate::app::App;
use crate::client;
use crate::config::Config;
use crate::domain::channel::Channel;
use crate::domain::command::{self as c, Command, Done, Principal, Spec};
use crate::domain::error::{Code, Refusal};
use crate::domain::id::{ChannelId, TokenId};
use crate::domain::message::Sent;
use crate::domain::user::{Role, User};
use crate::http::auth::hash_password;
use crate::storage::accounts::{Account, SYSTEM};
use crate::storage::writer::Work;
use crate::storage::{Store, users};

/// Who is in the demo team; the first is its administrator.
pub(super) const NAMES: [&str; 5] = ["ana", "bob", "cleo", "dan", "eva"];
/// Everybody's password.
pub(super) const PASSWORD: &str = "colink-demo";

const PEOPLE: [(&str, &str, &str); 5] = [
    ("ana", "Ana Lima", "Engineering lead"),
    ("bob", "Bob Okoye", "Backend"),
    ("cleo", "Cleo Martin", "Design"),
    ("dan", "Dan Novak", "Operations"),
    ("eva", "Eva Sato", "Support"),
];

/// Channel, author, text; a reply starts with `> `, a reaction with `+ `.
const TALK: &[(&str, &str, &str)] = &[
    ("general", "ana", "Good morning! Release **1.4** goes out today. Notes are in the wiki."),
    ("general", "bob", "> I'll watch the dashboards."),
    ("general", "dan", "> Rollback is ready, just in case."),
    ("general", "cleo", "+ tada"),
    ("general", "eva", "+ tada"),
    ("general", "eva", "Two customers asked about exports yesterday. @ana do we have a date?"),
    ("general", "ana", "> Next sprint. I'll write it up."),
    ("general", "dan", "@channel the office network is down from 18:00 to 18:30 for the new switch."),
    ("general", "bob", "+ +1"),
    (
        "engineering",
        "bob",
        "The resume path now replays from the log:\n```rust\nlet missed = events::after(&mut db, stream, cursor, limit).await?;\n```",
    ),
    ("engineering", "ana", "> Nice. What happens above the limit?"),
    ("engineering", "bob", "> `invalid_session`, and the client starts anew. Never partial."),
    ("engineering", "dan", "+ eyes"),
    ("engineering", "dan", "p99 of a send is down to 6 ms since the group commit."),
    ("engineering", "ana", "+ rocket"),
    ("design", "cleo", "New empty states are ready for review. Less text, one clear button each."),
    ("design", "ana", "> The second one is lovely."),
    ("random", "eva", "Lunch: noodles or pizza?"),
    ("random", "bob", "> Noodles."),
    ("random", "cleo", "> Noodles!"),
    ("random", "dan", "+ ramen"),
];

/// What carries the steps out.
trait Hands {
    async fn account(&self, account: Account) -> Result<User>;
    async fn command<C: Spec, T: DeserializeOwned>(&self, user: &User, command: C, key: String) -> Result<T>;
    fn store(&self) -> &Store;
    fn auth(&self) -> &crate::config::Auth;
}

impl Hands for Door {
    async fn account(&self, account: Account) -> Result<User> {
        Door::account(self, account).await
    }
    async fn command<C: Spec, T: DeserializeOwned>(&self, user: &User, command: C, key: String) -> Result<T> {
        Door::command(self, user, command, Some(key)).await
    }
    fn store(&self) -> &Store {
        &self.store
    }
    fn auth(&self) -> &crate::config::Auth {
        &self.config.auth
    }
}

impl Hands for App {
    async fn account(&self, account: Account) -> Result<User> {
        let reply = self.hub.writer.write(SYSTEM, Work::Account(account), None).await?;
        Ok(serde_json::from_str(&reply.json)?)
    }
    async fn command<C: Spec, T: DeserializeOwned>(&self, user: &User, command: C, key: String) -> Result<T> {
        let caller = Principal { user_id: user.id, role: user.role, token_id: TokenId(uuid::Uuid::nil()) };
        let command: Command = command.into();
        let reply = self.hub.writer.write(caller, Work::Command(command), Some(key)).await?;
        Ok(serde_json::from_str(&reply.json)?)
    }
    fn store(&self) -> &Store {
        &self.hub.store
    }
    fn auth(&self) -> &crate::config::Auth {
        &self.hub.config.auth
    }
}

pub(super) async fn run(settings: Settings) -> Result<()> {
    plant_through(settings.load()?).await?;
    println!("the demo team is there: {}, password `{PASSWORD}`", NAMES.join(", "));
    Ok(())
}

/// Fills a database, through the server that runs on it if there is one.
pub(super) async fn plant_through(config: Config) -> Result<()> {
    plant(&Door::open(config).await?).await
}

/// Fills a running node.
pub(super) async fn fill(app: &App) -> Result<()> {
    plant(app).await
}

async fn plant(hands: &impl Hands) -> Result<()> {
    let hash = hash_password(hands.auth(), PASSWORD)?;
    let mut people = HashMap::new();
    for (name, display, title) in PEOPLE {
        people.insert(name, person(hands, name, display, title, &hash).await?);
    }
    let all: Vec<_> = NAMES.iter().map(|name| people[name].id).collect();
    let mut rooms: HashMap<&str, ChannelId> = HashMap::new();
    for (name, purpose, private, who) in [
        ("general", "Company-wide news and talk", false, &all[..]),
        ("random", "Everything else", false, &all[..]),
        ("engineering", "How it is built", false, &[all[0], all[1], all[3]][..]),
        ("design", "How it looks and feels", true, &[all[0], all[2]][..]),
    ] {
        let create = c::CreateChannel {
            name: name.into(),
            private,
            topic: String::new(),
            purpose: purpose.into(),
            members: who.to_vec(),
        };
        match hands.command::<_, Channel>(&people["ana"], create, format!("seed-channel-{name}")).await {
            Ok(made) => drop(rooms.insert(name, made.id)),
            Err(error) if is_taken(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let direct = c::OpenDirect { user_ids: vec![all[1]] };
    let direct: Channel = hands.command(&people["ana"], direct, "seed-direct".into()).await?;
    if direct.last_message_no == 0 {
        let hello = says(direct.id, "Lunch at one?", None, "seed-direct-1");
        let _: Sent = hands.command(&people["bob"], hello, "seed-direct-1".into()).await?;
    }
    talk(hands, &people, &rooms).await
}

/// Returns whether a name was refused because something has it: the demo team's channel, whose key is forgotten, or
/// somebody else's.
fn is_taken(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Refusal>() {
        Some(refusal) => refusal.code == Code::Conflict,
        None => error.downcast_ref::<client::Error>().and_then(client::Error::code) == Some(Code::Conflict.as_str()),
    }
}

async fn person(hands: &impl Hands, name: &str, display: &str, title: &str, hash: &str) -> Result<User> {
    let mut db = hands.store().read().await?;
    let found = users::by_name(&mut db, name).await?;
    drop(db);
    if let Some(user) = found {
        return Ok(user);
    }
    let role = if name == NAMES[0] { Role::Admin } else { Role::Member };
    let add = Account::Add {
        name: name.into(),
        display_name: Some(display.into()),
        role,
        password_hash: Some(hash.to_owned()),
        first: false,
    };
    let user = hands.account(add).await?;
    let profile = c::UpdateProfile { display_name: None, title: Some(title.into()), timezone: None };
    hands.command(&user, profile, "seed-profile".into()).await
}

fn says(channel_id: ChannelId, text: &str, thread_seq: Option<i64>, key: &str) -> c::SendMessage {
    let client_msg_id = Some(key.to_owned());
    c::SendMessage { channel_id, client_msg_id, text: text.to_owned(), thread_seq, also_in_channel: false }
}

async fn talk(hands: &impl Hands, people: &HashMap<&str, User>, rooms: &HashMap<&str, ChannelId>) -> Result<()> {
    let mut last: HashMap<&str, i64> = HashMap::new();
    for (n, (room, author, text)) in TALK.iter().enumerate() {
        let Some(channel_id) = rooms.get(room).copied() else { continue };
        let (user, key) = (&people[author], format!("seed-talk-{n}"));
        if let Some(emoji) = text.strip_prefix("+ ") {
            let react = c::AddReaction { channel_id, seq: last[room], emoji: emoji.into() };
            let _: Done = hands.command(user, react, key).await?;
            continue;
        }
        let (text, thread) = match text.strip_prefix("> ") {
            Some(text) => (text, last.get(room).copied()),
            None => (*text, None),
        };
        let sent: Sent = hands.command(user, says(channel_id, text, thread, &key), key.clone()).await?;
        if thread.is_none() {
            last.insert(room, sent.seq);
        }
    }
    Ok(())
}
