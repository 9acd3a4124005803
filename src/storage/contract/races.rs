//! What another node is about to commit is waited for, and seen. Postgres only: SQLite has one writer.
//!
//! The other node is a transaction that is open while the writer begins, and committed when the writer waits for it.

use super::*;

/// Another node in the middle of something.
struct Other {
    db: PgConnection,
    watch: PgConnection,
}

impl Other {
    async fn of(world: &World) -> Other {
        Other { db: beside(world).await, watch: beside(world).await }
    }

    /// Has it do something; it holds the stream of the workspace, as whoever changes a user does.
    async fn does(&mut self, what: String) {
        let what = format!("BEGIN; SELECT 1 FROM streams WHERE id = '{}' FOR UPDATE; {what}", StreamId::WORKSPACE);
        sqlx::raw_sql(sqlx::AssertSqlSafe(what)).execute(&mut self.db).await.unwrap();
    }

    /// Has it commit when somebody waits for it.
    async fn commits_when_waited_for(&mut self) {
        let waits = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND \
                     wait_event_type = 'Lock')";
        until(&mut self.watch, waits).await;
        sql(&mut self.db, "COMMIT").await;
    }

    /// Has the writer do something beside it; returns what comes of that.
    async fn beside(&mut self, world: &World, who: Principal, work: impl Into<Work>) -> Result<Reply, Code> {
        let write = world.writer.write(who, work.into(), None);
        let (done, ()) = tokio::join!(write, self.commits_when_waited_for());
        done.map_err(|refusal| refusal.code)
    }
}

impl From<Account> for Work {
    fn from(account: Account) -> Work {
        Work::Account(account)
    }
}

impl<C: Into<Command>> From<C> for Work {
    fn from(command: C) -> Work {
        Work::Command(command.into())
    }
}

async fn stored(world: &World, user: Principal) -> User {
    users::by_id(&mut world.store.read().await.unwrap(), user.user_id).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_ends_does_not_bring_back_whom_another_node_deactivates() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Admin).await;
    let until = Some(world.clock.now().plus_seconds(60));
    let status = command::SetStatus { emoji: String::new(), text: "away".into(), until };
    world.ask(ana, status).await.unwrap();
    world.clock.advance(Duration::from_secs(61));
    let mut other = Other::of(&world).await;
    other.does(format!("UPDATE users SET deactivated_at = now(), role = 'member' WHERE id = '{}'", ana.user_id)).await;
    other.beside(&world, SYSTEM, Account::EndStatuses).await.unwrap();
    let ana = stored(&world, ana).await;
    assert!(ana.deactivated_at.is_some() && ana.role == Role::Member && ana.status.is_none(), "{ana:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_waits_for_a_password_that_another_node_changes() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let set = Account::SetPassword { user: ana.user_id, proof: Proof::Operator, hash: "old".into(), sign_out: true };
    world.writer.write(SYSTEM, set.into(), None).await.unwrap();
    let knows = || Proof::Password("old".into());
    let (id, now) = (TokenId::new(world.clock.now()), world.clock.now());
    let token = Token { id, label: String::new(), created_at: now, expires_at: None, slides: false };
    let sign_in = Account::SignIn { user: ana.user_id, proof: knows(), token, hash: Secret::hash(&id.to_string()) };
    let change = Account::SetPassword { user: ana.user_id, proof: knows(), hash: "mine".into(), sign_out: true };
    let mut other = Other::of(&world).await;
    for work in [sign_in, change] {
        other.does("UPDATE users SET password_hash = 'new'".to_owned()).await;
        assert_eq!(other.beside(&world, SYSTEM, work).await, Err(Code::Unauthenticated));
        sql(&mut other.db, "UPDATE users SET password_hash = 'old'").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_whom_another_node_demotes_demotes_nobody() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let (ana, bob) = (world.user("ana", Role::Admin).await, world.user("bob", Role::Admin).await);
    world.user("cid", Role::Admin).await;
    let mut other = Other::of(&world).await;
    other.does(format!("UPDATE users SET role = 'member' WHERE id = '{}'", ana.user_id)).await;
    let demote = command::SetUserRole { user_id: bob.user_id, role: Role::Member };
    assert_eq!(other.beside(&world, ana, demote).await, Err(Code::Forbidden));
    assert_eq!(stored(&world, bob).await.role, Role::Admin);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_deactivated_changes_nothing_about_themselves() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let mut other = Other::of(&world).await;
    other.does("UPDATE users SET deactivated_at = now()".to_owned()).await;
    let status = command::SetStatus { emoji: String::new(), text: "here".into(), until: None };
    assert_eq!(other.beside(&world, ana, status).await, Err(Code::Forbidden));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_does_not_go_back_behind_what_one_sends_oneself() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    for _ in 0..4 {
        world.ask(ana, says(room, "hi", None)).await.unwrap();
    }
    world.ask(ana, command::MarkUnread { channel_id: room, seq: 2 }).await.unwrap();
    let mut other = Other::of(&world).await;
    other.does("UPDATE members SET read_seq = 5, read_no = 4".to_owned()).await;
    let read = other.beside(&world, ana, command::MarkRead { channel_id: room, seq: 4 }).await.unwrap();
    let read: Membership = serde_json::from_str(&read.json).unwrap();
    assert_eq!((read.read_seq, read.unread_count), (5, 0));
    assert_eq!(world.membership(ana, room).await.read_seq, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_another_node_gives_away_at_the_same_time_is_taken() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let (one, two) = (world.channel(ana, "one", &[]).await, world.channel(ana, "two", &[]).await);
    let mut other = Other::of(&world).await;
    sql(&mut other.db, "BEGIN").await;
    let rename = format!("UPDATE channels SET name = 'best' WHERE id = '{one}'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(rename)).execute(&mut other.db).await.unwrap();
    let name = Some("best".to_owned());
    let rename = command::UpdateChannel { channel_id: two, name, topic: None, purpose: None, posting: None };
    assert_eq!(other.beside(&world, ana, rename).await, Err(Code::Conflict));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_the_victim_of_a_deadlock_is_served_all_the_same() {
    let Some(world) = on_postgres(|_| {}).await else { return };
    let ana = world.user("ana", Role::Member).await;
    let room = world.channel(ana, "room", &[]).await;
    world.ask(ana, says(room, "hi", None)).await.unwrap();
    // A sequence moves on whatever becomes of the transaction.
    let twice = "CREATE SEQUENCE tries; CREATE FUNCTION victim() RETURNS TRIGGER LANGUAGE plpgsql AS
        $$ BEGIN IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER victim BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION victim()";
    sql(&mut beside(&world).await, twice).await;
    let edit = command::EditMessage { channel_id: room, seq: 2, text: "hello".into() };
    world.ask(ana, edit).await.unwrap();
    assert_eq!(world.log(room).await.len(), 3);
}
