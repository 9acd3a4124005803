//! What each thing costs, however much is stored.

use super::*;

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
            Ask::CatchUp(channel, after) => {
                let cursors = [((*channel).into(), *after)].into();
                drop(catch_up::read(db, caller, &cursors, 64, self.now).await.unwrap())
            }
            Ask::Seen(users) => drop(users::near(db, caller.user_id, users).await.unwrap()),
            Ask::EndedStatuses => drop(users::ended_status(db, self.now).await.unwrap()),
            Ask::Replies(channel, thread, after) => {
                drop(messages::history(db, *channel, Some(*thread), Page::After(*after), 10).await.unwrap())
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
    /// Which of these share a channel with the caller.
    Seen(Vec<UserId>),
    /// What is behind a number of a channel.
    CatchUp(ChannelId, i64),
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
    for who in [bob, ana] {
        world.ask(who, reply(busy)).await.unwrap();
    }
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
    asks.push((bob, Ask::CatchUp(room, 1)));
    asks.push((bob, Ask::Seen(vec![ana.user_id, UserId::new(Timestamp(1))])));

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
