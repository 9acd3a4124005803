//! `colink dev cluster`: several nodes on one machine, to look at, which leave nothing behind.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;

use serde_json::{Value, json};

use crate::binary::{Running, bare, heard, lines, said};
use crate::http::Http;
use crate::world::{LIMIT, eventually, new_postgres_database, postgres_is_there};

/// A cluster that is shown line by line.
struct Shown {
    child: Running,
    out: mpsc::Receiver<String>,
    /// Where each node is.
    urls: Vec<String>,
    /// Everything that runs.
    processes: Vec<u32>,
}

impl Shown {
    /// Starts three nodes on what `more` says, in `dir`.
    fn start(dir: &Path, more: &[&str]) -> Shown {
        let dir = dir.to_str().unwrap();
        let cheap = ["--set", "auth.argon2_memory_kib=8", "--set", "auth.argon2_iterations=1"];
        let args = [&["dev", "cluster", "--port", "0", "--data-dir", dir], &cheap[..], more].concat();
        let mut command = bare(Path::new("/"), &args);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Running(piped.spawn().unwrap());
        let err = lines(child.0.stderr.take().unwrap());
        let out = lines(child.0.stdout.take().unwrap());
        let mut urls = Vec::new();
        for n in 1..=3 {
            let line = heard(&err, &format!("hub-{n} is at http://"));
            urls.push(line.split_whitespace().last().unwrap().to_owned());
        }
        heard(&err, "a demo team is here");
        let processes = descendants(child.0.id());
        Shown { child, out, urls, processes }
    }

    /// Presses a key.
    fn press(&mut self, key: &str) {
        writeln!(self.child.0.stdin.as_mut().unwrap(), "{key}").unwrap();
    }

    async fn sign_in(&self, node: usize, name: &str) -> Http {
        let login = json!({"name": name, "password": "colink-demo"});
        let signed_in = Http::new(&self.urls[node], None).post("/v1/auth/login", &login).await.good();
        Http::new(&self.urls[node], signed_in["token"].as_str())
    }

    /// Waits until all processes are gone.
    async fn is_gone(&self) {
        assert!(self.processes.len() >= 3, "{:?}", self.processes);
        let runs = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // One that waits for whoever collects it runs no more.
            !stat.is_empty() && !stat.contains(") Z ")
        };
        eventually("all processes to be gone", || async { !self.processes.iter().any(runs) }).await;
    }
}

/// Returns the processes that one started, and those that these started.
fn descendants(of: u32) -> Vec<u32> {
    let mut all = vec![of];
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).and_then(|pid| pid.parse().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut n = 0;
    while let Some(above) = all.get(n).copied() {
        all.extend(parents.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        n += 1;
    }
    all.remove(0);
    all
}

/// Says something at one node and reads it at another.
async fn talks(shown: &Shown, from: usize, to: usize) {
    let (ana, bob) = (shown.sign_in(from, "ana").await, shown.sign_in(to, "bob").await);
    let channels = ana.get("/v1/channels").await.good();
    let general = channels["items"].as_array().unwrap().iter().find(|channel| channel["name"] == "general").unwrap();
    let messages = format!("/v1/channels/{}/messages", general["id"].as_str().unwrap());
    let text = format!("from {from} to {to}");
    ana.post(&messages, &json!({ "text": text })).await.good();
    let read: Value = bob.get(&messages).await.good();
    assert!(read["items"].as_array().unwrap().iter().any(|message| message["text"] == text), "{read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_shown_on_servers_that_run_already_and_survives_the_death_of_a_node() {
    let Some(redis) = std::env::var("COLINK_TEST_REDIS").ok().filter(|_| postgres_is_there()) else { return };
    let (dir, database) = (tempfile::tempdir().unwrap(), new_postgres_database().await);
    let name = format!("cluster.name=dev-{}", std::process::id());
    let given = ["--postgres", &database, "--redis", &redis, "--talk", "20", "--set", &name];
    let mut shown = Shown::start(dir.path(), &given);
    heard(&shown.out, "3 of 3 nodes up");
    talks(&shown, 0, 2).await;
    shown.press("2");
    heard(&shown.out, "hub-2 was killed");
    // Its channels are written to on.
    heard(&shown.out, "channels over");
    talks(&shown, 0, 2).await;
    shown.press("2");
    heard(&shown.out, "hub-2 is up");
    talks(&shown, 2, 1).await;
    shown.press("q");
    while shown.out.recv_timeout(LIMIT).is_ok() {}
    assert!(shown.child.0.wait().unwrap().success());
    shown.is_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_on_services_of_its_own_is_gone_when_it_is_killed_and_goes_on_where_it_was() {
    let postgres = Path::new("/usr/lib/postgresql").exists() && Path::new("/usr/bin/setpriv").exists();
    if !postgres || !Path::new("/usr/bin/redis-server").exists() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    // Postgres, which is another user's for root, has to come through.
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(), readable).unwrap();
    let dir = place.path().join("cluster");
    let mut shown = Shown::start(&dir, &[]);
    heard(&shown.out, "3 of 3 nodes up");
    talks(&shown, 0, 1).await;
    shown.press("r");
    heard(&shown.out, "Redis is down");
    talks(&shown, 1, 2).await;
    shown.press("r");
    heard(&shown.out, "Redis is back");
    shown.child.0.kill().unwrap();
    shown.is_gone().await;

    let shown = Shown::start(&dir, &["--plain"]);
    let ana = shown.sign_in(2, "ana").await;
    let found = ana.get("/v1/channels").await.good();
    let general = found["items"].as_array().unwrap().iter().find(|channel| channel["name"] == "general").unwrap();
    let read = ana.get(&format!("/v1/channels/{}/messages", general["id"].as_str().unwrap())).await.good();
    let texts: Vec<&str> =
        read["items"].as_array().unwrap().iter().filter_map(|message| message["text"].as_str()).collect();
    assert!(texts.contains(&"from 0 to 1") && texts.contains(&"from 1 to 2"), "{texts:?}");
    let pid = shown.child.0.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    shown.is_gone().await;
    assert!(dir.join("hub-1.log").exists(), "what was named is kept");
}

#[test]
fn a_node_that_does_not_start_is_told_of_with_the_end_of_its_log() {
    let place = tempfile::tempdir().unwrap();
    let args = ["dev", "cluster", "--postgres", "mysql://x", "--redis", "redis://127.0.0.1:1", "--port", "0"];
    let none = said(bare(place.path(), &args).env("TMPDIR", place.path()).output().unwrap());
    assert_eq!(none.code, 1);
    assert!(none.err.contains("hub-1 does not start") && none.err.contains("database.url"), "{}", none.err);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "what nobody named is removed");
}
