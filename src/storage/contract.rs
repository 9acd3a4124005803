//! What the store promises, run on SQLite and, where `COLINK_TEST_POSTGRES` names a server, on Postgres too.
//!
//! Each test opens a database of its own: a temporary file, or `CREATE DATABASE` on the server.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::accounts::{Account, Ended, Proof, Pruned, SYSTEM};
use super::apply::Scope;
use super::messages::Page;
use super::tokens::{Secret, Token};
use super::writer::{Limits, Reply, Work, Writer};
use super::{Db, Dialect, Options, PAGE_BYTES, Store, apply, channels, events, messages, on, personal, tokens, users};
use crate::clock::{Clock, Timestamp};
use crate::domain::channel::{Channel, ChannelKind, ChannelRole, Membership};
use crate::domain::command::{self, Command, Invite, Principal};
use crate::domain::error::{Code, Refusal};
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ChannelId, StreamId, TokenId, UserId};
use crate::domain::message::{Message, Sent};
use crate::domain::text::TEXT_MAX;
use crate::domain::user::{Role, User};

struct World {
    store: Store,
    writer: Writer,
    told: Arc<Mutex<Vec<Event>>>,
    clock: Clock,
    url: String,
    _dir: tempfile::TempDir,
}

/// Returns a URL of a new, empty database; nothing if there is no Postgres to test on.
async fn new_database(dialect: Dialect, dir: &std::path::Path) -> Option<String> {
    if dialect == Dialect::Sqlite {
        return Some(format!("sqlite://{}", dir.join("test.db").display()));
    }
    let server = std::env::var("COLINK_TEST_POSTGRES").ok()?;
    let name = format!("contract_{}", UserId::new(Clock::default().now()).0.simple());
    let pool = sqlx::PgPool::connect(&server).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&pool).await.unwrap();
    let (base, _) = server.rsplit_once('/').unwrap();
    Some(format!("{base}/{name}"))
}

impl World {
    async fn open(dialect: Dialect) -> Option<World> {
        World::with(dialect, |_| {}).await
    }

    async fn with(dialect: Dialect, change: impl FnOnce(&mut Options)) -> Option<World> {
        let dir = tempfile::tempdir().unwrap();
        let url = new_database(dialect, dir.path()).await?;
        let mut options = Options::new(&url);
        change(&mut options);
        let store = Store::open(&options).await.unwrap();
        store.migrate().await.unwrap();
        store.migrate().await.unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let told = told.clone();
            Arc::new(move |committed: super::writer::Committed| told.lock().unwrap().extend(committed.events))
        };
        let clock = Clock::manual(Timestamp(1_790_000_000_000_000));
        let limits = Limits { queue: 4_096, batch: 256 };
        let (writer, _) = Writer::start(store.clone(), clock.clone(), limits, sink, CancellationToken::new()).unwrap();
        Some(World { store, writer, told, clock, url, _dir: dir })
    }

    async fn user(&self, name: &str, role: Role) -> Principal {
        let add = Account::Add { name: name.into(), display_name: None, role, password_hash: None, first: false };
        let reply = self.writer.write(SYSTEM, Work::Account(add), None).await.unwrap();
        let user: User = serde_json::from_str(&reply.json).unwrap();
        Principal { user_id: user.id, role, token_id: TokenId::new(self.clock.now()) }
    }

    async fn ask(&self, who: Principal, command: impl Into<Command>) -> Result<Reply, Refusal> {
        let command = command.into();
        let key = match &command {
            Command::SendMessage(c) => c.client_msg_id.clone(),
            _ => None,
        };
        self.writer.write(who, Work::Command(command), key).await
    }

    async fn get<T: DeserializeOwned>(&self, who: Principal, command: impl Into<Command>) -> T {
        serde_json::from_str(&self.ask(who, command).await.unwrap().json).unwrap()
    }

    async fn channel(&self, who: Principal, name: &str, members: &[Principal]) -> ChannelId {
        let members = members.iter().map(|m| m.user_id).collect();
        let create = command::CreateChannel {
            name: name.into(),
            private: false,
            topic: String::new(),
            purpose: String::new(),
            members,
        };
        self.get::<Channel>(who, create).await.id
    }

    async fn membership(&self, who: Principal, channel: ChannelId) -> Membership {
        let mut db = self.store.read().await.unwrap();
        channels::membership(&mut db, who.user_id, channel).await.unwrap().unwrap()
    }

    /// Returns a connection that writes past the writer.
    async fn apart(&self) -> Db {
        Store::open(&Options::new(&self.url)).await.unwrap().write().await.unwrap()
    }

    async fn log(&self, stream: impl Into<StreamId>) -> Vec<Event> {
        let mut db = self.store.read().await.unwrap();
        events::after(&mut db, stream.into(), 0, 100_000).await.unwrap()
    }
}

fn says(channel: ChannelId, text: &str, key: Option<&str>) -> command::SendMessage {
    command::SendMessage {
        channel_id: channel,
        client_msg_id: key.map(str::to_owned),
        text: text.into(),
        thread_seq: None,
        also_in_channel: false,
    }
}

/// Makes one test for each database out of one body.
macro_rules! on_both {
    ($($name:ident($world:ident) $body:block)*) => {$(
        mod $name {
            use super::*;
            async fn body($world: World) $body

            #[tokio::test(flavor = "multi_thread")]
            async fn sqlite() {
                body(World::open(Dialect::Sqlite).await.unwrap()).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn postgres() {
                if let Some(world) = on_postgres(|_| {}).await {
                    body(world).await;
                }
            }
        }
    )*};
}

on_both! {
    messages_of_many_channels_are_numbered_densely(world) {
        let ana = world.user("ana", Role::Member).await;
        let mut rooms = Vec::new();
        for n in 0..4 {
            rooms.push(world.channel(ana, &format!("room-{n}"), &[]).await);
        }
        let mut waiting = Vec::new();
        for n in 0..200 {
            let (writer, send) = (world.writer.clone(), says(rooms[n % 4], &format!("text {n}"), None));
            waiting.push(tokio::spawn(async move { writer.write(ana, Work::Command(send.into()), None).await }));
        }
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        for room in rooms {
            let log = world.log(room).await;
            let seqs: Vec<i64> = log.iter().map(|e| e.seq).collect();
            assert_eq!(seqs, (1..=51).collect::<Vec<_>>());
            let mut db = world.store.read().await.unwrap();
            let (page, more) = messages::history(&mut db, room, Page::Newest, 100).await.unwrap();
            let numbers: Vec<i64> = page.iter().map(|m| m.message_no.unwrap()).collect();
            assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
            assert!(!more);
            let told: Vec<i64> =
                world.told.lock().unwrap().iter().filter(|e| e.stream == room.into()).map(|e| e.seq).collect();
            assert_eq!(told, seqs, "events are told in order, each once");
        }
    }

    a_page_of_long_messages_is_short_and_the_next_one_goes_on(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let longest = "x".repeat(TEXT_MAX);
        for _ in 0..60 {
            world.ask(ana, says(room, &longest, None)).await.unwrap();
        }
        // One connection for all of it: what was not read of one page does not get into the next.
        let mut db = world.store.read().await.unwrap();
        let fit = PAGE_BYTES / TEXT_MAX;
        let (newest, more) = messages::history(&mut db, room, Page::Newest, 200).await.unwrap();
        assert_eq!((newest.len(), newest.last().unwrap().seq, more), (fit, 61, true));
        let (before, more) = messages::history(&mut db, room, Page::Before(newest[0].seq), 200).await.unwrap();
        assert_eq!((before.len(), before.last().unwrap().seq, more), (fit, newest[0].seq - 1, true));
        let (rest, more) = messages::history(&mut db, room, Page::Before(before[0].seq), 200).await.unwrap();
        assert_eq!((rest.len(), rest[0].seq, more), (60 - 2 * fit, 2, false));
        let log = events::after(&mut db, room.into(), 1, 1_000).await.unwrap();
        let (first, last) = (log.first().unwrap().seq, log.last().unwrap().seq);
        assert_eq!((first, last), (2, log.len() as i64 + 1));
        assert!(log.len() <= fit && log.len() + 2 >= fit, "{} events", log.len());
        assert_eq!(events::after(&mut db, room.into(), last, 1_000).await.unwrap()[0].seq, last + 1);
    }

    a_pin_that_is_there_needs_no_room(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let pin = |seq| command::AddPin { channel_id: room, seq };
        for n in 0..200 {
            let sent: Sent = world.get(ana, says(room, &format!("text {n}"), None)).await;
            world.ask(ana, pin(sent.seq)).await.unwrap();
        }
        assert_eq!(world.ask(ana, pin(2)).await.unwrap().json, "{}");
        let sent: Sent = world.get(ana, says(room, "one too many", None)).await;
        assert_eq!(world.ask(ana, pin(sent.seq)).await.unwrap_err().code, Code::Conflict);
        let mut db = world.store.read().await.unwrap();
        assert_eq!(messages::pinned(&mut db, room, None, 200).await.unwrap().0.len(), 200);
    }

    a_repeated_key_is_stored_once_and_bound_to_its_body(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let first: Sent = world.get(ana, says(room, "hi", Some("k1"))).await;
        assert!(!first.duplicate);
        let again: Sent = world.get(ana, says(room, "hi", Some("k1"))).await;
        assert_eq!((again.seq, again.message_id, again.duplicate), (first.seq, first.message_id, true));
        let other = world.ask(ana, says(room, "something else", Some("k1"))).await.unwrap_err();
        assert_eq!(other.code, Code::KeyReused);
        let both = tokio::join!(world.ask(ana, says(room, "x", Some("k2"))), world.ask(ana, says(room, "x", Some("k2"))));
        let both = [both.0.unwrap(), both.1.unwrap()];
        assert_eq!(both.iter().filter(|r| r.duplicate).count(), 1);
        assert_eq!(world.log(room).await.len(), 3);
    }

    a_refused_item_does_not_disturb_its_neighbours(world) {
        let ana = world.user("ana", Role::Member).await;
        let eve = world.user("eve", Role::Guest).await;
        let room = world.channel(ana, "room", &[]).await;
        let rename = command::UpdateChannel {
            channel_id: room, name: Some("not a name".into()), topic: None, purpose: None, posting: None,
        };
        let (a, b, c, d, e) = tokio::join!(
            world.ask(ana, says(room, "one", None)),
            world.ask(eve, says(room, "I am not in", None)),
            world.ask(ana, rename),
            world.ask(ana, command::AddReaction { channel_id: room, seq: 99, emoji: "+1".into() }),
            world.ask(ana, says(room, "two", None)),
        );
        assert!(a.is_ok() && e.is_ok());
        assert_eq!(b.unwrap_err().code, Code::NotFound);
        assert_eq!(c.unwrap_err().code, Code::Invalid);
        assert_eq!(d.unwrap_err().code, Code::NotFound);
        assert_eq!(world.log(room).await.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3]);
    }

    unread_and_mentions_are_arithmetic(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        world.ask(ana, says(room, "hello @bob", None)).await.unwrap();
        world.ask(ana, says(room, "nobody", None)).await.unwrap();
        let third: Sent = world.get(ana, says(room, "@channel", None)).await;
        let (a, b) = (world.membership(ana, room).await, world.membership(bob, room).await);
        assert_eq!((a.unread_count, a.mention_count), (0, 0), "whoever writes has read");
        assert_eq!((b.unread_count, b.mention_count), (3, 2));
        let read: Membership = world.get(bob, command::MarkRead { channel_id: room, seq: third.seq - 1 }).await;
        assert_eq!((read.unread_count, read.mention_count), (1, 1));
        let read: Membership = world.get(bob, command::MarkRead { channel_id: room, seq: 1 }).await;
        assert_eq!(read.unread_count, 1, "reading never moves backwards");
        let read: Membership = world.get(bob, command::MarkUnread { channel_id: room, seq: 2 }).await;
        assert_eq!((read.unread_count, read.mention_count), (3, 2));
        let reply = command::SendMessage { thread_seq: Some(2), ..says(room, "a reply", None) };
        let reply: Sent = world.get(ana, reply).await;
        world.ask(ana, says(room, "behind it", None)).await.unwrap();
        let read: Membership = world.get(bob, command::MarkRead { channel_id: room, seq: reply.seq }).await;
        assert_eq!((read.unread_count, read.mention_count), (1, 0), "a mark may stand at a reply");
    }

    threads_count_their_own_replies(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let root: Sent = world.get(ana, says(room, "root", None)).await;
        let mut reply = says(room, "reply @ana", None);
        reply.thread_seq = Some(root.seq);
        world.ask(bob, reply.clone()).await.unwrap();
        reply.also_in_channel = true;
        let second: Sent = world.get(bob, reply).await;
        let mut db = world.store.read().await.unwrap();
        let (replies, _) = messages::replies(&mut db, room, root.seq, 0, 10).await.unwrap();
        assert_eq!(replies.iter().map(|m| m.reply_no).collect::<Vec<_>>(), [Some(1), Some(2)]);
        let (top, _) = messages::history(&mut db, room, Page::Newest, 10).await.unwrap();
        assert_eq!(top.iter().map(|m| m.seq).collect::<Vec<_>>(), [root.seq, second.seq]);
        assert_eq!(top[0].reply_count, 2);
        let threads = personal::followed(&mut db, ana.user_id, None, 10).await.unwrap();
        assert_eq!(threads[0].unread_count, 2, "who started a thread follows it");
        assert_eq!(threads[0].read_seq, root.seq);
        let threads = personal::followed(&mut db, bob.user_id, None, 10).await.unwrap();
        assert_eq!((threads[0].unread_count, threads[0].read_seq), (0, second.seq), "who replies has read up to there");
        drop(db);
        world.ask(ana, command::MarkThreadRead { channel_id: room, thread_seq: root.seq, seq: second.seq - 1 }).await.unwrap();
        let mut db = world.store.read().await.unwrap();
        assert_eq!(personal::followed(&mut db, ana.user_id, None, 10).await.unwrap()[0].unread_count, 1);
    }

    a_thread_can_be_read_and_left_when_its_first_message_is_gone(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let root: Sent = world.get(ana, says(room, "root", None)).await;
        let (channel_id, thread_seq) = (room, root.seq);
        let reply: Sent =
            world.get(bob, command::SendMessage { thread_seq: Some(thread_seq), ..says(room, "re", None) }).await;
        world.ask(ana, command::DeleteMessage { channel_id, seq: thread_seq }).await.unwrap();
        let threads = async || {
            let mut db = world.store.read().await.unwrap();
            let threads = personal::followed(&mut db, ana.user_id, None, 10).await.unwrap();
            threads.iter().map(|thread| thread.unread_count).collect::<Vec<_>>()
        };
        assert_eq!(threads().await, [1]);
        world.ask(ana, command::MarkThreadRead { channel_id, thread_seq, seq: reply.seq }).await.unwrap();
        assert_eq!(threads().await, [0]);
        world.ask(ana, command::UnfollowThread { channel_id, thread_seq }).await.unwrap();
        assert!(threads().await.is_empty());
        let again = world.ask(ana, command::FollowThread { channel_id, thread_seq }).await.unwrap_err();
        assert_eq!(again.code, Code::NotFound, "nothing more is written in it");
    }

    a_page_has_all_reactions_on_its_messages(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let react = async |seq: i64, emoji: &str| {
            world.ask(ana, command::AddReaction { channel_id: room, seq, emoji: emoji.into() }).await.unwrap();
        };
        let root: Sent = world.get(ana, says(room, "root", None)).await;
        let reply = command::SendMessage { thread_seq: Some(root.seq), ..says(room, "much liked", None) };
        let reply: Sent = world.get(ana, reply).await;
        let newest: Sent = world.get(ana, says(room, "newest", None)).await;
        react(root.seq, "eyes").await;
        react(newest.seq, "wave").await;
        react(newest.seq, "+1").await;
        let (known, new) = ("wave", "eyes");
        let mut db = world.store.read().await.unwrap();
        assert_eq!(messages::emoji_on(&mut db, room, newest.seq, known).await.unwrap(), (2, true));
        assert_eq!(messages::emoji_on(&mut db, room, newest.seq, new).await.unwrap(), (2, false));
        assert_eq!(messages::emoji_on(&mut db, room, reply.seq, new).await.unwrap(), (0, false));
        drop(db);
        let likes = "INSERT INTO reactions (channel_id, seq, emoji, user_id, created_at) \
            WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 10000) \
            SELECT $1, $2, 'e' || n, $3, $4 FROM n";
        let (mut apart, now) = (world.apart().await, world.clock.now());
        on!(&mut apart, c => { sqlx::query(likes).bind(room).bind(reply.seq).bind(ana.user_id).bind(now).execute(c).await.unwrap(); });

        let mut db = world.store.read().await.unwrap();
        let (page, _) = messages::history(&mut db, room, Page::Newest, 10).await.unwrap();
        let on = |message: &Message| message.reactions.iter().map(|r| r.emoji.clone()).collect::<Vec<_>>();
        assert_eq!(page.iter().map(on).collect::<Vec<_>>(), [vec!["eyes"], vec!["+1", "wave"]]);
        assert_eq!(messages::one(&mut db, room, reply.seq).await.unwrap().unwrap().reactions.len(), 10_000);
        drop(db);

        // What is much liked is long.
        let likes = likes.replace("n < 10000", "n < 30000");
        on!(&mut apart, c => { sqlx::query(sqlx::AssertSqlSafe(likes)).bind(room).bind(newest.seq).bind(ana.user_id).bind(now)
            .execute(c).await.unwrap(); });
        let mut db = world.store.read().await.unwrap();
        let (page, more) = messages::history(&mut db, room, Page::Newest, 10).await.unwrap();
        assert_eq!((page.len(), page[0].reactions.len(), more), (1, 30_002, true));
        let (page, more) = messages::history(&mut db, room, Page::Before(newest.seq), 10).await.unwrap();
        assert_eq!((page.len(), more), (1, false));
    }

    an_edit_keeps_the_earlier_text_and_a_deletion_forgets_all(world) {
        let ana = world.user("ana", Role::Member).await;
        let room = world.channel(ana, "room", &[]).await;
        let sent: Sent = world.get(ana, says(room, "first secret", None)).await;
        world.ask(ana, command::EditMessage { channel_id: room, seq: sent.seq, text: "second secret".into() }).await.unwrap();
        world.ask(ana, command::AddReaction { channel_id: room, seq: sent.seq, emoji: "eyes".into() }).await.unwrap();
        world.ask(ana, command::AddPin { channel_id: room, seq: sent.seq }).await.unwrap();
        let mut db = world.store.read().await.unwrap();
        let message = messages::one(&mut db, room, sent.seq).await.unwrap().unwrap();
        assert_eq!((message.text.as_str(), message.pinned, message.reactions.len()), ("second secret", true, 1));
        assert_eq!(messages::edits(&mut db, room, sent.seq, 0, 10).await.unwrap().0[0].text, "first secret");
        drop(db);
        world.ask(ana, command::DeleteMessage { channel_id: room, seq: sent.seq }).await.unwrap();
        let mut db = world.store.read().await.unwrap();
        let message = messages::one(&mut db, room, sent.seq).await.unwrap().unwrap();
        assert!(message.text.is_empty() && message.deleted_at.is_some() && message.reactions.is_empty());
        assert!(messages::edits(&mut db, room, sent.seq, 0, 10).await.unwrap().0.is_empty());
        drop(db);
        for event in world.log(room).await {
            assert!(!event.payload.contains("secret"), "{}", event.payload);
        }
    }

    a_channel_is_made_with_many_members_at_once(world) {
        let ana = world.user("ana", Role::Member).await;
        let mut people = Vec::new();
        for n in 0..60 {
            people.push(world.user(&format!("user-{n}"), Role::Member).await);
        }
        let (bob, leaver) = (people[7], world.user("leaver", Role::Member).await);
        let quiet = world.channel(ana, "quiet", &[bob]).await;
        let root = world.user("root", Role::Admin).await;
        world.ask(root, command::DeactivateUser { user_id: leaver.user_id }).await.unwrap();
        let create = |name: &str, members: &[Principal]| command::CreateChannel {
            name: name.into(), private: false, topic: String::new(), purpose: String::new(),
            members: members.iter().map(|m| m.user_id).collect(),
        };
        let twice: Vec<Principal> = people.iter().chain(&people).copied().chain([ana]).collect();
        let with_leaver: Vec<Principal> = people.iter().copied().chain([leaver]).collect();
        let (before, big, refused, behind) = tokio::join!(
            world.ask(ana, says(quiet, "before", None)),
            world.ask(ana, create("big", &twice)),
            world.ask(ana, create("bigger", &with_leaver)),
            world.ask(ana, says(quiet, "behind", None)),
        );
        assert!(before.is_ok() && behind.is_ok());
        assert_eq!(refused.unwrap_err().code, Code::NotFound, "nobody who is gone is put into a channel");
        let big: Channel = serde_json::from_str(&big.unwrap().json).unwrap();
        let mut db = world.store.read().await.unwrap();
        assert!(channels::by_name(&mut db, "bigger").await.unwrap().is_none());
        let members = channels::members(&mut db, big.id, None, 100).await.unwrap();
        assert_eq!(members.len(), 61);
        let owners: Vec<UserId> = members.iter().filter(|m| m.role == ChannelRole::Owner).map(|m| m.user_id).collect();
        assert_eq!(owners, [ana.user_id]);
        let own = world.log(bob.user_id).await;
        assert_eq!(own.iter().map(|e| (e.seq, e.kind)).collect::<Vec<_>>(),
            [(1, EventKind::UserChannelAdded), (2, EventKind::UserChannelAdded)]);
        assert!(own[1].payload.contains(&big.id.to_string()) && own[1].actor == Some(ana.user_id));
        let told: Vec<_> = world.told.lock().unwrap().iter().filter(|e| e.stream == bob.user_id.into()).map(|e| e.id).collect();
        assert_eq!(told, own.iter().map(|e| e.id).collect::<Vec<_>>(), "what is told is what is stored");
    }

    of_a_draft_the_log_keeps_the_newest_text_alone(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let draft = async |text: &str, thread_seq| {
            world.ask(bob, command::SetDraft { channel_id: room, thread_seq, text: text.into() }).await.unwrap();
        };
        let told = async || {
            let drafts = world.log(bob.user_id).await.into_iter().filter(|e| e.kind == EventKind::UserDraft);
            let text = |event: Event| serde_json::from_str::<personal::Draft>(&event.payload).unwrap().text;
            drafts.map(text).collect::<Vec<_>>()
        };
        draft("I think", None).await;
        draft("in a thread", Some(2)).await;
        draft("I think that", None).await;
        assert_eq!(told().await, ["", "in a thread", "I think that"]);
        let mut db = world.store.read().await.unwrap();
        assert_eq!(personal::drafts(&mut db, bob.user_id, None, 10).await.unwrap().0.len(), 2);
        draft("", None).await;
        assert_eq!(told().await, ["", "in a thread", "", ""]);
        world.ask(bob, command::LeaveChannel { channel_id: room }).await.unwrap();
        assert_eq!(told().await, ["", "", "", ""]);
        assert!(personal::drafts(&mut db, bob.user_id, None, 10).await.unwrap().0.is_empty());
    }

    direct_messages_are_found_again(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let one: Channel = world.get(ana, command::OpenDirect { user_ids: vec![bob.user_id] }).await;
        let two: Channel = world.get(bob, command::OpenDirect { user_ids: vec![ana.user_id] }).await;
        assert_eq!((one.id, one.kind), (two.id, ChannelKind::Direct));
        assert_eq!(world.membership(ana, one.id).await.with, [bob.user_id]);
        let notes: Channel = world.get(ana, command::OpenDirect { user_ids: vec![] }).await;
        assert_ne!(notes.id, one.id);
    }

    leaving_ends_what_one_may_read_and_the_last_owner_stays(world) {
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let refused = world.ask(ana, command::LeaveChannel { channel_id: room }).await.unwrap_err();
        assert_eq!(refused.code, Code::Conflict);
        world.ask(bob, command::LeaveChannel { channel_id: room }).await.unwrap();
        let refused = world.ask(bob, says(room, "still here?", None)).await.unwrap_err();
        assert_eq!(refused.code, Code::Forbidden);
        let own: Vec<EventKind> = world.log(bob.user_id).await.iter().map(|e| e.kind).collect();
        assert_eq!(own, [EventKind::UserChannelAdded, EventKind::UserChannelRemoved]);
    }

    a_channel_keeps_an_owner_who_can_look_after_it(world) {
        let root = world.user("root", Role::Admin).await;
        let ana = world.user("ana", Role::Member).await;
        let bob = world.user("bob", Role::Member).await;
        let cem = world.user("cem", Role::Member).await;
        let role = |channel_id, who: Principal, role| command::SetChannelRole { channel_id, user_id: who.user_id, role };
        let code = |answer: Result<Reply, Refusal>| answer.map(drop).map_err(|refusal| refusal.code);
        let alone = world.channel(ana, "alone", &[]).await;
        let answer = world.ask(ana, role(alone, ana, ChannelRole::Member)).await;
        assert_eq!(code(answer), Err(Code::Conflict), "others may come, and she could let nobody be an owner");
        world.ask(ana, command::LeaveChannel { channel_id: alone }).await.unwrap();

        let room = world.channel(ana, "room", &[bob, cem]).await;
        world.ask(ana, role(room, bob, ChannelRole::Owner)).await.unwrap();
        world.ask(root, command::DeactivateUser { user_id: ana.user_id }).await.unwrap();
        for answer in [
            world.ask(bob, command::LeaveChannel { channel_id: room }).await,
            world.ask(bob, role(room, bob, ChannelRole::Member)).await,
        ] {
            assert_eq!(code(answer), Err(Code::Conflict), "ana is an owner still, but she is not here");
        }
        world.ask(bob, role(room, cem, ChannelRole::Moderator)).await.unwrap();
        let remove = command::RemoveMember { channel_id: room, user_id: ana.user_id };
        let answer = world.ask(cem, remove.clone()).await;
        assert_eq!(code(answer), Err(Code::Forbidden), "she may come back");
        world.ask(bob, remove).await.unwrap();
        world.ask(cem, command::LeaveChannel { channel_id: room }).await.unwrap();
        world.ask(bob, command::LeaveChannel { channel_id: room }).await.unwrap();
    }

    every_payload_has_only_the_fields_of_its_kind(world) {
        let ana = world.user("ana", Role::Admin).await;
        let bob = world.user("bob", Role::Member).await;
        let room = world.channel(ana, "room", &[bob]).await;
        let sent: Sent = world.get(ana, says(room, "hi @bob", Some("k"))).await;
        let mut reply = says(room, "re", None);
        reply.thread_seq = Some(sent.seq);
        let (c, seq) = (room, sent.seq);
        let all: Vec<Command> = vec![
            reply.into(),
            command::EditMessage { channel_id: c, seq, text: "ho".into() }.into(),
            command::AddReaction { channel_id: c, seq, emoji: "+1".into() }.into(),
            command::RemoveReaction { channel_id: c, seq, emoji: "+1".into() }.into(),
            command::AddPin { channel_id: c, seq }.into(),
            command::RemovePin { channel_id: c, seq }.into(),
            command::AddSaved { channel_id: c, seq }.into(),
            command::SetDraft { channel_id: c, thread_seq: None, text: "draft".into() }.into(),
            command::MarkUnread { channel_id: c, seq }.into(),
            command::SetChannelPreferences { channel_id: c, muted: Some(true), notify: None }.into(),
            command::UnfollowThread { channel_id: c, thread_seq: seq }.into(),
            command::UpdateChannel { channel_id: c, name: Some("r2".into()), topic: Some("t".into()), purpose: None,
                posting: None }.into(),
            command::SetChannelRole { channel_id: c, user_id: bob.user_id, role: ChannelRole::Owner }.into(),
            command::RemoveMember { channel_id: c, user_id: bob.user_id }.into(),
            command::InviteMember { channel_id: c, user_id: bob.user_id }.into(),
            command::DeleteMessage { channel_id: c, seq }.into(),
            command::ArchiveChannel { channel_id: c }.into(),
            command::UnarchiveChannel { channel_id: c }.into(),
            command::SetStatus { emoji: "palm_tree".into(), text: "away".into(), until: None }.into(),
            command::DeactivateUser { user_id: bob.user_id }.into(),
        ];
        for command in all {
            let name = command.name();
            world.ask(ana, command).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let told = world.told.lock().unwrap().clone();
        assert!(told.len() > 25);
        for event in told {
            let payload: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&event.payload).unwrap();
            for field in payload.keys() {
                assert!(event.kind.fields().contains(&field.as_str()), "{} has {field}", event.kind.as_str());
            }
        }
    }

    what_has_ended_is_deleted_in_small_pieces(world) {
        let root = world.user("root", Role::Admin).await;
        let room = world.channel(root, "room", &[]).await;
        let prune = async |what, before| -> u64 {
            let work = Work::Account(Account::Prune { what, before });
            let reply = world.writer.write(SYSTEM, work, None).await.unwrap();
            serde_json::from_str::<Pruned>(&reply.json).unwrap().pruned
        };
        let start = world.clock.now();
        let in_a_minute = start.plus_seconds(60);
        let sign_in = async |name: &str, expires_at| {
            let token = Token { id: TokenId::new(start), label: String::new(), created_at: start, expires_at, slides: false };
            let (user, proof, id, hash) = (root.user_id, Proof::Operator, token.id, Secret::hash(name));
            world.writer.write(SYSTEM, Work::Account(Account::SignIn { user, proof, token, hash }), None).await.unwrap();
            id
        };
        sign_in("brief", Some(in_a_minute)).await;
        let ended = sign_in("ended", None).await;
        sign_in("lasting", None).await;
        let out = Account::SignOut { user: root.user_id, token: ended };
        world.writer.write(SYSTEM, Work::Account(out), None).await.unwrap();
        let invite = |max_uses, s| command::CreateInvite { role: None, max_uses: Some(max_uses), expires_in_s: Some(s) };
        let used_up: Invite = world.get(root, invite(1, 86_400)).await;
        let sign_up = Account::SignUp {
            code_hash: Secret::hash(&used_up.code.unwrap()),
            name: "new".into(),
            display_name: None,
            password_hash: String::new(),
        };
        world.writer.write(SYSTEM, Work::Account(sign_up), None).await.unwrap();
        world.get::<Invite>(root, invite(5, 60)).await;
        let revoked: Invite = world.get(root, invite(5, 86_400)).await;
        world.ask(root, command::RevokeInvite { invite_id: revoked.id }).await.unwrap();
        let open: Invite = world.get(root, invite(5, 86_400)).await;
        let sends = (0..1_200).map(|n| {
            let world = &world;
            async move { world.ask(root, says(room, "hi", Some(&format!("k{n}")))).await.unwrap() }
        });
        futures_util::future::join_all(sends).await;
        world.clock.advance(Duration::from_secs(3_600));
        world.ask(root, says(room, "hi", Some("young"))).await.unwrap();

        let later = start.plus_seconds(600);
        for what in [Ended::Keys, Ended::Tokens, Ended::Invites] {
            assert_eq!(prune(what, start).await, 0, "nothing had ended yet: {what:?}");
        }
        assert_eq!((prune(Ended::Keys, later).await, prune(Ended::Keys, later).await), (1_000, 200));
        assert_eq!(prune(Ended::Keys, later).await, 0);
        assert!(world.ask(root, says(room, "hi", Some("young"))).await.unwrap().duplicate, "a young one is kept");
        assert!(!world.ask(root, says(room, "hi", Some("k0"))).await.unwrap().duplicate, "an old one is forgotten");
        assert_eq!(prune(Ended::Tokens, later).await, 2);
        assert_eq!(prune(Ended::Invites, later).await, 3);
        let mut db = world.store.read().await.unwrap();
        let now = world.clock.now();
        assert_eq!(tokens::of_user(&mut db, root.user_id, now, None, 10).await.unwrap().len(), 1);
        let invites = tokens::open_invites(&mut db, now, None, 10).await.unwrap();
        assert_eq!(invites.iter().map(|invite| invite.id).collect::<Vec<_>>(), [open.id]);
        assert_eq!(prune(Ended::Tokens, now).await + prune(Ended::Invites, now).await, 0);
    }

    a_sign_in_is_stored_only_while_what_it_was_given_for_still_holds(world) {
        let (root, mia) = (world.user("root", Role::Admin).await, world.user("mia", Role::Member).await);
        let signs_in = async |caller: Principal, user: Principal, proof: Proof| {
            let (id, now) = (TokenId::new(world.clock.now()), world.clock.now());
            let token = Token { id, label: String::new(), created_at: now, expires_at: None, slides: false };
            let (user, hash) = (user.user_id, Secret::hash(&id.to_string()));
            let sign_in = Account::SignIn { user, proof, token, hash };
            let stored = world.writer.write(caller, Work::Account(sign_in), None).await;
            stored.map(|_| Principal { token_id: id, ..caller }).map_err(|refusal| refusal.code)
        };
        let sets_password = async |proof: Proof, hash: &str| {
            let set = Account::SetPassword { user: mia.user_id, proof, hash: hash.into(), sign_out: true };
            world.writer.write(SYSTEM, Work::Account(set), None).await.map(drop).map_err(|refusal| refusal.code)
        };
        let knows = |hash: &str| Proof::Password(hash.into());
        assert_eq!(signs_in(SYSTEM, mia, knows("")).await.unwrap_err(), Code::Unauthenticated, "there is no password");
        sets_password(Proof::Operator, "first").await.unwrap();
        signs_in(SYSTEM, mia, knows("first")).await.unwrap();
        sets_password(knows("first"), "second").await.unwrap();
        assert_eq!(signs_in(SYSTEM, mia, knows("first")).await.unwrap_err(), Code::Unauthenticated, "it was changed");
        assert_eq!(sets_password(knows("first"), "third").await.unwrap_err(), Code::Unauthenticated, "it was changed");
        signs_in(SYSTEM, mia, knows("second")).await.unwrap();

        // Who asks by a sign-in needs it to stand, and for others an administrator's role.
        let admin = signs_in(root, root, Proof::Operator).await.unwrap();
        let member = signs_in(mia, mia, Proof::Operator).await.unwrap();
        signs_in(member, mia, Proof::SignIn).await.unwrap();
        assert_eq!(signs_in(member, root, Proof::SignIn).await.unwrap_err(), Code::Forbidden);
        signs_in(admin, mia, Proof::SignIn).await.unwrap();
        sets_password(knows("second"), "third").await.unwrap();
        assert_eq!(signs_in(member, mia, Proof::SignIn).await.unwrap_err(), Code::Unauthenticated, "it was ended");
        // The administrator that they are believed to be is one no more.
        world.user("other", Role::Admin).await;
        let demote = command::SetUserRole { user_id: root.user_id, role: Role::Member };
        world.ask(root, demote).await.unwrap();
        assert_eq!(signs_in(admin, mia, Proof::SignIn).await.unwrap_err(), Code::Forbidden);
    }

    account_work_with_a_key_is_done_once_and_its_answer_kept_with_it(world) {
        let root = world.user("root", Role::Admin).await;
        let room = world.channel(root, "room", &[]).await;
        let once = async |key: &str, request: u8| {
            let now = world.clock.now();
            let token = Token { id: TokenId::new(now), label: String::new(), created_at: now, expires_at: None, slides: false };
            let (proof, hash) = (Proof::Operator, Secret::hash(&token.id.to_string()));
            let account = Account::SignIn { user: root.user_id, proof, token, hash };
            let work = Work::Once { account: account.into(), key: key.into(), hash: [request; 32] };
            world.writer.write(root, work, None).await.map(|reply| reply.duplicate).map_err(|refusal| refusal.code)
        };
        let many = futures_util::future::join_all((0..4).map(|_| once("k", 1))).await;
        assert_eq!(many.iter().filter(|done| **done == Ok(false)).count(), 1, "{many:?}");
        assert_eq!(many.iter().filter(|done| **done == Ok(true)).count(), 3, "{many:?}");
        assert_eq!(once("k", 2).await, Err(Code::KeyReused));
        let mut db = world.store.read().await.unwrap();
        assert_eq!(tokens::of_user(&mut db, root.user_id, world.clock.now(), None, 10).await.unwrap().len(), 1);
        world.ask(root, says(room, "hi", Some("of a message"))).await.unwrap();
        assert_eq!(once("of a message", 1).await, Err(Code::KeyReused));
        // An answer that comes when its key was taken meanwhile is not kept, and breaks nothing.
        let (user, key, hash) = (root.user_id, "of a message".to_owned(), [3; 32]);
        let keep = Account::KeepAnswer { user, key: key.clone(), hash, response: "{}".into() };
        world.writer.write(SYSTEM, Work::Account(keep), None).await.unwrap();
        assert!(world.ask(root, says(room, "hi", Some("of a message"))).await.unwrap().duplicate);
        let look = Account::FirstAnswer { user, key, hash };
        let found = world.writer.write(SYSTEM, Work::Account(look), None).await;
        assert_eq!(found.unwrap_err().code, Code::KeyReused);
    }

    the_last_administrator_stays_and_names_are_unique(world) {
        let root = world.user("root", Role::Admin).await;
        let refused = world.ask(root, command::DeactivateUser { user_id: root.user_id }).await.unwrap_err();
        assert_eq!(refused.code, Code::Conflict);
        let taken = command::CreateUser { name: "ROOT".into(), display_name: None, role: Role::Member, bot: false };
        assert_eq!(world.ask(root, taken).await.unwrap_err().code, Code::Conflict);
        let member = world.user("mia", Role::Member).await;
        let refused = world.ask(member, command::SetUserRole { user_id: member.user_id, role: Role::Admin }).await;
        assert_eq!(refused.unwrap_err().code, Code::Forbidden);
        let mut db = world.store.read().await.unwrap();
        assert_eq!(users::list(&mut db, "", 10).await.unwrap().len(), 2);
    }
}

/// Opens a world on Postgres, if there is one to test on.
async fn on_postgres(change: impl FnOnce(&mut Options)) -> Option<World> {
    let world = World::with(Dialect::Postgres, change).await;
    if world.is_none() {
        assert!(std::env::var("CI").is_err(), "CI runs every test on Postgres: set COLINK_TEST_POSTGRES");
        eprintln!("skipped: COLINK_TEST_POSTGRES is not set");
    }
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_takes_too_long_does_not_disturb_its_neighbours() {
    let limit = Duration::from_millis(500);
    let Some(world) = on_postgres(|options| options.statement = limit).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    let slow = "CREATE FUNCTION slow() RETURNS TRIGGER LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.text = 'slow' THEN PERFORM pg_sleep(600); END IF; RETURN NEW; END $$;
        CREATE TRIGGER slow BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION slow()";
    let Db::Postgres(mut apart) = world.apart().await else { unreachable!("it is for Postgres alone") };
    sqlx::raw_sql(slow).execute(&mut *apart).await.unwrap();
    let all_say = async |texts: &[&str]| {
        futures_util::future::join_all(texts.iter().map(|text| world.ask(ana, says(room, text, None)))).await
    };

    let mut texts = ["quick"; 20];
    texts[10] = "slow";
    for (text, answer) in texts.iter().zip(all_say(&texts).await) {
        match answer {
            Ok(_) => assert_eq!(*text, "quick"),
            Err(refusal) => assert_eq!((*text, refusal.code), ("slow", Code::Unavailable)),
        }
    }
    assert_eq!(world.log(room).await.len(), 20);

    let started = Instant::now();
    for answer in all_say(&["slow"; 40]).await {
        assert_eq!(answer.unwrap_err().code, Code::Unavailable);
    }
    assert!(started.elapsed() < limit * 20, "a database that is slow is not waited for by each of them");
}

/// Counts what SQLite does for one thing after the other, each of them undone again.
struct Meter {
    db: Db,
    now: Timestamp,
    steps: Arc<AtomicU64>,
}

impl Meter {
    /// Counts on a connection of its own to the world's file.
    async fn of(world: &World) -> Meter {
        let mut db = world.apart().await;
        let steps = Arc::new(AtomicU64::new(0));
        let Db::Sqlite(connection) = &mut db else { unreachable!("it is for SQLite alone") };
        let count = steps.clone();
        connection.lock_handle().await.unwrap().set_progress_handler(1, move || {
            count.fetch_add(1, Ordering::Relaxed);
            true
        });
        Meter { db, now: world.clock.now(), steps }
    }

    async fn steps(&mut self, caller: Principal, what: &Ask) -> u64 {
        self.db.run("BEGIN IMMEDIATE").await.unwrap();
        self.steps.store(0, Ordering::Relaxed);
        let db = &mut self.db;
        match what {
            Ask::Command(command) => {
                let mut scope = Scope { db, now: self.now, caller, events: Vec::new(), revoked: Vec::new() };
                apply::apply(&mut scope, command).await.unwrap();
            }
            Ask::EndedStatuses => drop(users::ended_status(db, self.now).await.unwrap()),
            Ask::Replies(channel, thread, after) => {
                drop(messages::replies(db, *channel, *thread, *after, 10).await.unwrap())
            }
        }
        let steps = self.steps.load(Ordering::Relaxed);
        self.db.run("ROLLBACK").await.unwrap();
        steps
    }
}

/// What a [`Meter`] measures.
#[derive(Debug)]
enum Ask {
    Command(Command),
    EndedStatuses,
    /// A page of a thread's replies, behind one of them.
    Replies(ChannelId, i64, i64),
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_often_done_costs_the_same_however_much_is_stored() {
    let world = World::open(Dialect::Sqlite).await.unwrap();
    let (ana, bob) = (world.user("ana", Role::Member).await, world.user("bob", Role::Member).await);
    let room = world.channel(ana, "room", &[bob]).await;
    let direct = world.get::<Channel>(ana, command::OpenDirect { user_ids: vec![bob.user_id] }).await.id;
    let reply = |thread: i64| command::SendMessage { thread_seq: Some(thread), ..says(room, "re @bob", None) };
    let quiet = world.get::<Sent>(ana, says(room, "quiet @bob", None)).await.seq;
    let first = world.get::<Sent>(bob, reply(quiet)).await.seq;
    let busy = world.get::<Sent>(ana, says(room, "busy", None)).await.seq;
    world.ask(bob, reply(busy)).await.unwrap();
    world.ask(bob, says(direct, "hi", None)).await.unwrap();
    world.ask(bob, command::AddSaved { channel_id: room, seq: quiet }).await.unwrap();

    let (c, seq, end) = (room, quiet, i64::MAX);
    let commands: Vec<Command> = vec![
        says(c, "hello @bob", None).into(),
        reply(quiet).into(),
        command::EditMessage { channel_id: c, seq, text: "nobody".into() }.into(),
        command::DeleteMessage { channel_id: c, seq }.into(),
        command::AddReaction { channel_id: c, seq: busy, emoji: "wave".into() }.into(),
        command::AddPin { channel_id: c, seq }.into(),
        command::AddSaved { channel_id: c, seq }.into(),
        command::SetDraft { channel_id: c, thread_seq: None, text: "draft".into() }.into(),
        command::MarkUnread { channel_id: c, seq }.into(),
        command::FollowThread { channel_id: c, thread_seq: busy }.into(),
        command::UpdateProfile { display_name: None, title: Some("boss".into()), timezone: None }.into(),
    ];
    let mut asks: Vec<(Principal, Ask)> = commands.into_iter().map(|command| (ana, Ask::Command(command))).collect();
    let commands: Vec<Command> = vec![
        command::MarkRead { channel_id: c, seq: end }.into(),
        command::MarkThreadRead { channel_id: c, thread_seq: quiet, seq: end }.into(),
        command::MarkThreadRead { channel_id: c, thread_seq: busy, seq: end }.into(),
        command::LeaveChannel { channel_id: c }.into(),
    ];
    asks.extend(commands.into_iter().map(|command| (bob, Ask::Command(command))));
    asks.push((ana, Ask::Command(command::MarkRead { channel_id: direct, seq: end }.into())));
    asks.push((ana, Ask::Replies(c, quiet, first)));
    asks.push((ana, Ask::EndedStatuses));

    let mut meter = Meter::of(&world).await;
    let mut before = Vec::new();
    for (who, ask) in &asks {
        before.push(meter.steps(*who, ask).await);
    }
    crowd(&mut meter.db, room, busy, ana.user_id).await;
    let mut grown = Vec::new();
    for ((who, ask), before) in asks.iter().zip(before) {
        let after = meter.steps(*who, ask).await;
        if after > 2 * before + 20 {
            grown.push(format!("{before} steps became {after}: {ask:?}"));
        }
    }
    assert!(grown.is_empty(), "{grown:#?}");
}

/// Puts thousands into a room, into one thread of it, and into what its members keep of it, and gives somebody hundreds of
/// direct messages.
async fn crowd(db: &mut Db, room: ChannelId, thread: i64, who: UserId) {
    let fill = "
        CREATE TEMP TABLE n AS WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 3000)
            SELECT n, randomblob(16) AS id FROM n;
        INSERT INTO users (id, name, display_name, role, created_at) SELECT id, 'u' || n, '', 'member', 0 FROM n;
        INSERT INTO members (channel_id, user_id, role, joined_at) SELECT $1, id, 'member', 0 FROM n;
        INSERT INTO messages (channel_id, seq, id, thread_seq, reply_no, author_id, text, created_at, after_no)
            SELECT $1, last_seq + n, n.id, $2, n + 1, $3, '', 0, last_message_no FROM n JOIN streams ON streams.id = $1;
        INSERT INTO mentions (channel_id, user_id, seq, thread_seq)
            SELECT $1, n.id, last_seq + n, $2 FROM n JOIN streams ON streams.id = $1;
        INSERT INTO saved (user_id, channel_id, seq, saved_at)
            SELECT n.id, $1, last_seq + n, 0 FROM n JOIN streams ON streams.id = $1;
        INSERT INTO reactions (channel_id, seq, emoji, user_id, created_at) SELECT $1, $2, '+1', id, 0 FROM n;
        INSERT INTO thread_follows (channel_id, thread_seq, user_id, following) SELECT $1, $2, id, TRUE FROM n;
        UPDATE messages SET reply_count = 3001, last_reply_seq = 3000 + (SELECT last_seq FROM streams WHERE id = $1)
            WHERE channel_id = $1 AND seq = $2;
        UPDATE streams SET last_seq = last_seq + 3000 WHERE id = $1;
        INSERT INTO streams (id) SELECT id FROM n WHERE n <= 300;
        INSERT INTO channels (id, kind, created_by, created_at) SELECT id, 'direct', $3, 0 FROM n WHERE n <= 300;
        INSERT INTO members (channel_id, user_id, role, joined_at) SELECT id, $3, 'member', 0 FROM n WHERE n <= 300;
        INSERT INTO members (channel_id, user_id, role, joined_at) SELECT id, id, 'member', 0 FROM n WHERE n <= 300";
    on!(db, c => { sqlx::query(fill).bind(room).bind(thread).bind(who).execute(c).await.unwrap(); });
}
