//! Accounts and channels from the command line, on a server that runs or not.

use std::path::Path;

use serde_json::{Value, json};

use crate::binary::{Serving, run, run_json, run_with_stdin};
use crate::http::Http;
use crate::socket::Socket;

/// Makes an account, a token and a channel, on a server that runs or not.
async fn administers(data: &Path, prefix: &str, url: Option<&str>) {
    let admin = format!("{prefix}-admin");
    let made = run_json(data, &["user", "add", &admin, "--admin"]);
    assert_eq!(made["name"], admin);
    let again = run(data, &["user", "add", &admin]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains(&format!("`{admin}` is taken")), "{}", again.err);
    let token = run_json(data, &["token", "add", "--user", &admin])["token"].as_str().unwrap().to_owned();
    let channel = run_json(data, &["channel", "add", &format!("{prefix}-room"), "--member", &admin]);
    let unknown = run(data, &["token", "add", "--user", "nobody"]);
    assert!(unknown.code == 1 && unknown.err.contains("no user `nobody`"), "{}", unknown.err);
    let with_password = run_with_stdin(
        data,
        &["user", "add", &format!("{prefix}-bob"), "--role", "guest", "--password-stdin"],
        "long enough\n",
    );
    assert_eq!(with_password.code, 0, "{}", with_password.err);
    let listed = run(data, &["user", "list"]).out;
    assert!(listed.lines().count() >= 2 && listed.contains(&admin), "{listed}");
    assert!(run(data, &["channel", "list"]).out.contains(&format!("#{prefix}-room")));
    let invite = run_json(data, &["user", "invite", "--uses", "2"]);
    assert!(invite["code"].as_str().unwrap().starts_with("cli_"));
    if let Some(url) = url {
        let http = Http::new(url, Some(&token));
        assert_eq!(http.get("/v1/users/me").await.good()["name"], admin);
        let path = format!("/v1/channels/{}", channel["id"].as_str().unwrap());
        assert_eq!(http.get(&path).await.good()["role"], "owner");
        let login = json!({"name": format!("{prefix}-bob"), "password": "long enough"});
        assert_eq!(Http::new(url, None).post("/v1/auth/login", &login).await.code(), "ok");
        let mut socket = Socket::open(url, &[]).await;
        socket.next().await;
        socket.identifies(&token).await;
        // What the command line does is told to those who are connected.
        run_json(data, &["user", "add", &format!("{prefix}-late")]);
        assert_eq!(socket.until("user.created").await["d"]["name"], format!("{prefix}-late"));
        assert_eq!(run(data, &["user", "password", &admin]).code, 1, "no terminal to ask at");
        let changed = run_with_stdin(data, &["user", "password", &admin, "--password-stdin"], "another long one");
        assert_eq!(changed.code, 0, "{}", changed.err);
        assert_eq!(socket.closes().await, 4014);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_tokens_and_channels_are_made_on_a_stopped_and_on_a_running_server() {
    let data = tempfile::tempdir().unwrap();
    administers(data.path(), "stopped", None).await;
    let server = Serving::start(data.path(), &[]);
    administers(data.path(), "running", Some(&server.url)).await;
    assert_eq!(server.stop("-TERM"), Some(0));
    administers(data.path(), "stopped-again", None).await;
}

/// Changes accounts and channels on a server that runs or not; returns the new channels and a token of each member.
fn changes(data: &Path, prefix: &str) -> (Vec<Value>, Vec<String>) {
    let name = |name: &str| format!("{prefix}-{name}");
    let (ana, bob, cleo, dan) = (name("ana"), name("bob"), name("cleo"), name("dan"));
    run_json(data, &["user", "add", &ana, "--admin"]);
    for member in [&bob, &cleo, &dan] {
        run_json(data, &["user", "add", member]);
    }
    let secret = run_json(data, &["channel", "add", &name("secret"), "--private", "--member", &bob, "--member", &dan]);
    let [open, old, back] = ["open", "old", "back"]
        .map(|channel| run_json(data, &["channel", "add", &name(channel), "--member", &bob, "--purpose", "to talk"]));
    let tokens = [&ana, &bob, &cleo, &dan]
        .map(|user| run_json(data, &["token", "add", "--user", user])["token"].as_str().unwrap().to_owned());

    assert_eq!(run_json(data, &["user", "role", &bob, "moderator"])["role"], "moderator");
    run_json(data, &["user", "deactivate", &cleo]);
    run_json(data, &["user", "deactivate", &dan]);
    run_json(data, &["user", "reactivate", &dan]);
    for channel in [&old, &back] {
        let archived = run_json(data, &["channel", "archive", channel["name"].as_str().unwrap()]);
        assert_eq!(archived["id"], channel["id"]);
    }
    assert_eq!(run_json(data, &["channel", "unarchive", &name("back")])["id"], back["id"]);
    let nowhere = run(data, &["channel", "archive", &name("nowhere")]);
    assert!(nowhere.code == 1 && nowhere.err.contains("there is no channel"), "{}", nowhere.err);
    let listed = run(data, &["channel", "list"]).out;
    for words in [
        [&name("open"), "public", "active"],
        [&name("old"), "public", "archived"],
        [&name("secret"), "private", "active"],
    ] {
        assert!(listed.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?}: {listed}");
    }
    let dan = run_json(data, &["token", "add", "--user", &dan])["token"].as_str().unwrap().to_owned();
    (vec![secret, open, old, back], [&tokens[..], &[dan]].concat())
}

/// Shows by REST what [`changes`] changed.
async fn changed(url: &str, (channels, tokens): &(Vec<Value>, Vec<String>)) {
    let who: Vec<Http> = tokens.iter().map(|token| Http::new(url, Some(token))).collect();
    let [ana, bob, cleo, _, dan] = &who[..] else { panic!("five tokens") };
    assert_eq!(bob.get("/v1/users/me").await.good()["role"], "moderator");
    assert_eq!(cleo.get("/v1/users/me").await.code(), "unauthenticated");
    dan.get("/v1/users/me").await.good();
    let path = |channel: &Value| format!("/v1/channels/{}", channel["id"].as_str().unwrap());
    let [secret, open, old, back] = &channels[..] else { panic!("four channels") };
    for (member, role) in [(bob, "owner"), (dan, "member")] {
        let secret = member.get(&path(secret)).await.good();
        assert_eq!((&secret["kind"], &secret["role"]), (&json!("private"), &json!(role)));
    }
    assert_eq!(ana.get(&path(open)).await.good()["purpose"], "to talk");
    for (channel, answer) in [(open, "ok"), (old, "channel_archived"), (back, "ok")] {
        let said = bob.post(&format!("{}/messages", path(channel)), &json!({"text": "hi"})).await;
        assert_eq!(said.code(), answer, "{}", channel["name"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_and_channels_are_changed_on_a_stopped_and_on_a_running_server() {
    let data = tempfile::tempdir().unwrap();
    let stopped = changes(data.path(), "stopped");
    let server = Serving::start(data.path(), &[]);
    changed(&server.url, &stopped).await;
    let running = changes(data.path(), "running");
    changed(&server.url, &running).await;
}

/// Makes a private channel of a moment's owner, a member and nobody else; returns the channel, and the member's token.
fn orphans(data: &Path, prefix: &str) -> (Value, String) {
    let name = |name: &str| format!("{prefix}-{name}");
    run_json(data, &["user", "add", &name("ana"), "--admin"]);
    for user in ["bob", "dan", "eve"] {
        run_json(data, &["user", "add", &name(user)]);
    }
    let members = ["--member", &name("bob"), "--member", &name("dan")];
    let channel = run_json(data, &[&["channel", "add", &name("secret"), "--private"][..], &members].concat());
    run_json(data, &["user", "deactivate", &name("bob")]);
    let token = run_json(data, &["token", "add", "--user", &name("dan")]);
    (channel, token["token"].as_str().unwrap().to_owned())
}

/// Brings a private channel back to somebody whose only owner is gone.
fn adopts(data: &Path, prefix: &str, channel: &Value) {
    let name = |name: &str| format!("{prefix}-{name}");
    let (secret, dan) = (name("secret"), name("dan"));
    for outsider in [name("eve"), name("bob")] {
        let refused = run(data, &["channel", "role", &secret, &outsider, "owner"]);
        let told = format!("cannot make {outsider} owner of #{secret}: this user is no active member of the channel");
        assert!(refused.code == 1 && refused.err.contains(&told), "{}", refused.err);
    }
    run_json(data, &["channel", "archive", &format!("#{secret}")]);
    let refused = run(data, &["channel", "role", &secret, &dan, "owner"]);
    assert!(refused.code == 1 && refused.err.contains("the channel is archived"), "{}", refused.err);
    run_json(data, &["channel", "unarchive", &secret]);
    let given = run_json(data, &["channel", "role", &secret, &dan, "owner"]);
    assert_eq!(given, json!({"id": channel["id"], "role": "owner"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_channel_without_an_owner_is_looked_after_on_a_stopped_and_on_a_running_server() {
    let data = tempfile::tempdir().unwrap();
    let (channel, token) = orphans(data.path(), "stopped");
    adopts(data.path(), "stopped", &channel);
    let server = Serving::start(data.path(), &[]);
    let path = |channel: &Value| format!("/v1/channels/{}", channel["id"].as_str().unwrap());
    assert_eq!(Http::new(&server.url, Some(&token)).get(&path(&channel)).await.good()["role"], "owner");

    let (channel, token) = orphans(data.path(), "running");
    let mut socket = Socket::open(&server.url, &[]).await;
    socket.next().await;
    socket.identifies(&token).await;
    adopts(data.path(), "running", &channel);
    let archived = socket.until("channel.archived").await;
    assert_eq!((&archived["d"]["user_id"], &archived["channel_id"]), (&Value::Null, &channel["id"]), "{archived}");
    let changed = socket.until("member.role_changed").await;
    assert_eq!((&changed["d"]["changed_by"], &changed["d"]["role"]), (&Value::Null, &json!("owner")), "{changed}");
    assert_eq!(Http::new(&server.url, Some(&token)).get(&path(&channel)).await.good()["role"], "owner");
}

/// Makes a user with a token that leaks and one that does not.
fn leaks(data: &Path, bot: &str) -> [Value; 2] {
    run_json(data, &["user", "add", bot]);
    let token = ["token", "add", "--user", bot, "--label"];
    [&["leaked", "--days", "30"][..], &["kept"]].map(|more| run_json(data, &[&token[..], more].concat()))
}

/// Ends the first of two tokens alone.
fn ends(data: &Path, bot: &str, [leaked, kept]: &[Value; 2]) {
    let [leaked, kept] = [leaked, kept].map(|token| token["id"].as_str().unwrap());
    let list = || run(data, &["token", "list", "--user", bot]).out;
    let listed = list();
    for words in [[leaked, "leaked", "Z  "], [kept, "kept", "never"]] {
        assert!(listed.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?}: {listed}");
    }
    run(data, &["user", "add", "somebody-else"]);
    let of_another = run(data, &["token", "revoke", leaked, "--user", "somebody-else"]);
    assert!(of_another.code == 1 && of_another.err.contains("cannot end"), "{}", of_another.err);
    assert_eq!(run_json(data, &["token", "revoke", leaked, "--user", bot])["id"], leaked);
    let again = run(data, &["token", "revoke", leaked, "--user", bot]);
    assert!(again.code == 1 && again.err.contains("cannot end"), "{}", again.err);
    let left = run_json(data, &["token", "list", "--user", bot]);
    assert_eq!((&left["id"], &left["label"]), (&json!(kept), &json!("kept")), "only this line: {left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaked_token_is_ended_alone_on_a_stopped_and_on_a_running_server() {
    let data = tempfile::tempdir().unwrap();
    let stopped = leaks(data.path(), "stopped-bot");
    ends(data.path(), "stopped-bot", &stopped);
    let server = Serving::start(data.path(), &[]);
    let running = leaks(data.path(), "running-bot");
    let mut sockets = Vec::new();
    for token in &running {
        let mut socket = Socket::open(&server.url, &[]).await;
        socket.next().await;
        socket.identifies(token["token"].as_str().unwrap()).await;
        sockets.push(socket);
    }
    ends(data.path(), "running-bot", &running);
    assert_eq!(sockets[0].closes().await, 4014);
    sockets[1].everything().await;
    for [leaked, kept] in [&stopped, &running] {
        let me = async |token: &Value| Http::new(&server.url, token["token"].as_str()).get("/v1/users/me").await.code();
        assert_eq!((me(leaked).await.as_str(), me(kept).await.as_str()), ("unauthenticated", "ok"));
    }
}
