//! The binary as an operator has it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::binary::{Running, Said, Serving, bare, colink, heard, lines, run, run_json, said, terminal};
use crate::http::Http;
use crate::socket::Socket;
use crate::world::{LIMIT, eventually, new_postgres_database, postgres_is_there, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_says_where_it_listens_keeps_others_off_its_data_and_stops_in_order() {
    let data = tempfile::tempdir().unwrap();
    let server = Serving::start(data.path(), &["--demo"]);
    let hint = server.says("--user ana");
    assert!(hint.contains(&format!("colink chat --data {}", data.path().display())), "{hint}");
    let login = json!({"name": "ana", "password": "colink-demo"});
    let signed_in = Http::new(&server.url, None).post("/v1/auth/login", &login).await.good();
    let mut socket = Socket::open(&server.url, &[]).await;
    socket.next().await;
    socket.identifies(signed_in["token"].as_str().unwrap()).await;
    let running = data.path().join("running.json");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&running).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds the operator's secret");

    let second = run(data.path(), &["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.code, 1);
    assert!(second.err.contains("another server runs on the data directory"), "{}", second.err);
    assert!(running.exists(), "the second server leaves the first one's notes alone");

    assert_eq!(server.stop("-TERM"), Some(0));
    socket.until("reconnect").await;
    assert_eq!(socket.closes().await, 1012);
    assert!(!running.exists());
    let server = Serving::start(data.path(), &[]);
    assert_eq!(server.stop("-INT"), Some(0));
}

/// Starts a server and shows that nobody else writes to its database past it, until it is killed.
async fn keeps_others_off(url: &str) {
    let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let set = ["--set", &format!("database.url={url}")];
    let first = Serving::start(mine.path(), &set);
    let second = run(other.path(), &[&["serve", "--listen", "127.0.0.1:0"], &set[..]].concat());
    assert_eq!(second.code, 1, "{}", second.out);
    assert!(second.err.contains("another server runs on this database: stop it, or give"), "{}", second.err);
    let past_it = run(other.path(), &[&["user", "add", "ana"], &set[..]].concat());
    assert_eq!(past_it.code, 1, "{}", past_it.out);
    assert!(past_it.err.contains("name its directory by --data"), "{}", past_it.err);
    // The data directory alone says which server it is, and so which database.
    for through_it in
        [&["user", "add", "ana", "--admin"][..], &["token", "add", "--user", "ana"], &["channel", "add", "room"]]
    {
        let said = run(mine.path(), through_it);
        assert_eq!(said.code, 0, "{}", said.err);
    }
    assert!(!mine.path().join("colink.db").exists(), "no database is made beside the server's");

    assert_eq!(first.stop("-KILL"), None);
    let alone = run(other.path(), &[&["user", "add", "bob"], &set[..]].concat());
    assert_eq!(alone.code, 0, "a lock ends with its holder: {}", alone.err);
    assert_eq!(Serving::start(other.path(), &set).stop("-TERM"), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_runs_on_a_sqlite_file() {
    let place = tempfile::tempdir().unwrap();
    keeps_others_off(&format!("sqlite://{}", place.path().join("shared.db").display())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_runs_on_a_postgres_database() {
    if postgres_is_there() {
        keeps_others_off(&new_postgres_database().await).await;
    }
}

/// Ends the session that holds the lock on a database, and waits until it is held by another one.
pub(crate) async fn takes_its_lock_again(url: &str) {
    let mut postgres = sqlx::PgConnection::connect(url).await.unwrap();
    let holder = "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'advisory' \
                  AND l.granted AND a.datname = current_database() AND a.application_name = 'colink lock'";
    let first: i32 = sqlx::query_scalar(holder).fetch_one(&mut postgres).await.unwrap();
    sqlx::query("SELECT pg_terminate_backend($1)").bind(first).execute(&mut postgres).await.unwrap();
    let taken = async {
        while sqlx::query_scalar(holder)
            .fetch_optional(&mut postgres)
            .await
            .unwrap()
            .is_none_or(|pid: i32| pid == first)
        {
            tokio::task::yield_now().await;
        }
    };
    within("the lock to be taken again", taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_takes_its_lock_again_when_postgres_was_started_anew() {
    if !postgres_is_there() {
        return;
    }
    let url = new_postgres_database().await;
    let (mine, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let set = ["--set", &format!("database.url={url}")];
    let _server = Serving::start(mine.path(), &set);
    takes_its_lock_again(&url).await;
    let past_it = run(other.path(), &[&["user", "add", "ana"], &set[..]].concat());
    assert!(past_it.code == 1 && past_it.err.contains("runs on this database"), "{}", past_it.err);
}

#[test]
fn a_server_that_cannot_write_its_log_goes_on() {
    let data = tempfile::tempdir().unwrap();
    // Whoever writes there is told that the disk is full.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = Serving::command(data.path(), &["--set", "log.level=debug"]);
    let server = Serving::spawn(command.stderr(full));
    assert_eq!(server.stop("-TERM"), Some(0));
}

#[test]
fn a_configuration_is_checked_whole() {
    let data = tempfile::tempdir().unwrap();
    let good = run(data.path(), &["config", "check"]);
    assert_eq!(good.code, 0, "{}", good.err);
    let file = data.path().join("mine.toml");
    std::fs::write(&file, "[gateway]\nqueue_events = 1\nqueu_bytes = 5\n[server]\nlisten = \"nowhere\"\n").unwrap();
    let bad = run(data.path(), &["config", "check", "--config", file.to_str().unwrap(), "--set", "log.level=a=b=c"]);
    assert_eq!(bad.code, 78);
    for part in ["queue_events", "queu_bytes", "listen", "log.level"] {
        assert!(bad.err.contains(part), "{part} is named: {}", bad.err);
    }
    assert_eq!(run(data.path(), &["serve", "--config", file.to_str().unwrap()]).code, 78);
    assert_eq!(run(data.path(), &["config", "check", "--config", "not-there.toml"]).code, 78);
    assert_eq!(run(data.path(), &["no-such-command"]).code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn planting_the_demo_team_again_changes_nothing_even_after_its_keys_are_forgotten() {
    let data = tempfile::tempdir().unwrap();
    let count = || {
        let users = run(data.path(), &["user", "list", "--json"]).out;
        let channels = run(data.path(), &["channel", "list", "--json"]).out;
        (users, channels)
    };
    let first = run(data.path(), &["seed"]);
    assert_eq!(first.code, 0, "{}", first.err);
    let before = count();
    assert_eq!((before.0.lines().count(), before.1.lines().count()), (5, 4), "no direct message is listed");
    let second = run(data.path(), &["seed"]);
    assert_eq!((second.code, &second.out), (0, &first.out));
    assert_eq!(count(), before, "accounts and channels, and how many messages and events these have");

    let events = async || {
        let url = format!("sqlite://{}", data.path().join("colink.db").display());
        let mut db = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let events: i64 = sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(&mut db).await.unwrap();
        // As the housekeeping does it a day later.
        sqlx::query("DELETE FROM idempotency").execute(&mut db).await.unwrap();
        db.close().await.unwrap();
        events
    };
    let planted = events().await;
    let later = run(data.path(), &["seed"]);
    assert_eq!((later.code, &later.out), (0, &first.out), "{}", later.err);
    assert_eq!(events().await, planted, "the direct messages among them");
    assert_eq!(Serving::start(data.path(), &["--demo"]).stop("-TERM"), Some(0));
    assert_eq!(events().await, planted);
}

/// What two demo teams have in common, line by line.
const OF_A_TEAM: &[&str] = &[
    "SELECT json_array(name, display_name, title, role, bot) FROM users",
    "SELECT json_array(c.kind, c.name, c.topic, c.purpose, c.posting, u.name, s.last_seq, s.last_message_no) \
     FROM channels c JOIN streams s ON s.id = c.id JOIN users u ON u.id = c.created_by",
    "SELECT json_array(c.name, u.name, m.role, m.read_seq, m.read_no) \
     FROM members m JOIN channels c ON c.id = m.channel_id JOIN users u ON u.id = m.user_id",
    "SELECT json_array(c.name, m.seq, m.message_no, m.thread_seq, m.reply_no, u.name, m.text, m.reply_count) \
     FROM messages m JOIN channels c ON c.id = m.channel_id JOIN users u ON u.id = m.author_id",
    "SELECT json_array(c.name, r.seq, r.emoji, u.name) \
     FROM reactions r JOIN channels c ON c.id = r.channel_id JOIN users u ON u.id = r.user_id",
    "SELECT json_array(c.name, o.name, e.seq, e.kind, u.name) FROM events e LEFT JOIN channels c ON c.id = e.stream_id \
     LEFT JOIN users o ON o.id = e.stream_id LEFT JOIN users u ON u.id = e.actor_id",
];

#[tokio::test(flavor = "multi_thread")]
async fn two_demo_teams_are_the_same_but_for_identifiers_and_times() {
    let team = async || {
        let data = tempfile::tempdir().unwrap();
        let seeded = run(data.path(), &["seed"]);
        assert_eq!(seeded.code, 0, "{}", seeded.err);
        let url = format!("sqlite://{}", data.path().join("colink.db").display());
        let mut db = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let mut team: Vec<Vec<String>> = Vec::new();
        for sql in OF_A_TEAM {
            let mut lines: Vec<String> = sqlx::query_scalar(*sql).fetch_all(&mut db).await.unwrap();
            lines.sort();
            team.push(lines);
        }
        team
    };
    let (one, other) = (team().await, team().await);
    assert!(one.iter().all(|lines| lines.len() >= 5), "{one:#?}");
    assert_eq!(one, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_on_a_terminal_makes_an_administrator_who_can_sign_in() {
    let data = tempfile::tempdir().unwrap();
    let server = Serving::start_on_a_terminal(data.path(), &[]);
    let word = |line: String| line.split_whitespace().last().unwrap().to_owned();
    let (name, password) = (word(server.says("  name ")), word(server.says("  password ")));
    let hint = format!("chat --data {} --user {name}", data.path().display());
    assert!(server.says("Sign in:").ends_with(&hint));
    let login = json!({"name": name, "password": password});
    let admin = Http::new(&server.url, None).post("/v1/auth/login", &login).await.good();
    assert_eq!(admin["user"]["role"], "admin");
    assert_eq!(server.stop("-TERM"), Some(0));
    let again = Serving::start_on_a_terminal(data.path(), &[]);
    assert_eq!(again.stop("-TERM"), Some(0));
    assert_eq!(run(data.path(), &["user", "list"]).out.lines().count(), 1, "the first start alone");
}

#[test]
fn the_first_start_without_a_terminal_says_how_to_make_an_administrator() {
    let data = tempfile::tempdir().unwrap();
    let server = Serving::start(data.path(), &[]);
    let hint = server.says("There is no account yet");
    let place = format!("user add NAME --admin --password-stdin --data {}`", data.path().display());
    assert!(hint.contains(&place), "{hint}");
}

#[test]
fn doctor_and_migrate_say_how_it_is() {
    let data = tempfile::tempdir().unwrap();
    let free = ["--set", "server.listen=127.0.0.1:0"];
    let migrated = run(data.path(), &["migrate"]);
    assert!(migrated.code == 0 && migrated.out.starts_with("the schema is at version "), "{}", migrated.out);
    assert_eq!(run(data.path(), &["migrate"]).out, migrated.out);
    let well = run(data.path(), &[&["doctor"][..], &free].concat());
    assert_eq!(well.code, 0, "{}{}", well.out, well.err);
    for check in ["configuration", "data directory", "fsync", "open files", "database", "server"] {
        assert!(well.out.contains(check), "{check}: {}", well.out);
    }
    let server = Serving::start(data.path(), &[]);
    let running = run(data.path(), &["doctor"]).out;
    assert!(running.contains(&format!("runs at {}", server.url)), "{running}");
    drop(server);
    let left = run(data.path(), &["doctor"]).out;
    assert!(left.contains("was killed: it left"), "a killed server left its notes: {left}");
    let nowhere = ["doctor", "--set", "database.url=postgres://nobody@127.0.0.1:1/none"];
    let ill = run(data.path(), &[&nowhere[..], &free].concat());
    assert!(ill.code == 1 && ill.out.contains("BAD  database"), "{}{}", ill.out, ill.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_looks_at_a_cluster_and_at_a_copy_that_is_not_finished() {
    let Some(redis) = std::env::var("COLINK_TEST_REDIS").ok().filter(|_| postgres_is_there()) else { return };
    let (data, url) = (tempfile::tempdir().unwrap(), new_postgres_database().await);
    let (database, name) = (format!("database.url={url}"), format!("cluster.name=doctor-{}", std::process::id()));
    let doctor = |redis: &str| {
        let redis = format!("cluster.redis={redis}");
        let set = ["--set", &database, "--set", &redis, "--set", &name, "--set", "server.listen=127.0.0.1:0"];
        run(data.path(), &[&["doctor"][..], &set].concat())
    };
    let well = doctor(&redis);
    assert!(well.code == 0 && well.out.contains("ok   redis"), "{}{}", well.out, well.err);
    assert!(well.out.lines().any(|line| line.starts_with("ok   nodes") && line.ends_with("none runs")), "{}", well.out);

    let place = tempfile::tempdir().unwrap();
    let redis = format!("cluster.redis={redis}");
    let _node = Serving::start(
        place.path(),
        &["--set", &database, "--set", &redis, "--set", &name, "--set", "cluster.node=hub-1"],
    );
    let alone = doctor("redis://127.0.0.1:1");
    assert!(alone.code == 0 && alone.out.contains("weak redis"), "{}{}", alone.out, alone.err);
    let version = env!("CARGO_PKG_VERSION");
    assert!(alone.out.contains(&format!("hub-1 {version}")), "{}", alone.out);

    let copied = new_postgres_database().await;
    assert_eq!(run(data.path(), &["store", "copy", "--from", &url, "--to", &copied]).code, 0);
    let copy =
        run(data.path(), &["doctor", "--set", &format!("database.url={copied}"), "--set", "server.listen=127.0.0.1:0"]);
    assert!(copy.code == 1 && copy.out.contains("a copy that is not finished"), "{}{}", copy.out, copy.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_status_prints_every_node_with_how_it_stands() {
    let alone = tempfile::tempdir().unwrap();
    let nobody = run(alone.path(), &["cluster", "status"]);
    assert!(nobody.code == 1 && nobody.err.contains("no server runs on "), "{}", nobody.err);
    let _server = Serving::start(alone.path(), &[]);
    let itself = run(alone.path(), &["cluster", "status"]);
    assert!(itself.code == 0 && itself.out.contains(" is a server by itself\n"), "{}{}", itself.out, itself.err);

    let Some(redis) = std::env::var("COLINK_TEST_REDIS").ok().filter(|_| postgres_is_there()) else { return };
    let (database, redis) =
        (format!("database.url={}", new_postgres_database().await), format!("cluster.redis={redis}"));
    let name = format!("cluster.name=status-{}", std::process::id());
    let node = |place: &Path, named: &str| {
        let named = format!("cluster.node={named}");
        Serving::start(place, &["--set", &database, "--set", &redis, "--set", &name, "--set", &named])
    };
    let (place, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (node(place.path(), "hub-1"), node(other.path(), "hub-2"));
    // What a node says of itself stands in the database every two seconds.
    let states = || {
        let status = run_json(place.path(), &["cluster", "status"]);
        assert_eq!((&status["node"], &status["clustered"]), (&json!("hub-1"), &json!(true)));
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().map(|node| format!("{} {}", node["name"], node["state"])).collect::<Vec<_>>().join(", ")
    };
    let both = r#""hub-1" "this", "hub-2" "up""#;
    eventually("both nodes to be up", || async { states() == both }).await;

    // A channel that somebody writes to has an owner.
    assert_eq!(run(place.path(), &["user", "add", "ana", "--admin"]).code, 0);
    let token = run_json(place.path(), &["token", "add", "--user", "ana"]);
    let ana = Http::new(&first.url, token["token"].as_str());
    let room = ana.post("/v1/channels", &json!({"kind": "public", "name": "room"})).await.good();
    let messages = format!("/v1/channels/{}/messages", room["id"].as_str().unwrap());
    ana.post(&messages, &json!({"text": "hi"})).await.good();

    let Said { code, out, err } = run(place.path(), &["cluster", "status"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let mut lines = out.lines();
    assert_eq!(lines.next(), Some("hub-1 is a node of a cluster"), "{out}");
    let header = lines.find(|line| line.starts_with("node")).unwrap();
    let rows: Vec<&str> = lines.take(2).collect();
    // Returns what a row has in a column that is set to the right.
    let cell = |row: usize, column: &str| {
        let end = header.find(column).unwrap() + column.len();
        rows[row][..end].rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert!(rows[0].starts_with("hub-1  this  ") && rows[1].starts_with("hub-2  up  "), "{out}");
    let owned = [cell(0, "channels"), cell(1, "channels")];
    assert_eq!(owned.iter().sum::<u64>(), 1, "{out}");
    assert_eq!(cell(owned.iter().position(|n| *n == 1).unwrap(), "epoch"), 1, "{out}");
    for column in ["sessions", "taken over", "fenced", "forwarded", "beside", "repaired"] {
        let known = [cell(0, column), cell(1, column)];
        assert!(known.iter().all(|n| *n <= 1), "{column}: {known:?}\n{out}");
    }

    assert_eq!(second.stop("-KILL"), None);
    eventually("the node to be told of as it stands", || async { states() != both }).await;
}

#[test]
fn health_asks_the_server_that_runs() {
    let data = tempfile::tempdir().unwrap();
    let nobody = run(data.path(), &["health"]);
    assert!(nobody.code == 1 && nobody.err.contains("no server runs on "), "{}", nobody.err);

    let server = Serving::start(data.path(), &[]);
    let well = run(data.path(), &["health"]);
    assert_eq!((well.code, well.out.trim()), (0, r#"{"status":"ok"}"#), "{}", well.err);
    let ready = run(data.path(), &["health", "--ready"]);
    assert!(ready.code == 0 && ready.out.contains(r#""ready":true"#), "{}{}", ready.out, ready.err);

    server.signal("-STOP");
    let stuck = run(data.path(), &["health"]);
    assert!(stuck.code == 1 && stuck.err.contains("took too long"), "{}", stuck.err);
    server.signal("-CONT");
    assert_eq!(server.stop("-TERM"), Some(0));
    assert_eq!(run(data.path(), &["health"]).code, 1);
}

#[test]
fn a_long_migration_shows_on_a_terminal_that_it_goes_on_and_in_a_pipe_nothing() {
    let data = tempfile::tempdir().unwrap();
    let (mut terminal, screen) = terminal();
    let done = colink(data.path(), &["migrate"]).env("TERM", "xterm").stderr(screen).output().unwrap();
    assert!(done.status.success());
    // Reading a terminal that nobody has open any more ends with an error.
    let mut shown = Vec::new();
    let _ = terminal.read_to_end(&mut shown);
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("bringing the schema up to date"), "{shown:?}");
    let Said { code, err, .. } = run(data.path(), &["migrate"]);
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn a_server_that_was_killed_starts_again() {
    let data = tempfile::tempdir().unwrap();
    let first = Serving::start(data.path(), &[]);
    assert_eq!(first.stop("-KILL"), None);
    assert!(data.path().join("running.json").exists());
    assert_eq!(run(data.path(), &["user", "add", "ana"]).code, 0, "its notes do not count without its lock");
    assert_eq!(Serving::start(data.path(), &[]).stop("-TERM"), Some(0));
}

#[test]
fn commands_on_a_stopped_server_wait_for_each_other() {
    let data = tempfile::tempdir().unwrap();
    assert_eq!(Serving::start(data.path(), &[]).stop("-KILL"), None);
    assert!(data.path().join("running.json").exists(), "what it left would lead them astray");
    let names = ["ana", "bob", "cleo", "dan"];
    let start = |name: &&str| {
        colink(data.path(), &["user", "add", name]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let commands: Vec<Child> = names.iter().map(start).collect();
    for command in commands {
        let said = said(command.wait_with_output().unwrap());
        assert_eq!(said.code, 0, "{}", said.err);
    }
    assert_eq!(run(data.path(), &["user", "list"]).out.lines().count(), names.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_waits_for_a_command_that_has_its_data() {
    let data = tempfile::tempdir().unwrap();
    let args = ["user", "add", "ana", "--admin", "--password-stdin"];
    let mut command = Running(colink(data.path(), &args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    eventually("the command to have the data", || async {
        File::open(data.path().join("colink.lock")).is_ok_and(|file| file.try_lock().is_err())
    })
    .await;
    let mut child =
        Running(Serving::command(data.path(), &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    heard(&lines(child.0.stderr.take().unwrap()), "waiting");
    command.0.stdin.take().unwrap().write_all(b"long enough").unwrap();
    assert!(command.0.wait().unwrap().success());
    heard(&lines(child.0.stdout.take().unwrap()), "listens on http://");
    assert!(run(data.path(), &["user", "list"]).out.contains("ana"));
}

/// A chat through pipes.
struct Chat {
    child: Running,
    lines: mpsc::Receiver<String>,
}

impl Chat {
    fn start(data: &Path, token: &str, more: &[&str]) -> Chat {
        let args = [&["chat", "--channel", "general", "--data", data.to_str().unwrap()][..], more].concat();
        let mut command = bare(data, &args);
        command.env("COLINK_TOKEN", token).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        Chat { child: Running(child), lines }
    }

    fn say(&mut self, text: &str) {
        writeln!(self.child.0.stdin.as_mut().unwrap(), "{text}").unwrap();
    }

    /// Ends the input and waits for the end.
    fn end(mut self) -> Option<i32> {
        drop(self.child.0.stdin.take());
        while self.lines.recv_timeout(LIMIT).is_ok() {}
        self.child.0.wait().unwrap().code()
    }
}

#[test]
fn two_people_talk_through_pipes() {
    let data = tempfile::tempdir().unwrap();
    let server = Serving::start(data.path(), &[]);
    let token = |name: &str| {
        run_json(data.path(), &["user", "add", name, "--admin"]);
        run_json(data.path(), &["token", "add", "--user", name])["token"].as_str().unwrap().to_owned()
    };
    let tokens = ["ana", "bob"].map(token);
    run_json(data.path(), &["channel", "add", "general", "--member", "ana"]);
    let mut bob = Chat::start(data.path(), &tokens[1], &["--follow"]);
    bob.say("anybody here?");
    heard(&bob.lines, "bob: anybody here?");

    let mut ana = Chat::start(data.path(), &tokens[0], &[]);
    ana.say("hi bob");
    ana.say("and bye");
    heard(&ana.lines, "ana: hi bob");
    heard(&bob.lines, "ana: hi bob");
    heard(&bob.lines, "ana: and bye");
    bob.say("bye");
    heard(&ana.lines, "bob: bye");
    assert_eq!(ana.end(), Some(0));

    let mut words = bare(data.path(), &["chat", "--channel", "@ana", "--url", &server.url]);
    let mut quick = words.env("COLINK_TOKEN", &tokens[1]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    quick.stdin.take().unwrap().write_all(b"only you\n").unwrap();
    let quick = said(quick.wait_with_output().unwrap());
    assert_eq!((quick.code, quick.out.as_str()), (0, "bob: only you\n"), "{}", quick.err);
}

#[test]
fn a_load_is_measured_whole_on_a_server_of_its_own_whatever_surrounds_it() {
    let place = tempfile::tempdir().unwrap();
    let real = |name: &str| format!("sqlite://{}", place.path().join(name).display());
    let config = format!("[database]\nurl = \"{}\"\n", real("file.db"));
    std::fs::write(place.path().join("config.toml"), config).unwrap();
    let words = "load --duration 0.5 --warm-up 0.2 --members 5 --senders 2 --rooms 2 --room-members 3 --rate 100 \
                 --connections 20 --messages 60 --readers 2 --clients 6 --missed 4 --corpus 200 --corpus-rooms 4 --seen-rooms 2 \
                 --dir data --json report.json";
    let words: Vec<&str> = words.split_whitespace().collect();
    std::fs::create_dir(place.path().join("data")).unwrap();
    let run = said(bare(place.path(), &words).env("COLINK_DATABASE__URL", real("env.db")).output().unwrap());
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    for name in ["file.db", "env.db"] {
        assert!(!place.path().join(name).exists(), "{name} is somebody else's");
    }
    assert_eq!(std::fs::read_dir(place.path().join("data")).unwrap().count(), 0, "nothing is left behind");

    let report: Value = serde_json::from_slice(&std::fs::read(place.path().join("report.json")).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 16);
    for row in rows {
        for fault in ["lost", "duplicates", "out_of_order"] {
            assert_eq!(row[fault], 0, "{row:#}");
        }
    }
    let row = |scenario: &str| {
        rows.iter().find(|row| row["scenario"].as_str().unwrap().starts_with(scenario)).expect("every scenario runs")
    };
    for scenario in ["fanout", "rooms"] {
        let row = row(scenario);
        assert!(row["receive"]["count"].as_i64().unwrap() > 0 && row["ack"]["count"].as_i64().unwrap() > 0, "{row:#}");
        for figure in [
            "commit_to_socket_p50_ms",
            "commit_to_socket_p99_ms",
            "cpu_s_per_1000",
            "cpu_ms_per_message",
            "floor_cpu_s_per_1000",
            "times_floor",
        ] {
            assert!(row[figure].is_number(), "{figure}: {row:#}");
        }
    }
    assert!(row("idle")["kib_per_connection"].is_number(), "{:#}", row("idle"));
    for (scenario, figure) in [
        ("idle", "cpu_percent_at_rest"),
        ("ack", "times_fdatasync"),
        ("history", "cpu_ms_per_request"),
        ("reconnect", "cpu_ms_per_client"),
    ] {
        assert!(row(scenario)["figures"][figure].is_number(), "{figure}: {:#}", row(scenario));
    }
}

#[test]
fn the_password_of_a_database_is_never_shown() {
    let data = tempfile::tempdir().unwrap();
    for args in [&["config", "check"][..], &["doctor"], &["migrate"]] {
        let url = "database.url=postgres://hub:hunter2@127.0.0.1:1/none";
        let Said { out, err, .. } = run(data.path(), &[args, &["--set", url]].concat());
        assert!(!format!("{out}{err}").contains("hunter2"), "{args:?}: {out}{err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_waits_for_its_clients_stops_at_once_when_told_again() {
    let data = tempfile::tempdir().unwrap();
    let server = Serving::start(data.path(), &["--set", "server.drain_s=600"]);
    run_json(data.path(), &["user", "add", "ana"]);
    let token = run_json(data.path(), &["token", "add", "--user", "ana"])["token"].as_str().unwrap().to_owned();
    let mut screen = Socket::open(&server.url, &[]).await;
    screen.next().await;
    screen.identifies(&token).await;
    server.signal("-TERM");
    let reconnect = screen.until("reconnect").await;
    assert!(reconnect["d"]["after_ms"].as_i64().unwrap() < 300_000, "{reconnect}");
    assert_eq!(server.stop("-TERM"), Some(1));
}
