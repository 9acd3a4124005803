//! Who may do what: every role, place, kind of channel and action, over REST and the gateway, against the one table.
//!
//! The cases are generated. Each has a channel of its own in one world, a keeper who owns it and puts back what an
//! allowed action changed, and the subject, whose standing the case is about.

use colink::domain::channel::{ChannelKind, ChannelRole, Posting};
use colink::domain::command::{self as c, Command};
use colink::domain::id::{ChannelId, InviteId, UserId};
use colink::domain::permission::{Action, ChannelFacts, Standing, allows};
use colink::domain::user::Role;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::socket::Socket;
use crate::world::{Database, Person, World, message, on_both, postgres_is_there, within};

/// Where the subject stands, and in what.
#[derive(Clone, Copy, Debug)]
struct Case {
    who: Standing,
    kind: ChannelKind,
    archived: bool,
}

impl Case {
    fn all() -> Vec<Case> {
        let mut all = Vec::new();
        for role in Role::ALL {
            for kind in ChannelKind::ALL {
                for channel_role in std::iter::once(None).chain(ChannelRole::ALL.iter().copied().map(Some)) {
                    // Nobody has a rank in a direct message, and none is ever archived.
                    if kind.is_direct() && channel_role > Some(ChannelRole::Member) {
                        continue;
                    }
                    let who = Standing { role: *role, channel_role };
                    all.push(Case { who, kind: *kind, archived: false });
                    if !kind.is_direct() {
                        all.push(Case { who, kind: *kind, archived: true });
                    }
                }
            }
        }
        all
    }
}

/// A case's channel and what is in it.
struct Room<'a> {
    case: Case,
    channel: ChannelId,
    keeper: &'a Person,
    subject: &'a Person,
    victim: &'a Person,
    newcomer: &'a Person,
    /// Messages of the subject and of the keeper that may be deleted.
    own: Vec<i64>,
    others: Vec<i64>,
}

on_both! {
    every_door_keeps_to_the_table(database) {
        let world = World::on(database, |_| ()).await;
        let keeper = world.person("keeper", Role::Admin).await;
        let (victim, newcomer) = (world.user("victim").await, world.user("newcomer").await);
        // A guest may be invited like anybody, and has to be for `out` of a channel they once wrote in.
        let cases = Case::all();
        let mut subjects = Vec::new();
        for (n, case) in cases.iter().enumerate() {
            // Everybody has their own direct message, so everybody is somebody else.
            subjects.push(world.person(&format!("subject{n}"), case.who.role).await);
        }
        let work = cases.iter().zip(&subjects).enumerate().map(|(n, (case, subject))| {
            let (keeper, victim, newcomer) = (&keeper, &victim, &newcomer);
            async move {
                let mut room = Room::make(n, *case, [keeper, subject, victim, newcomer]).await;
                let mut socket = subject.connects().await;
                let mut wrong = Vec::new();
                for action in Action::ALL {
                    wrong.extend(room.check(*action, &mut socket).await);
                }
                wrong
            }
        });
        let wrong: Vec<Vec<String>> = futures_util::stream::iter(work).buffer_unordered(16).collect().await;
        let wrong: Vec<String> = wrong.into_iter().flatten().collect();
        assert!(wrong.is_empty(), "{} differ from the table:\n{}", wrong.len(), wrong.join("\n"));
    }

    only_administrators_manage_users_and_only_members_make_channels(database) {
        let world = World::on(database, |_| ()).await;
        let (root, target) = (world.person("root", Role::Admin).await, world.user("target").await);
        for role in Role::ALL {
            let person = world.person(role.as_str(), *role).await;
            let mut socket = person.connects().await;
            for door in DOORS {
                let invite: c::Invite = root.does(invites(Role::Member)).await;
                for command in workspace_commands(&format!("{door}-{role}"), target.id(), invite.id) {
                    let allowed = match command {
                        Command::CreateChannel(_) | Command::OpenDirect(_) => *role >= Role::Member,
                        _ => *role == Role::Admin,
                    };
                    let name = command.name();
                    let outcome = outcome(door, command, &person, &mut socket).await;
                    assert_eq!(outcome, if allowed { "ok" } else { "forbidden" }, "{door} {role} {name}");
                }
            }
            for path in ["/v1/invites", "/v1/channels/browse"] {
                let allowed = *role == Role::Admin || (path.ends_with("browse") && *role >= Role::Member);
                assert_eq!(person.http.get(path).await.code(), if allowed { "ok" } else { "forbidden" }, "{role} {path}");
            }
            for (user, allowed) in [(&person, true), (&target, *role == Role::Admin)] {
                let made = person.http.post(&format!("/v1/users/{}/tokens", user.id()), &json!({})).await;
                assert_eq!(made.code(), if allowed { "ok" } else { "forbidden" }, "{role}: a token of {}", user.user.name);
            }
        }
    }
}

const DOORS: [&str; 2] = ["rest", "gateway"];

/// Has a command carried out at a door; returns the code of its refusal, or `ok`.
async fn outcome(door: &str, command: Command, who: &Person, socket: &mut Socket) -> String {
    if door == "rest" {
        return who.tries(command).await.code();
    }
    let d = serde_json::from_str(&command.body()).unwrap();
    outcome_of(&socket.call(command.name(), d).await)
}

/// Returns the code of a reply's refusal, or `ok`.
fn outcome_of(reply: &Value) -> String {
    if reply["ok"] == true { "ok".to_owned() } else { reply["error"].as_str().unwrap().to_owned() }
}

fn invites(role: Role) -> c::CreateInvite {
    c::CreateInvite { role: Some(role), max_uses: None, expires_in_s: None }
}

/// Returns the commands that a role in the workspace alone decides about, in an order in which all of them can succeed.
fn workspace_commands(name: &str, user_id: UserId, invite_id: InviteId) -> [Command; 8] {
    let (topic, purpose) = (String::new(), String::new());
    [
        c::CreateUser { name: name.into(), display_name: None, role: Role::Guest, bot: false }.into(),
        c::SetUserRole { user_id, role: Role::Guest }.into(),
        c::DeactivateUser { user_id }.into(),
        c::ReactivateUser { user_id }.into(),
        invites(Role::Admin).into(),
        c::RevokeInvite { invite_id }.into(),
        c::CreateChannel { name: name.into(), private: false, topic, purpose, members: vec![] }.into(),
        c::OpenDirect { user_ids: vec![user_id] }.into(),
    ]
}

impl<'a> Room<'a> {
    async fn make(n: usize, case: Case, [keeper, subject, victim, newcomer]: [&'a Person; 4]) -> Room<'a> {
        let place = case.who.channel_role;
        let inside = || if place.is_some() { vec![subject.id()] } else { vec![] };
        let open = |mut people: Vec<_>| {
            people.extend(inside());
            c::OpenDirect { user_ids: people }
        };
        let made: Value = match case.kind {
            ChannelKind::Direct if place.is_some() => keeper.does(open(vec![])).await,
            ChannelKind::Direct => keeper.does(open(vec![victim.id()])).await,
            ChannelKind::Group => keeper.does(open(vec![victim.id(), newcomer.id()])).await,
            kind => {
                let create = c::CreateChannel {
                    name: format!("room{n}"),
                    private: kind == ChannelKind::Private,
                    topic: String::new(),
                    purpose: String::new(),
                    members: vec![victim.id(), subject.id()],
                };
                keeper.does(create).await
            }
        };
        let channel = serde_json::from_value(made["id"].clone()).unwrap();
        let mut room = Room { case, channel, keeper, subject, victim, newcomer, own: vec![], others: vec![] };
        let was_in = !case.kind.is_direct() || place.is_some();
        for _ in 0..3 {
            room.others.push(keeper.says(channel, "by another").await);
            // Who never was in it wrote nothing: any message will do.
            let own = if was_in { subject.says(channel, "by the subject").await } else { room.others[0] };
            room.own.push(own);
        }
        if !case.kind.is_direct() {
            room.place().await;
        }
        if case.archived {
            let _: Value = keeper.does(c::ArchiveChannel { channel_id: channel }).await;
        }
        room
    }

    fn facts(&self, posting: Posting) -> ChannelFacts {
        ChannelFacts { kind: self.case.kind, posting, archived: self.case.archived }
    }

    /// Puts the subject where the case has them, in a channel that is not archived.
    async fn place(&self) {
        let (channel_id, user_id) = (self.channel, self.subject.id());
        match self.case.who.channel_role {
            None => self.keeper.removes(channel_id, self.subject).await,
            Some(role) => {
                self.keeper.invites(channel_id, self.subject).await;
                let _: Value = self.keeper.does(c::SetChannelRole { channel_id, user_id, role }).await;
            }
        }
    }

    /// Tries an action at both doors; returns where the outcome differs from the table.
    async fn check(&mut self, action: Action, socket: &mut Socket) -> Vec<String> {
        let postings = if action == Action::Post && !self.case.archived && !self.case.kind.is_direct() {
            Posting::ALL
        } else {
            &[Posting::Everyone][..]
        };
        let mut wrong = Vec::new();
        for posting in postings {
            if postings.len() > 1 {
                self.set_posting(*posting).await;
            }
            let expected = allows(self.case.who, action, self.facts(*posting));
            let expected = expected.map_or_else(|refusal| refusal.code.as_str(), |()| "ok").to_owned();
            for door in DOORS {
                let Some(outcome) = self.attempt(action, door, socket).await else { continue };
                if outcome != expected {
                    wrong.push(format!("{door} {action:?} {posting:?} {:?}: {outcome}, not {expected}", self.case));
                }
                if outcome == "ok" {
                    self.put_back(action).await;
                }
            }
        }
        if postings.len() > 1 {
            self.set_posting(Posting::Everyone).await;
        }
        wrong
    }

    /// Tries an action at a door; nothing, if there is none for it.
    async fn attempt(&mut self, action: Action, door: &str, socket: &mut Socket) -> Option<String> {
        match (action, door) {
            (Action::Read, "rest") => {
                Some(self.subject.http.get(&format!("/v1/channels/{}/messages", self.channel)).await.code())
            }
            (Action::Type, "gateway") => {
                Some(outcome_of(&socket.call("typing.start", json!({"channel_id": self.channel})).await))
            }
            (Action::Read | Action::Type, _) => None,
            _ => Some(outcome(door, self.command(action, door), self.subject, socket).await),
        }
    }

    fn command(&mut self, action: Action, door: &str) -> Command {
        let (channel_id, user_id) = (self.channel, self.victim.id());
        let at = usize::from(door == "gateway");
        match action {
            Action::Post => message(channel_id, "by the subject").into(),
            Action::Reply => c::SendMessage { thread_seq: Some(self.others[2]), ..message(channel_id, "re") }.into(),
            Action::React => c::AddReaction { channel_id, seq: self.others[2], emoji: "+1".into() }.into(),
            Action::Pin => c::AddPin { channel_id, seq: self.others[2] }.into(),
            Action::EditOwn => c::EditMessage { channel_id, seq: self.own[2], text: format!("again by {door}") }.into(),
            Action::EditOthers => c::EditMessage { channel_id, seq: self.others[2], text: "forged".into() }.into(),
            Action::DeleteOwn => c::DeleteMessage { channel_id, seq: self.own[at] }.into(),
            Action::DeleteOthers => c::DeleteMessage { channel_id, seq: self.others[at] }.into(),
            Action::SetTopic => {
                c::UpdateChannel { channel_id, name: None, topic: Some(door.into()), purpose: None, posting: None }
                    .into()
            }
            Action::Configure => posting_of(channel_id, Posting::Everyone).into(),
            Action::Archive if self.case.archived => c::UnarchiveChannel { channel_id }.into(),
            Action::Archive => c::ArchiveChannel { channel_id }.into(),
            Action::Join => c::JoinChannel { channel_id }.into(),
            Action::Leave => c::LeaveChannel { channel_id }.into(),
            Action::Invite => c::InviteMember { channel_id, user_id: self.newcomer.id() }.into(),
            Action::RemoveMember => c::RemoveMember { channel_id, user_id }.into(),
            Action::SetRole => c::SetChannelRole { channel_id, user_id, role: ChannelRole::Member }.into(),
            Action::KeepOwn => c::MarkRead { channel_id, seq: 1 }.into(),
            Action::Read | Action::Type => unreachable!("no command"),
        }
    }

    async fn set_posting(&self, posting: Posting) {
        let _: Value = self.keeper.does(posting_of(self.channel, posting)).await;
    }

    async fn put_back(&self, action: Action) {
        let channel_id = self.channel;
        match action {
            Action::Archive if self.case.archived => {
                let _: Value = self.keeper.does(c::ArchiveChannel { channel_id }).await;
            }
            Action::Archive => {
                let _: Value = self.keeper.does(c::UnarchiveChannel { channel_id }).await;
            }
            Action::Join | Action::Leave if self.case.archived => {
                let _: Value = self.keeper.does(c::UnarchiveChannel { channel_id }).await;
                self.place().await;
                let _: Value = self.keeper.does(c::ArchiveChannel { channel_id }).await;
            }
            Action::Join | Action::Leave => self.place().await,
            Action::Invite => self.keeper.removes(channel_id, self.newcomer).await,
            Action::RemoveMember => self.keeper.invites(channel_id, self.victim).await,
            _ => {}
        }
    }
}

fn posting_of(channel_id: ChannelId, posting: Posting) -> c::UpdateChannel {
    c::UpdateChannel { channel_id, name: None, topic: None, purpose: None, posting: Some(posting) }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_put_out_while_a_page_is_read_does_not_see_it() {
    if !postgres_is_there() {
        return;
    }
    let world = World::on(Database::Postgres, |_| ()).await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let room = world.private("room", &[&ana, &bob]).await;
    ana.says(room, "hello").await;
    let page = format!("/v1/channels/{room}/messages");
    let connect = async || sqlx::PgConnection::connect(world.app().hub.config.database.url.expose()).await.unwrap();
    // A transaction sees the others as they were when it first looked: whoever watches is not in one.
    let (mut holder, mut watch) = (connect().await, connect().await);
    // Whoever reads messages waits from here on; who is in a channel can be changed.
    sqlx::raw_sql("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").execute(&mut holder).await.unwrap();
    let reading = bob.http.get(&page);
    let meanwhile = async {
        let waits =
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting = async {
            while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut watch).await.unwrap() {
                tokio::task::yield_now().await;
            }
        };
        within("the page to be read", waiting).await;
        ana.removes(room, &bob).await;
        sqlx::raw_sql("COMMIT").execute(&mut holder).await.unwrap();
    };
    let (read, ()) = tokio::join!(reading, meanwhile);
    assert_eq!(read.code(), "not_found");
}
