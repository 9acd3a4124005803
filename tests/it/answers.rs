//! What every command of the gateway is answered, as it is: one of each, under a snapshot.

use std::collections::HashMap;

use colink::domain::command::Command;
use colink::domain::user::Role;
use serde_json::{Value, json};

use crate::protocol::Shown;
use crate::socket::Socket;
use crate::world::World;

/// Asks, and keeps the first answer of each kind.
struct Asking {
    socket: Socket,
    answers: HashMap<String, Value>,
}

impl Asking {
    async fn ask(&mut self, kind: &str, d: Value) -> Value {
        let answer = self.socket.call(kind, d).await;
        assert_eq!(answer["ok"], true, "{kind}: {answer}");
        self.answers.entry(kind.to_owned()).or_insert(answer)["d"].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_answered_as_it_is_written_down() {
    let world = World::start().await;
    let (ana, bob) = (world.person("ana", Role::Admin).await, world.user("bob").await);
    let mut ana = Asking { socket: ana.connects().await, answers: HashMap::new() };

    let new = ana.ask("user.create", json!({"name": "new", "role": "member"})).await["id"].clone();
    ana.ask("user.update", json!({"title": "Captain"})).await;
    ana.ask("user.set_status", json!({"emoji": "palm_tree", "text": "away"})).await;
    ana.ask("user.set_presence", json!({"mode": "dnd"})).await;
    ana.ask("user.set_role", json!({"user_id": new, "role": "moderator"})).await;
    ana.ask("user.deactivate", json!({"user_id": new})).await;
    ana.ask("user.reactivate", json!({"user_id": new})).await;
    let invite = ana.ask("invite.create", json!({})).await["id"].clone();
    ana.ask("invite.revoke", json!({"invite_id": invite})).await;

    ana.ask("channel.open_direct", json!({"user_ids": [bob.id()]})).await;
    let general = ana.ask("channel.create", json!({"name": "general", "members": [bob.id()]})).await["id"].clone();
    let c = |more: Value| {
        let mut fields = json!({"channel_id": general});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields
    };
    let first = ana.ask("message.send", c(json!({"text": "hi"}))).await["seq"].clone();
    let reply = c(json!({"text": "re", "thread_seq": first}));
    let reply = ana.socket.call("message.send", reply).await["d"]["seq"].clone();
    let m = |more: Value| {
        let mut fields = c(json!({"seq": first}));
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields
    };
    ana.ask("message.edit", m(json!({"text": "hello"}))).await;
    for kind in ["reaction.add", "reaction.remove"] {
        ana.ask(kind, m(json!({"emoji": "wave"}))).await;
    }
    for kind in ["pin.add", "pin.remove", "saved.add", "saved.remove", "channel.mark_unread", "channel.mark_read"] {
        ana.ask(kind, m(json!({}))).await;
    }
    ana.ask("draft.set", c(json!({"text": "half a thou"}))).await;
    ana.ask("channel.set_preferences", c(json!({"muted": true}))).await;
    for kind in ["thread.unfollow", "thread.follow"] {
        ana.ask(kind, c(json!({"thread_seq": first}))).await;
    }
    for kind in ["thread.mark_unread", "thread.mark_read"] {
        ana.ask(kind, c(json!({"thread_seq": first, "seq": reply}))).await;
    }
    ana.ask("message.delete", m(json!({}))).await;

    ana.ask("channel.update", c(json!({"topic": "rockets"}))).await;
    let member = c(json!({"user_id": bob.id()}));
    ana.ask("channel.remove", member.clone()).await;
    ana.ask("channel.invite", member).await;
    ana.ask("channel.set_role", c(json!({"user_id": bob.id(), "role": "owner"}))).await;
    for kind in ["channel.archive", "channel.unarchive", "channel.leave", "channel.join"] {
        ana.ask(kind, c(json!({}))).await;
    }

    let mut shown = Shown::default();
    for name in Command::NAMES {
        let mut answer = ana.answers.remove(*name).unwrap_or_else(|| panic!("{name} was not asked"));
        answer["reply_to"] = json!(name);
        shown.add(&answer);
    }
    insta::assert_snapshot!(shown.text());
}
