//! Repeats: whoever asks again with the same key gets the first answer, and nothing is done twice.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use colink::domain::command as c;
use serde_json::{Value, json};

use crate::world::{World, message, on_both};

on_both! {
    a_repeat_gets_the_first_answer_and_has_no_second_effect(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let general = world.channel("general", &[&ana, &bob]).await;
        let says = |text: &str| c::Command::from(message(general, text));
        let first = ana.http.command(&says("hi"), Some("k1")).await;
        assert_eq!((first.status, first.header("idempotency-replayed")), (201, ""));
        let again = ana.http.command(&says("hi"), Some("k1")).await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, "true"));
        let (first, again) = (first.json(), again.json());
        assert_eq!((&first["seq"], &first["message_id"]), (&again["seq"], &again["message_id"]));
        assert_eq!((&first["duplicate"], &again["duplicate"]), (&json!(false), &json!(true)));

        let other = ana.http.command(&says("something else"), Some("k1")).await;
        assert_eq!((other.status, other.code()), (422, "idempotency_key_reused".to_owned()));
        let other = ana.http.command(&c::ArchiveChannel { channel_id: general }.into(), Some("k1")).await;
        assert_eq!(other.status, 422, "another command is another body");
        assert_eq!(bob.http.command(&says("hi"), Some("k1")).await.header("idempotency-replayed"), "", "keys are one's own");

        // Other commands, too, and all at once.
        let create = c::Command::from(c::CreateChannel {
            name: "random".into(), private: false, topic: String::new(), purpose: String::new(), members: vec![],
        });
        let many = futures_util::future::join_all((0..10).map(|_| ana.http.command(&create, Some("k2")))).await;
        let ids: HashSet<String> = many.iter().map(|a| a.good()["id"].to_string()).collect();
        assert_eq!(ids.len(), 1);
        assert_eq!(many.iter().filter(|a| a.header("idempotency-replayed").is_empty()).count(), 1);
        let many = futures_util::future::join_all((0..10).map(|n| {
            let (http, command) = (&ana.http, says("at once"));
            async move { http.command(&command, Some(&format!("k3-{}", n % 2))).await }
        }))
        .await;
        let seqs: HashSet<String> = many.iter().map(|a| a.good()["seq"].to_string()).collect();
        assert_eq!(seqs.len(), 2);
        assert_eq!(ana.http.get(&format!("/v1/channels/{general}/messages")).await.items().len(), 4);
        // A refusal is no first answer.
        let secret = c::Command::from(c::JoinChannel { channel_id: general });
        let reply = c::SendMessage { thread_seq: Some(999), ..message(general, "re") };
        assert_eq!(ana.http.command(&reply.clone().into(), Some("k4")).await.code(), "not_found");
        assert_eq!(ana.http.command(&secret, Some("k4")).await.code(), "ok");
    }

    a_key_is_the_same_on_the_gateway_and_rest(database) {
        let world = World::on(database, |_| ()).await;
        let ana = world.user("ana").await;
        let general = world.channel("general", &[&ana]).await;
        let mut socket = ana.connects().await;
        let send = |key: &str, text: &str| json!({"channel_id": general, "text": text, "client_msg_id": key});
        let first = socket.call("message.send", send("k1", "hi")).await["d"].clone();
        let by_header = ana.http.command(&message(general, "hi").into(), Some("k1")).await;
        assert_eq!(by_header.good()["seq"], first["seq"], "REST knows the gateway's key");
        assert_eq!(by_header.header("idempotency-replayed"), "true");
        let with_body = c::SendMessage { client_msg_id: Some("k1".into()), ..message(general, "hi") };
        assert_eq!(ana.http.command(&with_body.into(), None).await.good()["duplicate"], true);
        assert_eq!(ana.http.command(&message(general, "ho").into(), Some("k1")).await.status, 422);

        let first = ana.http.command(&message(general, "ho").into(), Some("k2")).await.good();
        let again = socket.call("message.send", send("k2", "ho")).await;
        assert_eq!((&again["d"]["seq"], &again["d"]["duplicate"]), (&first["seq"], &json!(true)), "{again}");
        assert_eq!(socket.call("message.send", send("k2", "other")).await["error"], "idempotency_key_reused");
        // The same for a reply, which takes another way to the store.
        let reply = c::SendMessage { thread_seq: first["seq"].as_i64(), ..message(general, "re") };
        let first = ana.http.command(&reply.into(), Some("k3")).await.good();
        let mut again = send("k3", "re");
        again["thread_seq"] = json!(3);
        assert_eq!(socket.call("message.send", again).await["d"]["seq"], first["seq"]);
    }
}

on_both! {
    a_repeat_gets_the_first_answer_however_fast_one_posts(database) {
        let world = World::on(database, |config| {
            (config.limits.messages_per_minute, config.limits.messages_burst) = (1, 1);
        })
        .await;
        let ana = world.user("ana").await;
        let general = world.channel("general", &[&ana]).await;
        let says = |text: &str| c::Command::from(message(general, text));
        let hi = says("hi");
        let first = ana.http.command(&hi, Some("k1")).await.good();
        assert_eq!(ana.http.command(&says("ho"), Some("k2")).await.code(), "rate_limited", "the limit holds");
        let again = ana.http.command(&hi, Some("k1")).await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, "true"), "{}", again.text());
        assert_eq!((&again.json()["seq"], &again.json()["duplicate"]), (&first["seq"], &json!(true)));
        assert_eq!(ana.http.command(&says("ho"), Some("k1")).await.code(), "idempotency_key_reused");
        let mut socket = ana.connects().await;
        let d = json!({"channel_id": general, "text": "hi", "client_msg_id": "k1"});
        let again = socket.call("message.send", d).await;
        assert_eq!((&again["d"]["seq"], &again["d"]["duplicate"]), (&first["seq"], &json!(true)), "{again}");

        // Whoever repeats before there is an answer waits for the first one's.
        let bob = world.user("bob").await;
        ana.invites(general, &bob).await;
        let many = futures_util::future::join_all((0..8).map(|_| bob.http.command(&hi, Some("k1")))).await;
        let seqs: HashSet<String> = many.iter().map(|answer| answer.good()["seq"].to_string()).collect();
        assert_eq!(seqs.len(), 1);
        assert_eq!(many.iter().filter(|answer| answer.header("idempotency-replayed").is_empty()).count(), 1);
    }
}

on_both! {
    what_is_no_command_is_done_once_too(database) {
        let world = World::on(database, |_| ()).await;
        let ana = world.user("ana").await;
        let keyed = async |method: &str, path: &str, key: &str, body: Value| {
            let headers = [("content-type", "application/json"), ("idempotency-key", key)];
            ana.http.send(method, path, &headers, body.to_string().into()).await
        };
        let tokens = format!("/v1/users/{}/tokens", ana.id());
        let made = json!({"label": "robot"});
        let many = futures_util::future::join_all((0..4).map(|_| keyed("POST", &tokens, "k1", made.clone()))).await;
        assert!(many.iter().all(|answer| answer.status == 201), "{}", many[0].text());
        let shown = many.iter().filter(|answer| answer.json()["token"].is_string()).count();
        assert!(many.iter().all(|answer| answer.json()["id"] == many[0].json()["id"]), "and names the sign-in");
        let first = many.iter().filter(|answer| answer.header("idempotency-replayed").is_empty()).count();
        assert_eq!((shown, first), (1, 1), "a secret is shown once");
        let sign_ins = ana.http.get("/v1/auth/sessions").await.good();
        let robots: Vec<&Value> = sign_ins["items"].as_array().unwrap().iter().filter(|s| s["label"] == "robot").collect();
        assert_eq!(robots.len(), 1, "{sign_ins}");
        assert_eq!(keyed("POST", &tokens, "k1", json!({"label": "other"})).await.code(), "idempotency_key_reused");
        assert_eq!(keyed("POST", &tokens, "no spaces", made).await.code(), "invalid_request");

        // Whoever hangs up before the answer repeats, and it is still done once.
        let authority = world.url.trim_start_matches("http://");
        for n in 0..60 {
            let (label, key) = (format!("cut {n}"), format!("cut-{n}"));
            let body = json!({"label": label}).to_string();
            let mut cut = tokio::net::TcpStream::connect(authority).await.unwrap();
            let head = format!(
                "POST {tokens} HTTP/1.1\r\nhost: {authority}\r\nauthorization: Bearer {}\r\nidempotency-key: {key}\r\n\
                 content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                ana.token,
                body.len()
            );
            tokio::io::AsyncWriteExt::write_all(&mut cut, head.as_bytes()).await.unwrap();
            // At another moment each time: before the work, in its middle, behind it.
            let sent = Instant::now();
            while sent.elapsed() < Duration::from_micros(50 * n) {
                tokio::task::yield_now().await;
            }
            drop(cut);
            assert_eq!(keyed("POST", &tokens, &key, json!({"label": label})).await.status, 201);
            let sign_ins = ana.http.get("/v1/auth/sessions?limit=200").await.good();
            let made = sign_ins["items"].as_array().unwrap().iter().filter(|s| s["label"] == label.as_str()).count();
            assert_eq!(made, 1, "{label}");
        }

        let sessions = [1, 2].map(|_| keyed("POST", "/v1/events/register", "k2", json!({})));
        let [one, two] = futures_util::future::join_all(sessions).await.try_into().ok().unwrap();
        assert_eq!(one.good()["session_id"], two.good()["session_id"]);
        let robot = format!("/v1/auth/sessions/{}", robots[0]["id"].as_str().unwrap());
        for _ in 0..2 {
            assert_eq!(keyed("DELETE", &robot, "k3", json!({})).await.status, 200);
        }
    }
}

on_both! {
    what_one_client_asks_is_done_in_its_order(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let general = world.channel("general", &[&ana]).await;
        let mut noise = ana.connects().await;
        let mut socket = bob.connects().await;
        for _ in 0..20 {
            // Something to commit, while the others gather behind it.
            noise.asks("message.send", json!({"channel_id": general, "text": "noise"})).await;
            let mut asked = Vec::new();
            for (kind, d) in [
                ("channel.join", json!({"channel_id": general})),
                ("message.send", json!({"channel_id": general, "text": "I am in"})),
                ("channel.leave", json!({"channel_id": general})),
                ("message.send", json!({"channel_id": general, "text": "I am out"})),
            ] {
                asked.push(socket.asks(kind, d).await);
            }
            let mut outcomes = Vec::new();
            for id in asked {
                outcomes.push(socket.reply(id).await["ok"].as_bool().unwrap());
            }
            assert_eq!(outcomes, [true, true, true, false], "join, say, leave, and say no more");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitations_code_is_not_in_the_repeated_answer() {
    let world = World::start().await;
    let root = world.person("root", colink::domain::user::Role::Admin).await;
    let create = c::Command::from(c::CreateInvite { role: None, max_uses: None, expires_in_s: None });
    let first = root.http.command(&create, Some("k")).await.good();
    let again = root.http.command(&create, Some("k")).await.good();
    assert_eq!((&first["id"], again.get("code")), (&again["id"], None));
}
