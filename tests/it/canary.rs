//! A word said in private stays there: looked for on every surface by those who are not, or no longer, in the room.

use colink::domain::command as c;
use colink::domain::id::{ChannelId, StreamId};
use colink::domain::user::Role;
use serde_json::{Value, json};

use crate::world::{Person, World, message, nobody};

/// The word.
const CANARY: &str = "xylophone-7731";

/// Says the word in every way there is: as a message, an edit, a reply, a pin, a topic and a draft.
async fn sings(ana: &Person, secret: ChannelId) -> i64 {
    let seq = ana.says(secret, &format!("{CANARY} @eve @channel")).await;
    ana.replies(secret, seq, CANARY).await;
    let edited = ana.says(secret, CANARY).await;
    let topic = Some(CANARY.to_owned());
    let steps: [c::Command; 7] = [
        c::EditMessage { channel_id: secret, seq: edited, text: format!("{CANARY} again") }.into(),
        c::AddPin { channel_id: secret, seq }.into(),
        c::AddSaved { channel_id: secret, seq }.into(),
        c::AddReaction { channel_id: secret, seq, emoji: "bird".into() }.into(),
        c::SetDraft { channel_id: secret, thread_seq: None, text: CANARY.into() }.into(),
        c::UpdateChannel { channel_id: secret, name: None, topic, purpose: None, posting: None }.into(),
        c::FollowThread { channel_id: secret, thread_seq: seq }.into(),
    ];
    for step in steps {
        let _: Value = ana.does(step).await;
    }
    seq
}

/// Returns every URL that is read, filled in with what one should not know. What only ends with its session is left out.
async fn surfaces(eve: &Person, secret: ChannelId, owner: &Person, seq: i64) -> Vec<String> {
    let document = eve.http.get("/v1/openapi.json").await.good();
    let read = document["paths"].as_object().unwrap().iter().filter(|(_, methods)| methods["get"].is_object());
    let mut found = Vec::new();
    for path in read.map(|(path, _)| path).filter(|path| !path.starts_with("/v1/events")) {
        let (room, user, seq) = (secret.to_string(), owner.id().to_string(), seq.to_string());
        let filled = [("{channel_id}", &room), ("{stream_id}", &room), ("{user_id}", &user), ("{seq}", &seq)];
        let path =
            filled.iter().fold(path.replace("{thread_seq}", &seq), |path, (name, value)| path.replace(name, value));
        assert!(!path.contains('{'), "nothing to put into {path}");
        found.push(path);
    }
    assert!(found.len() > 20, "{found:?}");
    found
}

/// Reads whatever can be read with identifiers that one should not know; returns all of it.
async fn snoops(eve: &Person, secret: ChannelId, owner: &Person, seq: i64) -> String {
    let room = format!("/v1/channels/{secret}");
    let mut all = String::new();
    let more = [
        format!("{room}/events?after_seq=1&limit=1000"),
        format!("{room}/messages?around_seq={seq}"),
        format!("{room}/messages?before_seq=99"),
        format!("{room}/messages?after_seq=0"),
        format!("{room}/messages/{}/edits", seq + 2),
        format!("{room}/messages/{seq}/replies?around_seq={}", seq + 1),
        format!("/v1/streams/{}/events", owner.id()),
        format!("/v1/streams/{}/events?limit=1000", StreamId::WORKSPACE),
        format!("/v1/streams/{}/events?limit=1000", eve.id()),
        format!("/c/{secret}/{seq}"),
        format!("/c/{secret}/{}?thread={seq}", seq + 1),
        format!("/v1/channels/browse?archived=true&query={CANARY}"),
        "/metrics".to_owned(),
    ];
    for path in surfaces(eve, secret, owner, seq).await.into_iter().chain(more) {
        all.push_str(&eve.http.get(&path).await.text());
        let answer = eve.http.get(&path).await;
        if answer.status == 307 {
            all.push_str(&eve.http.get(answer.header("location")).await.text());
        }
    }
    // Commands whose answers show something.
    let commands: [c::Command; 10] = [
        c::MarkThreadRead { channel_id: secret, thread_seq: seq, seq: 9 }.into(),
        c::MarkThreadUnread { channel_id: secret, thread_seq: seq, seq }.into(),
        c::MarkRead { channel_id: secret, seq: 9 }.into(),
        c::MarkUnread { channel_id: secret, seq }.into(),
        c::AddSaved { channel_id: secret, seq }.into(),
        c::FollowThread { channel_id: secret, thread_seq: seq }.into(),
        c::JoinChannel { channel_id: secret }.into(),
        c::InviteMember { channel_id: secret, user_id: eve.id() }.into(),
        c::AddReaction { channel_id: secret, seq, emoji: "eyes".into() }.into(),
        message(secret, "let me in").into(),
    ];
    for command in commands {
        let answer = eve.tries(command.clone()).await;
        assert_eq!(answer.code(), "not_found", "{}: who is not in it does not learn that it exists", command.name());
        all.push_str(&answer.text());
    }
    all.push_str(&eve.http.get("/v1/saved").await.text());
    all
}

/// Checks that the word is not in what somebody heard, and shows where it is.
fn assert_silent(heard: &str) {
    if let Some(at) = heard.find(CANARY) {
        let from = heard[..at].char_indices().rev().nth(600).map_or(0, |(at, _)| at);
        panic!("the word was heard: …{}", &heard[from..at + CANARY.len()]);
    }
}

/// Resumes with every cursor there could be; returns all that comes.
async fn forges(eve: &Person, secret: ChannelId, owner: &Person, session: &str) -> String {
    let mut all = String::new();
    for seq in [0, 1, 5] {
        for cursors in [
            json!({secret.to_string(): seq}),
            json!({owner.id().to_string(): seq}),
            json!({secret.to_string(): seq, eve.id().to_string(): 0, StreamId::WORKSPACE.to_string(): 0}),
        ] {
            for session in [session, &nobody().to_string()] {
                let (mut socket, answer) =
                    eve.resumes(json!({"session_id": session, "s": seq, "cursors": cursors})).await;
                all.push_str(&answer.to_string());
                if answer["type"] == "resumed" {
                    socket.everything().await.iter().for_each(|frame| all.push_str(&frame.to_string()));
                }
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_word_never_reaches_who_is_not_in_the_room() {
    let world = World::start().await;
    let (ana, bob) = (world.user("ana").await, world.user("bob").await);
    let shared_with = world.user("eve").await;
    let strangers = [
        shared_with,
        world.person("gus", Role::Guest).await,
        world.person("mod", Role::Moderator).await,
        world.person("root", Role::Admin).await,
    ];
    let secret = world.private("secret", &[&ana, &bob]).await;
    let general = world.channel("general", &[&ana, &bob, &strangers[0], &strangers[2], &strangers[3]]).await;
    ana.invites(general, &strangers[1]).await;
    let mut screens = Vec::new();
    for eve in &strangers {
        let mut screen = eve.connects().await;
        screen.call("presence.subscribe", json!({"user_ids": [ana.id(), bob.id()]})).await;
        screens.push(screen);
    }
    let mut insider = bob.connects().await;
    let seq = sings(&ana, secret).await;
    let direct = ana.writes_to(&bob).await;
    ana.says(direct, CANARY).await;
    insider.call("typing.start", json!({"channel_id": secret})).await;
    ana.says(general, "the last word").await;
    assert!(insider.until("message.created").await.to_string().contains(CANARY), "who is in it hears it");
    for (eve, mut screen) in strangers.iter().zip(screens) {
        let mut heard = String::new();
        loop {
            let frame = screen.next().await;
            heard.push_str(&frame.to_string());
            if frame["d"]["text"] == "the last word" {
                break;
            }
        }
        screen.everything().await.iter().for_each(|frame| heard.push_str(&frame.to_string()));
        heard.push_str(&snoops(eve, secret, &ana, seq).await);
        heard.push_str(&snoops(eve, direct, &ana, 2).await);
        heard.push_str(&forges(eve, secret, &ana, &insider.session).await);
        heard.push_str(&forges(eve, direct, &ana, &insider.session).await);
        let name = &eve.user.name;
        assert!(!heard.contains("\"secret\""), "{name} learned the room's name");
        assert_silent(&heard);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_removed_receives_nothing_from_then_on() {
    let world = World::start().await;
    let (ana, eve, bob) = (world.user("ana").await, world.user("eve").await, world.user("bob").await);
    let secret = world.private("secret", &[&ana, &eve, &bob]).await;
    let early = ana.says(secret, "while she was here").await;
    // What she kept of the time when she was in it.
    let steps: [c::Command; 3] = [
        c::AddSaved { channel_id: secret, seq: early }.into(),
        c::FollowThread { channel_id: secret, thread_seq: early }.into(),
        c::SetDraft { channel_id: secret, thread_seq: None, text: "unsent".into() }.into(),
    ];
    for step in steps {
        let _: Value = eve.does(step).await;
    }
    assert_eq!(eve.http.get(&format!("/v1/channels/{secret}/messages")).await.status, 200);
    let mut screen = eve.connects().await;
    let queue = eve.http.post("/v1/events/register", &json!({})).await.good()["queue_id"].clone();
    let away = eve.connects().await.session;

    // The removal and what is said right behind it go to the store together.
    let (mut hers, mut his) = (ana.connects().await, bob.connects().await);
    let removed = hers.asks("channel.remove", json!({"channel_id": secret, "user_id": eve.id()})).await;
    for _ in 0..20 {
        hers.asks("message.send", json!({"channel_id": secret, "text": CANARY})).await;
        his.asks("message.send", json!({"channel_id": secret, "text": "meanwhile"})).await;
    }
    let left = hers.reply(removed).await["d"]["seq"].as_i64().unwrap();
    let seq = sings(&ana, secret).await;

    let mut last = 0;
    // Two streams tell of it, in either order; of the room her own leaving is the last that she hears.
    let mut heard = Vec::new();
    while ["member.left", "user.channel_removed"].iter().any(|kind| heard.iter().all(|f: &Value| f["type"] != *kind)) {
        heard.push(screen.next().await);
    }
    heard.extend(screen.everything().await);
    let of_room: Vec<&Value> = heard.iter().filter(|frame| frame["channel_id"] == json!(secret)).collect();
    let last_heard = of_room.last().unwrap();
    assert_eq!((&last_heard["type"], &last_heard["seq"]), (&json!("member.left"), &json!(left)), "{of_room:?}");
    assert_eq!(last_heard["d"]["user_id"], json!(eve.id()));

    let mut all = format!("{heard:?}");
    loop {
        let path = format!("/v1/events?queue_id={}&last_event_id={}&timeout_s=0", queue.as_str().unwrap(), last.max(1));
        let polled = eve.http.get(&path).await.good();
        if polled["events"].as_array().unwrap().is_empty() {
            break;
        }
        last = polled["last_event_id"].as_i64().unwrap();
        all.push_str(&polled.to_string());
    }
    all.push_str(&forges(&eve, secret, &ana, &away).await);
    all.push_str(&snoops(&eve, secret, &ana, seq).await);
    assert_silent(&all);
    for path in ["/v1/saved", "/v1/threads", "/v1/drafts", "/v1/channels"] {
        assert!(eve.http.get(path).await.items().is_empty(), "{path}");
    }

    // And back again: from the return on, not what was said in between.
    ana.invites(secret, &eve).await;
    ana.says(secret, "welcome back").await;
    assert_eq!(screen.until("message.created").await["d"]["text"], "welcome back");
}
