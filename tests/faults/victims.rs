//! People who are put out of channels and brought back into them, made guests, signed out or deactivated, while they go on to
//! listen and to write.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use colink::client::{Error, Event, Gateway, Step};
use colink::domain::command::SendMessage;
use colink::domain::id::UserId;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::checker::{Answer, Attempted};
use crate::leaks::{GRACE_MICROS, Life, Received};
use crate::load::{AGAIN, Ask, PATIENCE, World, listening};
use crate::random::Random;
use crate::sending::{answer_of, post};
use crate::stored::Person;

/// What becomes of a victim as soon as something fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// They are put out of channels and come back into them, all the time.
    PutOut,
    /// They are a guest from then on, and hear nothing of the workspace any more.
    Guest,
    /// They are signed out.
    SignedOut,
    /// They are deactivated.
    Deactivated,
}

/// One of each fate, and a second one who comes and goes.
pub(crate) const FATES: [Fate; 5] = [Fate::PutOut, Fate::PutOut, Fate::Guest, Fate::SignedOut, Fate::Deactivated];

impl Fate {
    /// Returns whether they cannot do anything any more.
    fn ends(self) -> bool {
        matches!(self, Fate::SignedOut | Fate::Deactivated)
    }

    /// Returns for how many microseconds behind it they may still write; nothing, if they may go on. Whoever writes is looked up
    /// with each write; whose a token is, is believed for `auth.cache_s`.
    fn writes_for(self) -> Option<i64> {
        match self {
            Fate::PutOut | Fate::Guest => None,
            Fate::SignedOut => Some(GRACE_MICROS),
            Fate::Deactivated => Some(0),
        }
    }

    /// Returns how it is brought about; nothing for who comes and goes.
    fn ask(self, victim: &Person) -> Option<Ask> {
        match self {
            Fate::PutOut => None,
            Fate::Guest => Some(Ask::Put(format!("/v1/users/{}/role", victim.id), json!({"role": "guest"}))),
            Fate::SignedOut => Some(Ask::SignOut(victim.token.clone())),
            Fate::Deactivated => Some(Ask::Post(format!("/v1/users/{}/deactivate", victim.id), json!({}))),
        }
    }
}

/// Somebody who goes on to listen and to write, whatever becomes of them.
pub(crate) struct Victim {
    pub(crate) world: Arc<World>,
    pub(crate) me: Person,
    pub(crate) random: Random,
    pub(crate) fate: Fate,
}

impl Victim {
    /// Listens and writes until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Victim { world, me, mut random, fate } = self;
        let listens = listen(world.clone(), me.clone(), Random::of(random.below(1 << 30) as u64, 1), fate);
        let writes = write(&world, &me, &mut random, fate);
        tokio::select! {
            () = stop.cancelled() => {}
            ((), ()) = async { tokio::join!(listens, writes) } => {}
        }
    }
}

async fn write(world: &Arc<World>, me: &Person, random: &mut Random, fate: Fate) {
    loop {
        tokio::time::sleep(Duration::from_millis(50) + random.time_below(Duration::from_millis(150))).await;
        let (key, channel) = (world.key(&me.name), random.pick(&world.rooms).id);
        let text = format!("{key} - -");
        let send =
            SendMessage { channel_id: channel, text, client_msg_id: None, thread_seq: None, also_in_channel: false };
        if let (Some(grace), Some(at)) = (fate.writes_for(), world.changed(me.id))
            && world.clock.now().0 > at + grace
        {
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

async fn listen(world: Arc<World>, me: Person, mut random: Random, fate: Fate) {
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
            Err(error) if fate.ends() && !error.may_come_back() && !matches!(error, Error::Protocol(_)) => return,
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
    } else if event.kind == "user.updated" {
        // The administrator's status says when it was set.
        let data: serde_json::Value = serde_json::from_str(event.data.get()).unwrap_or_default();
        if let Some(said) = data["status"]["text"].as_str().and_then(|text| text.parse().ok()) {
            world.note(|| format!("{} hears of the workspace what was said at {said}", me.name));
            world.record(|record| record.overheard.push((me.id, said)));
        }
    }
}

/// Puts victims out of channels and brings them back, changes the workspace, and brings about everybody's fate as soon as
/// something fails.
pub(crate) async fn put_out(world: Arc<World>, mut random: Random, stop: CancellationToken) {
    let coming_and_going: Vec<&Person> =
        world.victims.iter().zip(FATES).filter(|(_, fate)| *fate == Fate::PutOut).map(|(person, _)| person).collect();
    let mut inside: HashMap<(usize, usize), bool> = HashMap::new();
    while !stop.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(50) + random.time_below(Duration::from_millis(200))).await;
        for (victim, fate) in world.victims.iter().zip(FATES) {
            let due = world.failing.load(Ordering::Acquire) && world.changed(victim.id).is_none();
            if let Some(ask) = fate.ask(victim).filter(|_| due)
                && world.insist(&mut random, &stop, &ask).await
            {
                world.note(|| format!("{}: {fate:?}", victim.name));
                world.changed.lock().unwrap().insert(victim.id, world.clock.now().0);
            }
        }
        if random.once_in(3) {
            let now = world.clock.now().0.to_string();
            world.insist(&mut random, &stop, &Ask::Put("/v1/users/me/status".into(), json!({"text": now}))).await;
        }
        let (who, room) = (random.below(coming_and_going.len()), random.below(world.rooms.len()));
        let (victim, channel) = (coming_and_going[who], world.rooms[room].id);
        let is_in = inside.entry((who, room)).or_insert(true);
        let ask = match *is_in {
            true => Ask::Delete(format!("/v1/channels/{channel}/members/{}", victim.id)),
            false => Ask::Post(format!("/v1/channels/{channel}/members"), json!({"user_id": victim.id})),
        };
        if world.insist(&mut random, &stop, &ask).await {
            world.note(|| format!("{} is {} {channel}", victim.name, if *is_in { "put out of" } else { "back in" }));
            *is_in = !*is_in;
        }
    }
}

impl World {
    /// Returns when it was certain that what was to become of a victim has.
    pub(crate) fn changed(&self, user: UserId) -> Option<i64> {
        self.changed.lock().unwrap().get(&user).copied()
    }

    /// Returns whether what was to become of the victims has.
    pub(crate) fn all_changed(&self) -> bool {
        self.changed.lock().unwrap().len() == FATES.iter().filter(|fate| **fate != Fate::PutOut).count()
    }

    /// Returns what the check of leaks needs to know of who may not hear anything any more, and of who may not hear of the
    /// workspace.
    pub(crate) fn lives(&self) -> (Vec<Life>, Vec<Life>) {
        let of = |ends: bool| {
            let fates = self.victims.iter().zip(FATES).filter(|(_, fate)| *fate == Fate::Guest || fate.ends());
            let mine = fates.filter(|(_, fate)| fate.ends() == ends);
            mine.filter_map(|(victim, _)| Some(Life { user: victim.id, ended: self.changed(victim.id)? })).collect()
        };
        (of(true), of(false))
    }
}
