//! A disk with room for what is on it and no more: a file system in memory whose size is set to what is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use colink::client::{Client, Error, Window};
use colink::domain::command::SendMessage;

use crate::Bench;
use crate::checker::Attempted;
use crate::figures::{Figures, Goal, Span};
use crate::load::{LIMIT, World};
use crate::rows::{NONE, wait};
use crate::sending::{answer_of, post};
use crate::spaces::{Kind, Space, run, script};

/// So much room a disk has that is not full: a limit, and nothing that is taken from the machine.
const ROOM: &str = "4g";

/// A disk that may be full.
pub(crate) struct Disk {
    pub(crate) space: Arc<Space>,
    /// Where it is, for who is in its space.
    pub(crate) dir: PathBuf,
}

impl Disk {
    /// Makes one below a directory. An error says why there is none.
    pub(crate) async fn new(below: &Path, name: &str) -> Result<Disk, String> {
        let dir = below.join(name);
        fs::create_dir_all(&dir).unwrap();
        let mount = format!("mount -t tmpfs -o size={ROOM},mode=755 none {}", dir.display());
        let space = Space::new(Kind::Mount, &mount, &below.join(format!("{name}.log"))).await?;
        Ok(Disk { space: Arc::new(space), dir })
    }

    /// Where it is, for everybody else.
    pub(crate) fn seen_from_outside(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.space.holder());
        Path::new(&root).join(self.dir.strip_prefix("/").expect("it is absolute"))
    }

    /// Leaves no room for anything more. What is written at that moment may make it take more than one try.
    pub(crate) fn fill(&self) {
        let full = |used: u64| format!("mount -o remount,size={used} {}", self.dir.display());
        let deadline = Instant::now() + LIMIT;
        loop {
            let about = rustix::fs::statvfs(self.seen_from_outside()).unwrap();
            let used = (about.f_blocks - about.f_bfree) * about.f_frsize;
            if self.space.enter(&script(&full(used))).output().unwrap().status.success() {
                return;
            }
            assert!(Instant::now() < deadline, "the disk cannot be filled");
        }
    }

    /// Leaves room again.
    pub(crate) fn make_room(&self) {
        run(self.space.enter(&script(&format!("mount -o remount,size={ROOM} {}", self.dir.display()))));
    }
}

/// Sends to a node until it says that there is no room; an error is what it said instead.
async fn is_refused(world: &World, url: &str) -> Result<(), String> {
    let (me, channel, deadline) = (&world.people[0], world.rooms[0].id, Instant::now() + Duration::from_secs(5));
    while Instant::now() < deadline {
        let key = world.key(&me.name);
        let text = format!("{key} - - {}", "x".repeat(20_000));
        let send =
            SendMessage { channel_id: channel, text, client_msg_id: None, thread_seq: None, also_in_channel: false };
        let result = post(url, &me.token, &send, LIMIT).await;
        world.note(|| format!("{key} at {url}: {result:?}"));
        let said = match &result {
            Ok(_) => None,
            Err(Error::Refused { code, status: Some(503), message, .. })
                if code == "unavailable" && message.contains("no room") =>
            {
                Some(Ok(()))
            }
            Err(error) => Some(Err(error.to_string())),
        };
        let answers = vec![answer_of(result)];
        world.record(|record| record.attempted.push(Attempted { author: me.id, channel, key, answers }));
        if let Some(said) = said {
            return said;
        }
    }
    Err("nothing".to_owned())
}

/// The disk is full for a while: nothing can be written, everything can be read.
async fn without_room(bench: &Bench, world: &Arc<World>, disk: &Disk) -> Figures {
    wait(0.5).await;
    let began = Instant::now();
    disk.fill();
    let (mut clear, mut unclear, mut unread) = (0, 0, 0);
    for node in &bench.nodes {
        match is_refused(world, &node.url).await {
            Ok(()) => clear += 1,
            Err(said) => {
                eprintln!("  {} says without room: {said}", node.name);
                unclear += 1;
            }
        }
    }
    wait(bench.stretch(1.5, 10.0)).await;
    for node in &bench.nodes {
        for room in &world.rooms {
            let client = Client::new(&node.url).unwrap().with_token(&world.people[1].token).with_timeout(LIMIT);
            unread += usize::from(client.messages(room.id, Window::Newest, 50).await.is_err());
            unread += usize::from(client.events_page(room.id, 0, 50).await.is_err());
        }
    }
    let full = Span::since(began);
    disk.make_room();
    let room = Instant::now();
    wait(bench.stretch(2.0, 5.0)).await;

    let mut figures = Figures::default();
    world.record(|record| {
        figures.count("refused clearly", clear, Goal::Exactly(bench.nodes.len() as f64));
        figures.count("refused otherwise", unclear, NONE);
        let calls = record.calls(full);
        figures.count("sends refused", calls.iter().filter(|call| !call.ok).count(), Goal::AtLeast(1.0));
        figures.time("longest call", calls.iter().map(|call| call.took).max(), 3.0);
        figures.count("reads that failed", unread, NONE);
        figures.count("sockets closed", record.ended(Span { from: full.from, to: Instant::now() }), NONE);
        figures.time("writes back everywhere", world.written_everywhere(record, room), 3.0);
    });
    figures
}

/// The disk below Postgres' tables is full. Its log is elsewhere, as is usual: where that is full, Postgres stops itself.
pub(crate) async fn full_below_postgres(bench: &mut Bench, world: &Arc<World>) -> Figures {
    let disk = match Disk::new(bench.dir.path(), "small").await {
        Ok(disk) => disk,
        Err(why) => {
            eprintln!("skipped: no disk of a known size here: {why}");
            return Figures::default();
        }
    };
    bench.postgres.move_to(Some(&disk)).await;
    let figures = without_room(bench, world, &disk).await;
    bench.postgres.move_to(None).await;
    figures
}

/// The disk below SQLite is full, with all that belongs to it.
pub(crate) async fn full_below_sqlite(bench: &Bench, world: &Arc<World>) -> Figures {
    match &bench.disk {
        Some(disk) => without_room(bench, world, disk).await,
        None => Figures::default(),
    }
}
