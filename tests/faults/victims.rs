//! People who are put out of channels and brought back into them, or deactivated, while they go on to listen and to write.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use colink::client::{Error, Event, Gateway, Step};
use colink::domain::command::SendMessage;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::checker::{Answer, Attempted};
use crate::leaks::{Life, Received};
use crate::load::{AGAIN, Ask, PATIENCE, World, listening};
use crate::random::Random;
use crate::sending::{answer_of, post};
use crate::stored::Person;

/// Somebody who is put out of channels and comes back into them, or is deactivated in the end; and goes on to listen and
/// to write all the time.
pub(crate) struct Victim {
    pub(crate) world: Arc<World>,
    pub(crate) me: Person,
    pub(crate) random: Random,
    /// Whether this is the one who is deactivated.
    pub(crate) doomed: bool,
}

impl Victim {
    /// Listens and writes until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Victim { world, me, mut random, doomed } = self;
        let listens = listen(world.clone(), me.clone(), Random::of(random.below(1 << 30) as u64, 1), doomed);
        let writes = write(&world, &me, &mut random, doomed);
        tokio::select! {
            () = stop.cancelled() => {}
            ((), ()) = async { tokio::join!(listens, writes) } => {}
        }
    }
}

async fn write(world: &Arc<World>, me: &Person, random: &mut Random, doomed: bool) {
    loop {
        tokio::time::sleep(Duration::from_millis(50) + random.time_below(Duration::from_millis(150))).await;
        let (key, channel) = (world.key(&me.name), random.pick(&world.rooms).id);
        let text = format!("{key} - -");
        let send =
            SendMessage { channel_id: channel, text, client_msg_id: None, thread_seq: None, also_in_channel: false };
        if doomed && world.deactivated.get().is_some() {
            world.record(|record| record.too_late.push(key.clone()));
        }
        let mut attempted = Attempted { author: me.id, channel, key, answers: vec![Answer::Unknown] };
        let at = world.record(|record| {
            record.attempted.push(attempted.clone());
            record.attempted.len() - 1
        });
        let node = random.below(world.urls.len());
        let answer = answer_of(post(&world.urls[node], &me.token, &send, PATIENCE).await);
        world.note(|| format!("{}: {answer:?}", attempted.key));
        attempted.answers = vec![answer];
        world.record(|record| record.attempted[at] = attempted);
    }
}

async fn listen(world: Arc<World>, me: Person, mut random: Random, doomed: bool) {
    let mut position = None;
    loop {
        let node = random.below(world.urls.len());
        let (url, token) = (&world.urls[node], &me.token);
        let opened = match position.clone() {
            None => Gateway::connect(url, token, listening()).await,
            Some(position) => Gateway::resume_from(url, token, listening(), position).await,
        };
        let mut gateway = match opened {
            Ok(gateway) => gateway,
            Err(error) if doomed && !error.may_come_back() && !matches!(error, Error::Protocol(_)) => return,
            Err(_) => {
                tokio::time::sleep(AGAIN * 2).await;
                continue;
            }
        };
        while let Ok(event) = gateway.next_event().await {
            match gateway.cursors.offer(&event) {
                Step::Apply => received(&world, &me, &event),
                Step::Drop => {}
                Step::Gap { stream, after } => {
                    let read = world.client(node, token).events(stream, after).await.unwrap_or_default();
                    for event in read {
                        if gateway.cursors.offer(&event) == Step::Apply {
                            received(&world, &me, &event);
                        }
                    }
                }
            }
        }
        position = Some(gateway.position());
    }
}

fn received(world: &World, me: &Person, event: &Event) {
    if let (Some(channel), Some(seq)) = (event.channel_id, event.seq) {
        let received = Received { user: me.id, channel, seq, at: world.clock.now().0 };
        world.note(|| format!("{} hears {seq} of {channel}", me.name));
        world.record(|record| record.received.push(received));
    }
}

/// Puts the victims out of channels and brings them back, and deactivates the last of them as soon as something fails.
pub(crate) async fn put_out(world: Arc<World>, mut random: Random, stop: CancellationToken) {
    let (doomed, others) = world.victims.split_last().expect("there are victims");
    let mut inside: HashMap<(usize, usize), bool> = HashMap::new();
    while !stop.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(50) + random.time_below(Duration::from_millis(200))).await;
        if world.deactivated.get().is_none() && world.failing.load(Ordering::Acquire) {
            let path = format!("/v1/users/{}/deactivate", doomed.id);
            if world.insist(&mut random, &stop, &Ask::Post(path, json!({}))).await {
                world.note(|| format!("{} is deactivated", doomed.name));
                let _ = world.deactivated.set((Instant::now(), world.clock.now().0));
            }
        }
        let (who, room) = (random.below(others.len()), random.below(world.rooms.len()));
        let (user, channel) = (others[who].id, world.rooms[room].id);
        let is_in = inside.entry((who, room)).or_insert(true);
        let ask = match *is_in {
            true => Ask::Delete(format!("/v1/channels/{channel}/members/{user}")),
            false => Ask::Post(format!("/v1/channels/{channel}/members"), json!({"user_id": user})),
        };
        if world.insist(&mut random, &stop, &ask).await {
            world.note(|| {
                format!("{} is {} {channel}", others[who].name, if *is_in { "put out of" } else { "back in" })
            });
            *is_in = !*is_in;
        }
    }
}

impl World {
    /// Returns what the check of leaks needs to know of who was deactivated.
    pub(crate) fn life(&self) -> Option<Life> {
        let user = self.victims.last()?.id;
        self.deactivated.get().map(|(_, at)| Life { user, ended: *at })
    }
}
