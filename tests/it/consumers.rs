//! Who follows the log has everything once at least and in order, whatever is lost, refused or taken over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use colink::bus::memory::Network;
use colink::clock::Clock;
use colink::consumers::follow::{Follower, Ground, TRIES, follow};
use colink::consumers::{Consumer, Trouble};
use colink::domain::event::Event;
use colink::domain::id::StreamId;
use colink::storage::accounts::{Account, SYSTEM};
use colink::storage::consumers::dead_letters;
use colink::storage::events;
use colink::storage::writer::Work;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::binary::{run, run_json};
use crate::world::{World, eventually, new_postgres_database, on_both, postgres_is_there};

/// What was given, by all who ran as one consumer.
type Given = Arc<Mutex<Vec<Event>>>;

/// Writes down what it is given.
#[derive(Clone, Default)]
struct Notes {
    given: Given,
    /// It takes nothing.
    is_down: Arc<AtomicBool>,
    /// It panics the next time.
    panics: Arc<AtomicBool>,
    /// It cannot take events with this in them.
    poison: Arc<Mutex<&'static str>>,
    tries: Arc<AtomicUsize>,
}

impl Consumer for Notes {
    const NAME: &'static str = "notes";

    async fn consume(&mut self, events: &[Event]) -> Result<(), Trouble> {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "told to");
        if self.is_down.load(Ordering::SeqCst) {
            self.tries.fetch_add(1, Ordering::SeqCst);
            return Err(Trouble::Down("told to".to_owned()));
        }
        let poison = *self.poison.lock().unwrap();
        if let Some(at) = events.iter().position(|event| !poison.is_empty() && event.payload.contains(poison)) {
            self.tries.fetch_add(1, Ordering::SeqCst);
            return Err(Trouble::Event { at, why: "poison".to_owned() });
        }
        self.given.lock().unwrap().extend_from_slice(events);
        Ok(())
    }
}

/// What a consumer did that keeps its places itself: what it has in hand, and what is sure to last.
#[derive(Clone, Default)]
struct Local {
    hand: Given,
    kept: Given,
    places: Arc<Mutex<HashMap<StreamId, i64>>>,
    /// It fails once, and what it has in hand is gone.
    fails: Arc<AtomicBool>,
}

impl Consumer for Local {
    const NAME: &'static str = "local";
    const IS_LOCAL: bool = true;
    const OF_CHANNELS: bool = true;
    const KEEP_EVERY: Duration = Duration::from_millis(200);

    async fn begin(&mut self) -> Result<Vec<(StreamId, i64)>, Trouble> {
        self.hand.lock().unwrap().clear();
        Ok(self.places.lock().unwrap().clone().into_iter().collect())
    }

    async fn consume(&mut self, events: &[Event]) -> Result<(), Trouble> {
        if self.fails.swap(false, Ordering::SeqCst) {
            return Err(Trouble::Down("told to".to_owned()));
        }
        self.hand.lock().unwrap().extend_from_slice(events);
        Ok(())
    }

    async fn keep(&mut self, places: &[(StreamId, i64)]) -> Result<(), Trouble> {
        if self.fails.swap(false, Ordering::SeqCst) {
            return Err(Trouble::Down("told to".to_owned()));
        }
        self.kept.lock().unwrap().append(&mut self.hand.lock().unwrap());
        self.places.lock().unwrap().extend(places.iter().copied());
        Ok(())
    }
}

#[tokio::test]
async fn who_keeps_its_places_itself_begins_there_after_a_failure() {
    let world = World::start().await;
    let ana = world.user("ana").await;
    let room = world.channel("general", &[&ana]).await;
    let local = Local::default();
    let runs = Runs::of(&world, &local);
    for n in 0..12 {
        ana.says(room, &format!("message {n}")).await;
        let mut db = world.app().hub.store.read().await.unwrap();
        runs.follower.tell(&events::after(&mut db, room.into(), 0, 1_000).await.unwrap());
        // Before something is given, and while something is in hand.
        local.fails.store(n % 3 == 1, Ordering::SeqCst);
    }
    let is_kept = async || local.kept.lock().unwrap().iter().any(|event| event.payload.contains("message 11"));
    eventually("the last message is kept", is_kept).await;
    runs.ends().await;
    let stored: Vec<_> = stored(&world).await.into_iter().filter(|(stream, _)| *stream == room.into()).collect();
    let mut kept: Vec<_> = local.kept.lock().unwrap().iter().map(|event| (event.stream, event.seq)).collect();
    kept.sort_unstable();
    assert_eq!(kept, stored, "of channels alone, each once: what it did is kept with how far it is");
}

/// A consumer that runs.
struct Runs {
    follower: Arc<Follower>,
    here: Arc<AtomicBool>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Runs {
    /// Starts it on a node; it is told nothing of what is committed unless somebody does.
    fn on(world: &World, notes: &Notes) -> Runs {
        Runs::of(world, notes)
    }

    fn of<C: Consumer + Clone>(world: &World, consumer: &C) -> Runs {
        let hub = &world.app().hub;
        let (here, stop) = (Arc::new(AtomicBool::new(true)), CancellationToken::new());
        let says = here.clone();
        let ground = Ground {
            store: hub.store.clone(),
            writer: hub.writer.clone(),
            clock: hub.clock.clone(),
            runs_here: Arc::new(move |_| says.load(Ordering::SeqCst)),
            is_degraded: Arc::new(|| true),
        };
        let follower = Follower::of::<C>();
        let task = tokio::spawn(follow(ground, follower.clone(), consumer.clone(), stop.clone()));
        Runs { follower, here, stop, task }
    }

    async fn ends(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Returns everything that is stored.
async fn stored(world: &World) -> Vec<(StreamId, i64)> {
    let hub = &world.app().hub;
    let mut db = hub.store.read().await.unwrap();
    let mut all = Vec::new();
    let mut streams = vec![StreamId::WORKSPACE];
    // Of every stream there is an event in somebody's own, or it is somebody's own.
    let mut at = 0;
    while let Some(stream) = streams.get(at).copied() {
        at += 1;
        for event in events::after(&mut db, stream, 0, 100_000).await.unwrap() {
            all.push((stream, event.seq));
            let payload: serde_json::Value = serde_json::from_str(&event.payload).unwrap();
            let named = match event.kind.as_str() {
                "user.created" => payload["id"].as_str(),
                "user.channel_added" => payload["channel_id"].as_str(),
                _ => None,
            };
            let named = named.map(|id| StreamId(id.parse().unwrap()));
            streams.extend(named.filter(|named| !streams.contains(named)));
        }
    }
    all.sort_unstable();
    all
}

/// Checks that all was given, each stream's in order: what was given again comes from where a place was kept before.
fn is_all_in_order(given: &[Event], stored: &[(StreamId, i64)]) {
    let mut last = HashMap::new();
    for event in given {
        let last = last.entry(event.stream).or_insert(0);
        assert!(event.seq <= *last + 1, "{} jumps from {last} to {}", event.stream, event.seq);
        *last = event.seq;
    }
    let mut given: Vec<_> = given.iter().map(|event| (event.stream, event.seq)).collect();
    given.sort_unstable();
    given.dedup();
    assert_eq!(given, stored);
}

/// Waits until all that is stored was given.
async fn catches_up(world: &World, notes: &Notes) {
    let stored = stored(world).await;
    eventually("all to be given", || async {
        let given = notes.given.lock().unwrap();
        stored.iter().all(|(stream, seq)| given.iter().any(|event| (event.stream, event.seq) == (*stream, *seq)))
    })
    .await;
    is_all_in_order(&notes.given.lock().unwrap(), &stored);
}

on_both! {
    a_consumer_goes_on_where_it_was(database) {
        let world = World::on(database, |_| ()).await;
        let (ana, bob) = (world.user("ana").await, world.user("bob").await);
        let room = world.channel("room", &[&ana, &bob]).await;
        for n in 0..50 {
            ana.says(room, &format!("{n}")).await;
        }
        let notes = Notes::default();
        let runs = Runs::on(&world, &notes);
        catches_up(&world, &notes).await;
        // What is told comes at once; what is not is found.
        let told = runs.follower.clone();
        let _ = world.app().hub.on_events.set(Box::new(move |events| told.tell(events)));
        for n in 50..100 {
            bob.says(room, &format!("{n}")).await;
        }
        catches_up(&world, &notes).await;
        runs.ends().await;

        let before = notes.given.lock().unwrap().len();
        notes.panics.store(true, Ordering::SeqCst);
        bob.replies(room, ana.says(room, "and then").await, "what?").await;
        let runs = Runs::on(&world, &notes);
        catches_up(&world, &notes).await;
        assert!(!notes.panics.load(Ordering::SeqCst), "it was started again behind a panic");
        runs.ends().await;
        let again = notes.given.lock().unwrap().len() - before;
        assert!(again < 20, "it stopped in order, and was given {again} events");
    }

    what_cannot_be_taken_is_put_aside_and_the_rest_goes_on(database) {
        let world = World::on(database, |_| ()).await;
        let ana = world.user("ana").await;
        let room = world.channel("room", &[&ana]).await;
        let notes = Notes::default();
        *notes.poison.lock().unwrap() = "strychnine";
        ana.says(room, "before").await;
        let bad = ana.says(room, "a glass of strychnine").await;
        let last = ana.says(room, "behind").await;
        let runs = Runs::on(&world, &notes);
        eventually("the rest to be given", || async {
            notes.given.lock().unwrap().iter().any(|event| event.stream == room.into() && event.seq == last)
        })
        .await;
        assert_eq!(notes.tries.load(Ordering::SeqCst), TRIES as usize);
        let given: Vec<_> = notes.given.lock().unwrap().iter().map(|event| (event.stream, event.seq)).collect();
        let mut expected = stored(&world).await;
        expected.retain(|event| *event != (room.into(), bad));
        assert_eq!(given.iter().filter(|event| **event == (room.into(), bad)).count(), 0);
        assert!(expected.iter().all(|event| given.contains(event)));
        let mut db = world.app().hub.store.read().await.unwrap();
        let dead = dead_letters(&mut db, Some("notes"), 10).await.unwrap();
        let dead: Vec<_> = dead.iter().map(|d| (&*d.consumer, d.stream_id, d.seq, &*d.reason, d.tries)).collect();
        assert_eq!(dead, [("notes", room.into(), bad, "poison", i64::from(TRIES))]);

        // It is no use to try again, until it is.
        let hub = &world.app().hub;
        let redrive = async || {
            let work = Account::Redrive { consumer: None, event: Some((room.into(), bad)) };
            assert_eq!(hub.writer.write(SYSTEM, Work::Account(work), None).await.unwrap().json, "1");
        };
        redrive().await;
        eventually("it to be tried again", || async { notes.tries.load(Ordering::SeqCst) > TRIES as usize }).await;
        eventually("it to be put aside again", || async {
            let dead = dead_letters(&mut hub.store.read().await.unwrap(), None, 10).await.unwrap();
            (dead[0].tries, dead[0].again) == (i64::from(TRIES) + 1, false)
        })
        .await;
        *notes.poison.lock().unwrap() = "";
        redrive().await;
        eventually("it to be taken", || async {
            dead_letters(&mut hub.store.read().await.unwrap(), None, 10).await.unwrap().is_empty()
        })
        .await;
        assert!(notes.given.lock().unwrap().iter().any(|event| (event.stream, event.seq) == (room.into(), bad)));
        drop(db);
        runs.ends().await;
    }

    who_is_down_is_waited_for(database) {
        let world = World::on(database, |_| ()).await;
        let ana = world.user("ana").await;
        let room = world.channel("room", &[&ana]).await;
        let notes = Notes::default();
        notes.is_down.store(true, Ordering::SeqCst);
        let runs = Runs::on(&world, &notes);
        eventually("it to be tried more often than an event is", || async {
            ana.says(room, "still there").await;
            notes.tries.load(Ordering::SeqCst) > TRIES as usize
        })
        .await;
        let mut db = world.app().hub.store.read().await.unwrap();
        assert!(dead_letters(&mut db, None, 10).await.unwrap().is_empty());
        drop(db);
        notes.is_down.store(false, Ordering::SeqCst);
        catches_up(&world, &notes).await;
        runs.ends().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_nodes_commit_is_found_though_nobody_tells() {
    if !postgres_is_there() {
        return;
    }
    let database = new_postgres_database().await;
    let apart = |name: &'static str| {
        let database = database.clone();
        async move {
            let named = |config: &mut colink::config::Config| config.cluster.node = name.to_owned();
            World::joins(&database, &Network::default(), Clock::default(), named).await
        }
    };
    let (one, other) = (apart("one").await, apart("other").await);
    let ana = one.user("ana").await;
    let room = one.channel("room", &[&ana]).await;
    let notes = Notes::default();
    let (here, there) = (Runs::on(&one, &notes), Runs::on(&other, &notes));
    // Both take themselves for the one, then neither, then one: whatever they do to each other, nothing is passed over.
    let others = ana.at(&other);
    for n in 0..60 {
        tokio::join!(ana.says(room, "here"), others.says(room, "there"));
        here.here.store(n % 20 < 10, Ordering::SeqCst);
        there.here.store(n % 30 < 20, Ordering::SeqCst);
    }
    here.here.store(false, Ordering::SeqCst);
    there.here.store(true, Ordering::SeqCst);
    let stored = stored(&one).await;
    eventually("all to be given", || async {
        let given = notes.given.lock().unwrap();
        stored.iter().all(|(stream, seq)| given.iter().any(|event| (event.stream, event.seq) == (*stream, *seq)))
    })
    .await;
    here.ends().await;
    there.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_sees_what_was_put_aside_and_has_it_tried_again() {
    let mut world = World::start().await;
    let ana = world.user("ana").await;
    let room = world.channel("room", &[&ana]).await;
    let bad = ana.says(room, "a glass of strychnine").await;
    let notes = Notes::default();
    *notes.poison.lock().unwrap() = "strychnine";
    let runs = Runs::on(&world, &notes);
    let data = world.app().hub.config.server.data.clone();
    let listed = || run_json(&data, &["dlq", "list", "--consumer", "notes"]);
    eventually("it to be put aside", || async { tokio::task::block_in_place(listed) != json!([]) }).await;
    let dead = tokio::task::block_in_place(listed);
    assert_eq!((&dead[0]["stream_id"], &dead[0]["seq"]), (&json!(room), &json!(bad)));
    assert_eq!((&dead[0]["reason"], &dead[0]["tries"]), (&json!("poison"), &json!(TRIES)));
    tokio::task::block_in_place(|| {
        let shown = run(&data, &["dlq", "list"]);
        assert!(shown.code == 0 && shown.out.contains(&room.to_string()) && shown.out.contains("poison"), "{shown:?}");
        let other = run(&data, &["dlq", "redrive", &room.to_string(), "99"]);
        assert!(other.code == 1 && other.err.contains("was not put aside"), "{other:?}");
        *notes.poison.lock().unwrap() = "";
        let redriven = run(&data, &["dlq", "redrive", &room.to_string(), &bad.to_string()]);
        assert!(redriven.code == 0 && redriven.out.contains("1 event is"), "{redriven:?}");
    });
    eventually("it to be taken", || async { tokio::task::block_in_place(listed) == json!([]) }).await;
    runs.ends().await;
    world.stop().await;
    let nothing = tokio::task::block_in_place(|| run(&data, &["dlq", "redrive", "--all"]));
    assert!(nothing.code == 0 && nothing.out.contains("0 events"), "{nothing:?}");
}
