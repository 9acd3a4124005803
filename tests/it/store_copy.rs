//! A hub moves from one database to another, and nobody in it notices but by the reconnect.

use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;

use colink::domain::command::{self as c, Command};
use colink::domain::id::ChannelId;
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::binary::{Running, Said, Serving, bare, colink, heard, lines, run, run_json, said, terminal};
use crate::cli::takes_its_lock_again;
use crate::http::Http;
use crate::socket::Socket;
use crate::world::{LIMIT, message, new_postgres_database, postgres_is_there};

/// Runs `colink store copy`.
fn copy(place: &Path, more: &[&str]) -> Said {
    said(bare(place, &[&["store", "copy"], more].concat()).output().unwrap())
}

fn sqlite(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

fn serve(data: &Path, url: &str) -> Serving {
    let unlimited = ["--set", "limits.messages_per_minute=0", "--set", "gateway.identifies_per_minute=0"];
    let database = format!("database.url={url}");
    Serving::start(data, &[&["--set", &database], &unlimited[..]].concat())
}

/// Somebody of the demo team, by a token that no server restart ends.
struct Person {
    token: String,
    id: String,
}

impl Person {
    fn of(data: &Path, name: &str) -> Person {
        let token = run_json(data, &["token", "add", "--user", name])["token"].as_str().unwrap().to_owned();
        let list = run(data, &["user", "list", "--json"]).out;
        let mut users = list.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let user = users.find(|user| user["name"] == name).unwrap();
        Person { token, id: user["id"].as_str().unwrap().to_owned() }
    }

    fn at(&self, server: &Serving) -> Http {
        Http::new(&server.url, Some(&self.token))
    }

    /// Carries a command out that has to succeed.
    async fn does(&self, server: &Serving, command: impl Into<Command>) -> Value {
        self.at(server).command(&command.into(), None).await.good()
    }

    async fn says(&self, server: &Serving, channel: ChannelId, text: &str) -> i64 {
        self.does(server, message(channel, text)).await["seq"].as_i64().unwrap()
    }

    /// Returns everything that they see at first: channels with what is unread, threads, drafts, saved messages.
    async fn sees(&self, server: &Serving) -> Vec<Value> {
        let mut seen = Vec::new();
        for path in ["/v1/users/me", "/v1/channels", "/v1/threads", "/v1/drafts", "/v1/saved", "/v1/users"] {
            seen.push(self.at(server).get(path).await.good());
        }
        for channel in self.at(server).get("/v1/channels").await.items() {
            let id = channel["id"].as_str().unwrap();
            for list in ["messages?limit=200", "pins", "members"] {
                seen.push(self.at(server).get(&format!("/v1/channels/{id}/{list}")).await.good());
            }
        }
        seen
    }
}

async fn room(person: &Person, server: &Serving, name: &str) -> ChannelId {
    let channels = person.at(server).get("/v1/channels").await.items();
    let found = channels.iter().find(|channel| channel["name"] == name).unwrap();
    serde_json::from_value(found["id"].clone()).unwrap()
}

/// Does what the demo team leaves out.
async fn more_happens(server: &Serving, ana: &Person, bob: &Person, general: ChannelId) {
    let long = "ünïcödé 🎉 日本語 \\ \"quoted\"\n".repeat(800);
    let seq = ana.says(server, general, &long).await;
    let reply = c::SendMessage { thread_seq: Some(seq), ..message(general, "in a thread") };
    bob.does(server, reply).await;
    bob.does(server, c::AddReaction { channel_id: general, seq, emoji: "tada".into() }).await;
    bob.does(server, c::AddSaved { channel_id: general, seq }).await;
    bob.does(server, c::SetDraft { channel_id: general, thread_seq: None, text: "half a tho".into() }).await;
    ana.does(server, c::AddPin { channel_id: general, seq }).await;
    ana.does(server, c::EditMessage { channel_id: general, seq, text: format!("{long} edited") }).await;
    let deleted = ana.says(server, general, "not for long @bob").await;
    ana.does(server, c::DeleteMessage { channel_id: general, seq: deleted }).await;
    ana.does(server, c::ArchiveChannel { channel_id: room(ana, server, "random").await }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_moves_to_postgres_while_it_is_served_and_all_that_clients_hold_stays_good() {
    if !postgres_is_there() {
        return;
    }
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (sqlite(&old.path().join("colink.db")), new_postgres_database().await);
    let ends = ["--from", &from, "--to", &to];
    let planted = run(old.path(), &["seed"]);
    assert_eq!(planted.code, 0, "{}", planted.err);
    let server = serve(old.path(), &from);
    let (ana, bob, ended) =
        (Person::of(old.path(), "ana"), Person::of(old.path(), "bob"), Person::of(old.path(), "bob"));
    let invite = ana.does(&server, c::CreateInvite { role: None, max_uses: None, expires_in_s: None }).await;
    ended.at(&server).send("POST", "/v1/auth/logout", &[], "".into()).await;
    let general = room(&ana, &server, "general").await;
    more_happens(&server, &ana, &bob, general).await;

    let mut screen = Socket::open(&server.url, &[]).await;
    screen.next().await;
    let ready = screen.identifies(&bob.token).await;
    let seen = ana.says(&server, general, "seen").await;
    while screen.until("message.created").await["seq"] != seen {}
    let session = screen.session.clone();
    drop(screen);

    // While it is served.
    let first = copy(old.path(), &ends);
    assert_eq!(first.code, 0, "{}{}", first.out, first.err);
    assert!(first.out.contains("A server ran on the source"), "{}", first.out);
    assert!(first.err.contains("copying messages") && first.err.contains("comparing events"), "{}", first.err);
    let early = run(new.path(), &["serve", "--listen", "127.0.0.1:0", "--set", &format!("database.url={to}")]);
    assert!(early.code == 1 && early.err.contains("a copy that is not finished"), "{}", early.err);

    let missed = [ana.says(&server, general, "missed").await, ana.says(&server, general, "missed, too").await];
    let send = Command::from(message(general, "said once"));
    let once = ana.at(&server).command(&send, Some("a-key")).await.good();
    let before = (ana.sees(&server).await, bob.sees(&server).await);
    assert_eq!(server.stop("-TERM"), Some(0));

    let last = copy(old.path(), &ends);
    assert_eq!(last.code, 0, "{}{}", last.out, last.err);
    assert!(last.out.contains("The copy is complete") && !last.out.contains("NOT THE SAME"), "{}", last.out);
    let again = copy(old.path(), &[&ends[..], &["--verify"]].concat());
    assert!(again.code == 0 && again.out.contains("source and target are the same"), "{}{}", again.out, again.err);

    let server = serve(new.path(), &to);
    assert_eq!(bob.sees(&server).await, before.1);
    assert_eq!(ana.sees(&server).await, before.0, "unread counts among it");
    assert_eq!(ended.at(&server).get("/v1/users/me").await.status, 401, "a token that was ended stays so");

    // He comes back with what he held.
    let own = ready["d"]["user_seq"].as_i64();
    let cursors = json!({general.to_string(): seen, bob.id.clone(): own});
    let mut screen = Socket::open(&server.url, &[]).await;
    screen.next().await;
    let d = json!({"token": bob.token, "session_id": session, "s": 2, "cursors": cursors});
    screen.send(&json!({"id": 1, "type": "resume", "d": d})).await;
    let resumed = screen.next().await;
    assert_eq!((&resumed["type"], &resumed["d"]["mode"]), (&json!("resumed"), &json!("log")), "{resumed}");
    let replayed: Vec<Value> =
        screen.everything().await.into_iter().filter(|frame| frame["type"] == "message.created").collect();
    let numbers: Vec<_> = replayed.iter().map(|frame| frame["seq"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [missed[0], missed[1], once["seq"].as_i64().unwrap()], "{replayed:#?}");

    let repeated = ana.at(&server).command(&send, Some("a-key")).await.good();
    assert_eq!((&repeated["seq"], &repeated["duplicate"]), (&once["seq"], &json!(true)));
    let next = ana.says(&server, general, "on the new one").await;
    assert_eq!(next, numbers[2] + 1, "numbers go on");
    assert_eq!(screen.until("message.created").await["seq"], next);
    let sign_up = json!({"code": invite["code"], "name": "newcomer", "password": "long enough to guess"});
    let newcomer = Http::new(&server.url, None).post("/v1/auth/signup", &sign_up).await.good();
    assert_eq!(newcomer["user"]["name"], "newcomer", "an invitation stays good");

    // Whoever does it once more by mistake harms nobody.
    let served = copy(old.path(), &ends);
    assert!(served.code == 1 && served.err.contains("a server runs on the target"), "{}{}", served.out, served.err);
    assert_eq!(server.stop("-TERM"), Some(0));
    let late = copy(old.path(), &ends);
    assert!(late.code == 1 && late.err.contains("was written to"), "{}{}", late.out, late.err);
    let differs = copy(old.path(), &[&ends[..], &["--verify"]].concat());
    assert!(differs.code == 1 && differs.err.contains("the first row that differs is in"), "{}", differs.err);

    // And back: the configuration names the source.
    let back = tempfile::tempdir().unwrap();
    let mut home = bare(back.path(), &["store", "copy", "--to", "sqlite://colink.db"]);
    let home = said(home.env("COLINK_DATABASE__URL", &to).output().unwrap());
    assert!(home.code == 0 && home.out.contains("The copy is complete"), "{}{}", home.out, home.err);
    let server = Serving::start(back.path(), &[]);
    assert_eq!(ana.says(&server, general, "home again").await, next + 1);
}

/// A copy that waits before it brings reactions, because the target, on Postgres, has them locked.
struct Waiting {
    process: Running,
    out: mpsc::Receiver<String>,
    _err: mpsc::Receiver<String>,
    holder: sqlx::PgConnection,
}

impl Waiting {
    async fn start(place: &Path, from: &str, to: &str) -> Waiting {
        let migrated = run(place, &["migrate", "--set", &format!("database.url={to}")]);
        assert_eq!(migrated.code, 0, "{}", migrated.err);
        let mut holder = sqlx::PgConnection::connect(to).await.unwrap();
        sqlx::raw_sql("BEGIN; LOCK TABLE reactions IN SHARE MODE").execute(&mut holder).await.unwrap();
        let mut command = bare(place, &["store", "copy"]);
        command.env("COLINK_COPY_FROM", from).env("COLINK_COPY_TO", to);
        let mut process = Running(command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let out = lines(process.0.stdout.take().unwrap());
        let err = lines(process.0.stderr.take().unwrap());
        heard(&err, "copying reactions");
        Waiting { process, out, _err: err, holder }
    }

    /// Lets it go on to its end; returns what it says.
    async fn goes_on(mut self) -> String {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.holder).await.unwrap();
        let mut said = String::new();
        while let Ok(line) = self.out.recv_timeout(LIMIT) {
            said += &line;
            said.push('\n');
        }
        said
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_killed_goes_on_and_until_then_no_server_starts_on_it() {
    if !postgres_is_there() {
        return;
    }
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (sqlite(&old.path().join("colink.db")), new_postgres_database().await);
    assert_eq!(run(old.path(), &["seed"]).code, 0);
    let mut half = Waiting::start(old.path(), &from, &to).await;
    half.process.0.kill().unwrap();
    half.process.0.wait().unwrap();
    let messages: i64 = sqlx::query_scalar("SELECT count(*) FROM messages").fetch_one(&mut half.holder).await.unwrap();
    let events: i64 = sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(&mut half.holder).await.unwrap();
    assert!(messages > 0 && events == 0, "{messages} messages and {events} events");
    half.goes_on().await;

    let database = ["--set", &format!("database.url={to}")];
    for on_it in [&["serve", "--listen", "127.0.0.1:0"][..], &["user", "add", "eve"], &["migrate"]] {
        let early = run(new.path(), &[on_it, &database[..]].concat());
        assert!(early.code == 1 && early.err.contains("run the same `colink store copy` again"), "{}", early.err);
    }
    let home = copy(new.path(), &["--from", &to, "--to", "sqlite://other.db"]);
    assert!(home.code == 1 && home.err.contains("itself a copy that was not finished"), "{}", home.err);

    // The URLs may come from files.
    let secret = old.path().join("to.url");
    std::fs::write(&secret, format!("{to}\n")).unwrap();
    let mut command = bare(old.path(), &["store", "copy", "--data", "."]);
    let whole = said(command.env("COLINK_COPY_TO_FILE", &secret).output().unwrap());
    assert!(whole.code == 0 && whole.out.contains("The copy is complete"), "{}{}", whole.out, whole.err);
    assert_eq!(serve(new.path(), &to).stop("-TERM"), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_notices_what_a_server_that_got_past_its_lock_wrote() {
    if !postgres_is_there() {
        return;
    }
    let (old, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (sqlite(&old.path().join("colink.db")), new_postgres_database().await);
    assert_eq!(run(old.path(), &["seed"]).code, 0);
    let waiting = Waiting::start(old.path(), &from, &to).await;
    std::fs::remove_file(old.path().join("colink.db.lock")).unwrap();
    let server = serve(place.path(), &from);
    let ana = Person::of(place.path(), "ana");
    ana.says(&server, room(&ana, &server, "general").await, "missed").await;
    assert_eq!(server.stop("-TERM"), Some(0));
    let said = waiting.goes_on().await;
    assert!(said.contains("A server ran on the source") && !said.contains("The copy is complete"), "{said}");

    let last = copy(old.path(), &["--from", &from, "--to", &to]);
    assert!(last.code == 0 && last.out.contains("The copy is complete"), "{}{}", last.out, last.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_lock_on_the_source_was_lost_is_not_complete() {
    if !postgres_is_there() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (from, to) = (new_postgres_database().await, new_postgres_database().await);
    assert_eq!(run(place.path(), &["seed", "--set", &format!("database.url={from}")]).code, 0);
    let waiting = Waiting::start(place.path(), &from, &to).await;
    takes_its_lock_again(&from).await;
    let said = waiting.goes_on().await;
    assert!(said.contains("A server ran on the source") && !said.contains("The copy is complete"), "{said}");

    let last = copy(place.path(), &["--from", &from, "--to", &to]);
    assert!(last.code == 0 && last.out.contains("The copy is complete"), "{}{}", last.out, last.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_takes_longer_than_the_role_may_be_idle_in_a_transaction() {
    if !postgres_is_there() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (from, to) = (new_postgres_database().await, new_postgres_database().await);
    assert_eq!(run(place.path(), &["seed", "--set", &format!("database.url={from}")]).code, 0);
    for url in [&from, &to] {
        let mut db = sqlx::PgConnection::connect(url).await.unwrap();
        let name = url.rsplit_once('/').unwrap().1;
        let limit =
            format!("ALTER ROLE CURRENT_USER IN DATABASE {name} SET idle_in_transaction_session_timeout = '1ms'");
        sqlx::raw_sql(sqlx::AssertSqlSafe(limit)).execute(&mut db).await.unwrap();
    }
    let ends = ["--from", &from, "--to", &to];
    for _ in 0..2 {
        let done = copy(place.path(), &ends);
        assert!(done.code == 0 && done.out.contains("The copy is complete"), "{}{}", done.out, done.err);
    }
    let same = copy(place.path(), &[&ends[..], &["--verify"]].concat());
    assert!(same.code == 0 && same.out.contains("source and target are the same"), "{}{}", same.out, same.err);
}

#[test]
fn a_copy_shows_a_bar_on_a_terminal_and_keeps_its_urls_to_itself() {
    let data = tempfile::tempdir().unwrap();
    assert_eq!(run(data.path(), &["seed"]).code, 0);
    let (mut terminal, screen) = terminal();
    let to = ["store", "copy", "--to", "sqlite://target.db"];
    let done = colink(data.path(), &to).env("TERM", "xterm").stderr(screen).output().unwrap();
    assert!(done.status.success());
    let mut shown = Vec::new();
    let _ = terminal.read_to_end(&mut shown);
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains(" rows,") && !shown.contains("copying events\r\n"), "{shown:?}");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&data.path().join("target.db").metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds everybody's passwords' hashes");

    let secret = "postgres://hub:hunter2@127.0.0.1:1/none";
    for args in [
        &["--to", secret][..],
        &[secret],
        &["--from", secret],
        &["--from", secret, "--to", secret],
        &["--verify", "--to", secret],
        &["--to", "postgres://hub:hunter2@127.0.0.1:none/none"],
        &["--to", "hunter2"],
    ] {
        let Said { code, out, err } = copy(data.path(), &[args, &["--data", "."]].concat());
        assert!(code == 1 && !format!("{out}{err}").contains("hunter2"), "{args:?}: {out}{err}");
    }
    assert!(copy(data.path(), &[]).err.contains("name the target by --to"));
}
