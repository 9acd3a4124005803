//! One stream's actor: it takes commands for the stream, and fans out what was committed.
//!
//! A channel never waits: not for the store (the writer answers by itself and the events come back as
//! [`ChannelMsg::Committed`]), and not for a session (a full queue sheds). It loads what it needs with its first
//! message, so that starting one costs nothing and a slow database delays one channel alone. [`room`] is its pure core.

pub mod room;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};

use super::Hub;
use super::directory::{Credit, Detour, Slot};
use super::session::SessionHandle;
use super::supervisor::Intensity;
use crate::domain::command::Command;
use crate::domain::error::unavailable;
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ChannelId, StreamId, UserId};
use crate::domain::rate::Buckets;
use crate::protocol::push::{self, Ephemeral};
use crate::storage::writer::{Work, Write};
use crate::storage::{StoreError, channels, events, users};
use room::{Heard, Moves, Room, UNKNOWN};

/// Most events read from the log at once.
const READ_MAX: i64 = 500;

/// What a channel is told.
pub enum ChannelMsg {
    /// Carry out a command.
    Run(Box<Write>),
    /// These events of the stream were committed, in order, at this time.
    Committed {
        /// The events.
        events: Vec<Event>,
        /// When the commit came back.
        at: Instant,
        /// What bounds those of other nodes that wait.
        credit: Option<Credit>,
    },
    /// Let a session hear what is behind this number, and from now on.
    Subscribe(Arc<SessionHandle>, i64),
    /// Tell the others that somebody is typing.
    Typing {
        /// Who.
        user: UserId,
        /// In which thread.
        thread_seq: Option<i64>,
        /// What bounds the notices that wait.
        credit: Credit,
    },
    /// Send what waits.
    Flush,
    /// Deliver what was committed since the last delivery: the actor before this one died.
    Recover,
    /// The same, after it failed a moment ago.
    Retry,
    /// Stop, if there is nothing to do.
    StopIfIdle,
    /// Say how it is.
    #[cfg(test)]
    Stats(ractor::RpcReplyPort<ChannelStats>),
    /// Panic, to show that only this channel notices.
    #[cfg(test)]
    Panic,
}

/// A channel's state, to look at.
#[cfg(test)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelStats {
    /// The stream.
    pub stream: StreamId,
    /// The number of the last event delivered; [`UNKNOWN`] if there was none yet.
    pub delivered: i64,
    /// Users who may hear.
    pub audience: usize,
    /// Sessions that hear.
    pub sessions: usize,
}

/// The actor.
struct Channel;

struct State {
    hub: Arc<Hub>,
    stream: StreamId,
    slot: Arc<Slot>,
    room: Option<Room>,
    flush_due: bool,
    retry_due: bool,
    active: Instant,
    /// How many messages each user may still post here.
    posts: Buckets<UserId>,
}

impl Actor for Channel {
    type Msg = ChannelMsg;
    type State = State;
    type Arguments = (Arc<Hub>, StreamId, Arc<Slot>);

    async fn pre_start(
        &self,
        _: ActorRef<ChannelMsg>,
        (hub, stream, slot): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let (active, posts) = (Instant::now(), Buckets::default());
        Ok(State { hub, stream, slot, room: None, flush_due: false, retry_due: false, active, posts })
    }

    async fn handle(
        &self,
        myself: ActorRef<ChannelMsg>,
        message: ChannelMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ChannelMsg::Run(write) => state.run(*write),
            ChannelMsg::Committed { events, at, credit } => {
                state.committed(&myself, events, at).await;
                drop(credit);
            }
            ChannelMsg::Subscribe(session, known) => state.subscribe(session, known),
            ChannelMsg::Typing { user, thread_seq, credit } => {
                state.typing(user, thread_seq).await;
                drop(credit);
            }
            ChannelMsg::Flush => state.flush(),
            ChannelMsg::Recover => Box::pin(state.recover(&myself)).await,
            ChannelMsg::Retry => {
                state.retry_due = false;
                Box::pin(state.recover(&myself)).await;
            }
            ChannelMsg::StopIfIdle => state.stop_if_idle(&myself),
            #[cfg(test)]
            ChannelMsg::Stats(reply) => state.stats(reply).await,
            #[cfg(test)]
            ChannelMsg::Panic => panic!("told to"),
        }
        Ok(())
    }
}

impl State {
    fn run(&mut self, write: Write) {
        self.active = Instant::now();
        if matches!(write.work, Work::Command(Command::SendMessage(_))) {
            let rate = self.hub.config.limits.message_rate();
            if let Err(wait) = self.posts.take(write.caller.user_id, rate, self.hub.clock.now()) {
                return self.hub.repeat_or_refuse(write, wait);
            }
        }
        self.hub.writer.submit(write);
    }

    /// Returns the room, loading it if this is the first message that needs it.
    ///
    /// Its audience is that of the last delivery, whatever was committed since: whoever left in between still hears that.
    async fn room(&mut self) -> Result<&mut Room, StoreError> {
        // Since it was loaded somebody said how far the stream is known, so that something may be missing.
        let is_known = self.slot.delivered.load(Ordering::Acquire) != UNKNOWN;
        if is_known && self.room.as_ref().is_some_and(|room| room.delivered() == UNKNOWN) {
            self.room = None;
        }
        if self.room.is_none() {
            let loaded = Box::pin(self.hub.store.in_time(self.load()));
            let (audience, delivered) = loaded.await?;
            let mut room = Room::new(self.stream, audience, delivered);
            let listening: Vec<_> = room.audience().flat_map(|user| self.hub.directory.sessions_of(user)).collect();
            listening.into_iter().for_each(|session| room.subscribe(session, delivered));
            self.room = Some(room);
        }
        Ok(self.room.as_mut().expect("it was just loaded"))
    }

    /// Reads who may hear, as of the last delivery.
    async fn load(&self) -> Result<(Vec<UserId>, i64), StoreError> {
        let mut db = self.hub.store.read().await?;
        let audience = if self.stream == StreamId::WORKSPACE {
            users::workspace_audience(&mut db).await?
        } else {
            let mut members = channels::member_ids(&mut db, self.stream.into()).await?;
            if members.is_empty() {
                // No channel: a user's own stream, heard by that user alone.
                members.push(self.stream.into());
            }
            members
        };
        let delivered = self.slot.delivered.load(Ordering::Acquire);
        let mut moves = Moves::default();
        let mut more = delivered != UNKNOWN;
        while more {
            let after = moves.seen().max(delivered);
            let read = events::after(&mut db, self.stream, after, READ_MAX).await?;
            moves.note(&read);
            more = !read.is_empty();
        }
        Ok((moves.take_back(audience), delivered))
    }

    async fn committed(&mut self, myself: &ActorRef<ChannelMsg>, events: Vec<Event>, at: Instant) {
        self.active = Instant::now();
        if let Some(first) = events.first() {
            // The first that this process delivers: what was before it is in the log.
            let _ = self.slot.delivered.compare_exchange(UNKNOWN, first.seq - 1, Ordering::AcqRel, Ordering::Acquire);
        }
        if self.retry_due {
            // The log is read in a moment, with these in it; commands do not wait for more tries than that.
            return;
        }
        if let Err(error) = self.room().await {
            tracing::warn!(stream.id = %self.stream, %error, "cannot load a channel: its readers catch up later");
            return self.retry(myself);
        }
        for event in events {
            if self.hear(&event, Some(at)) == Heard::Gap && !Box::pin(self.fill_gap()).await {
                return self.retry(myself);
            }
        }
        self.flush_in_time(myself);
    }

    /// Takes in an event; if it changes who hears, sends to exactly those who should hear what waits.
    fn hear(&mut self, event: &Event, at: Option<Instant>) -> Heard {
        if event.kind == EventKind::MemberJoined {
            // What happened before is for those who were there.
            self.flush();
        }
        let Some(room) = &mut self.room else { return Heard::Before };
        let heard = room.hear(event, at);
        if room.audience_changed() {
            for user in room.take_joined() {
                for session in self.hub.directory.sessions_of(user) {
                    session.hears(self.slot.clone(), event.seq);
                    room.subscribe(session, event.seq);
                }
            }
            self.flush();
        }
        if event.kind == EventKind::UserChannelAdded {
            self.listen_to(event);
        }
        heard
    }

    /// The user whose own stream this is came into a channel, maybe by another node: their sessions here listen to it.
    fn listen_to(&self, event: &Event) {
        #[derive(serde::Deserialize)]
        struct Added {
            channel_id: ChannelId,
            last_seq: i64,
        }
        let Ok(added) = serde_json::from_str::<Added>(&event.payload) else { return };
        for session in self.hub.directory.sessions_of(self.stream.into()) {
            session.hears(self.hub.directory.slot_or_new(added.channel_id.into()), added.last_seq);
        }
    }

    /// Reads what is missing from the log; returns whether that succeeded.
    async fn fill_gap(&mut self) -> bool {
        let mut missing = false;
        loop {
            let Some(delivered) = self.room.as_ref().map(Room::delivered) else { return false };
            let read = self.hub.store.in_time(async {
                let mut db = self.hub.store.read().await?;
                events::after(&mut db, self.stream, delivered, READ_MAX).await
            });
            let read = match read.await {
                Ok(read) => read,
                Err(error) => {
                    tracing::warn!(stream.id = %self.stream, %error, "cannot read missing events");
                    return false;
                }
            };
            if read.is_empty() {
                return true;
            }
            if !std::mem::replace(&mut missing, true) {
                self.hub.repaired.fetch_add(1, Ordering::Relaxed);
                metrics::counter!("colink_gap_repairs_total").increment(1);
            }
            for event in read {
                self.hub.note(&event);
                self.hear(&event, None);
            }
            if self.room.as_ref().map(Room::delivered) == Some(delivered) {
                tracing::error!(stream.id = %self.stream, delivered, "the log does not go on where it should");
                return false;
            }
        }
    }

    async fn recover(&mut self, myself: &ActorRef<ChannelMsg>) {
        let delivered = self.room().await.map(|room| room.delivered());
        // If nothing was ever handed to this stream's actors, nothing is missing.
        if matches!(delivered, Ok(UNKNOWN)) {
            return;
        }
        if delivered.is_err() || !self.fill_gap().await {
            return self.retry(myself);
        }
        self.flush();
    }

    /// Has what is missing read in a moment; once, however often it is asked for until then.
    fn retry(&mut self, myself: &ActorRef<ChannelMsg>) {
        if !std::mem::replace(&mut self.retry_due, true) {
            myself.send_after(Duration::from_secs(1), || ChannelMsg::Retry);
        }
    }

    fn flush_in_time(&mut self, myself: &ActorRef<ChannelMsg>) {
        let Some(room) = &self.room else { return };
        if !room.has_waiting() {
            self.slot.delivered.fetch_max(room.delivered(), Ordering::AcqRel);
            return;
        }
        let most = Duration::from_millis(self.hub.config.gateway.gather_ms);
        let wait = room.gather(Instant::now(), most);
        if wait.is_zero() {
            return self.flush();
        }
        if !self.flush_due {
            self.flush_due = true;
            myself.send_after(wait, || ChannelMsg::Flush);
        }
    }

    fn flush(&mut self) {
        self.flush_due = false;
        let Some(room) = &mut self.room else { return };
        let deliveries = room.flush(Instant::now());
        self.slot.delivered.fetch_max(room.delivered(), Ordering::AcqRel);
        metrics::counter!("colink_deliveries_total").increment(deliveries as u64);
    }

    fn subscribe(&mut self, session: Arc<SessionHandle>, known: i64) {
        match &mut self.room {
            Some(room) => room.subscribe(session, known),
            // It finds the session in the directory when it is loaded, and then goes on behind this.
            None => session.missed(self.stream, known, self.slot.delivered.load(Ordering::Acquire)),
        }
    }

    async fn typing(&mut self, user: UserId, thread_seq: Option<i64>) {
        let channel = self.stream.into();
        if self.retry_due {
            return;
        }
        let Ok(room) = self.room().await else { return };
        if !room.has_member(user) {
            return;
        }
        let frame = push::typing(channel, user, thread_seq);
        for session in room.sessions().iter().filter(|s| s.wants_typing && s.user_id != user) {
            session.queue.push_ephemeral(Ephemeral::Typing(channel, user, thread_seq), frame.clone());
        }
    }

    fn stop_if_idle(&mut self, myself: &ActorRef<ChannelMsg>) {
        if let Some(room) = &mut self.room {
            room.tidy_up();
        }
        // One that was never loaded had nobody to tell, or stands for a channel that does not exist.
        let idle = match self.room {
            Some(_) => Duration::from_secs(self.hub.config.channels.idle_stop_s),
            None => Duration::from_secs(1),
        };
        let unheard = self.room.as_ref().is_none_or(|room| room.sessions().is_empty());
        let quiet = self.active.elapsed() >= idle;
        // From then on `tell` starts a new one; what is in the mailbox already is handled first.
        if unheard && quiet && !idle.is_zero() && self.slot.let_go() {
            myself.drain().ok();
        }
    }

    #[cfg(test)]
    async fn stats(&mut self, reply: ractor::RpcReplyPort<ChannelStats>) {
        let stream = self.stream;
        if let Ok(room) = self.room().await {
            let (audience, sessions) = (room.audience().count(), room.sessions().len());
            let _ = reply.send(ChannelStats { stream, delivered: room.delivered(), audience, sessions });
        }
    }
}

/// What the supervisor of the channels is told.
pub enum ChannelsMsg {
    /// Pass this on to a stream's actor, starting it if it does not live.
    Tell(StreamId, Box<ChannelMsg>, Detour),
    /// Look which channels can stop.
    Sweep,
}

/// Finds, starts and restarts channels.
pub struct Channels;

impl Channels {
    async fn tell(&self, myself: &ActorRef<ChannelsMsg>, hub: &Arc<Hub>, stream: StreamId, message: ChannelMsg) {
        let slot = hub.directory.slot_or_new(stream);
        let message = match slot.actor() {
            Some(actor) => {
                if let Err(ractor::MessagingErr::SendErr(message)) = actor.cast(message) {
                    // It just died, and how is told next: the message waits behind that.
                    let _ = myself.cast(ChannelsMsg::Tell(stream, Box::new(message), Detour::begin(slot)));
                }
                return;
            }
            None => message,
        };
        if slot.quarantine().is_some() {
            if let ChannelMsg::Run(write) = message {
                write.answer.give(Err(unavailable("this channel failed repeatedly and is set aside for a moment")));
            }
            return;
        }
        let arguments = (hub.clone(), stream, slot.clone());
        match Actor::spawn_linked(None, Channel, arguments, myself.get_cell()).await {
            Ok((actor, _)) => {
                // Shown before it loads its room: a session that is just opening is in the directory by then, or finds the
                // actor and subscribes. What others tell it comes behind this message, which is still on its detour, unless
                // that is `Recover`, and with that the order does not matter.
                slot.set_actor(Some(actor.clone()));
                let _ = actor.cast(message);
            }
            Err(error) => tracing::error!(stream.id = %stream, %error, "cannot start a channel"),
        }
    }

    /// A channel that died is started again and delivers what it missed, unless it keeps dying.
    async fn failed(&self, myself: &ActorRef<ChannelsMsg>, hub: &Arc<Hub>, actor: ractor::ActorId, error: &str) {
        let Some((stream, slot)) = hub.directory.stream_of(actor) else { return };
        slot.set_actor(None);
        metrics::counter!("colink_channel_failures_total").increment(1);
        let channels = &hub.config.channels;
        let intensity = Intensity {
            restarts: channels.restarts as usize,
            window: Duration::from_secs(channels.restart_window_s),
            quarantine: Duration::from_secs(channels.quarantine_s),
        };
        if slot.note_failure(intensity) {
            tracing::error!(stream.id = %stream, %error, "a channel failed and is started again");
            self.tell(myself, hub, stream, ChannelMsg::Recover).await;
        } else {
            tracing::error!(stream.id = %stream, %error, "a channel failed repeatedly and is set aside");
            let retry = intensity.quarantine + Duration::from_millis(10);
            let recover = move || ChannelsMsg::Tell(stream, Box::new(ChannelMsg::Recover), Detour::begin(slot));
            myself.send_after(retry, recover);
        }
    }
}

impl Actor for Channels {
    type Msg = ChannelsMsg;
    type State = Arc<Hub>;
    type Arguments = Arc<Hub>;

    async fn pre_start(&self, myself: ActorRef<ChannelsMsg>, hub: Arc<Hub>) -> Result<Arc<Hub>, ActorProcessingErr> {
        myself.send_interval(Duration::from_secs(30), || ChannelsMsg::Sweep);
        Ok(hub)
    }

    async fn handle(
        &self,
        myself: ActorRef<ChannelsMsg>,
        message: ChannelsMsg,
        hub: &mut Arc<Hub>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ChannelsMsg::Tell(stream, message, _until_handed_over) => self.tell(&myself, hub, stream, *message).await,
            ChannelsMsg::Sweep => {
                for child in myself.get_children() {
                    let _ = ActorRef::<ChannelMsg>::from(child).cast(ChannelMsg::StopIfIdle);
                }
                metrics::gauge!("colink_channels_alive").set(hub.directory.channels_alive() as f64);
                hub.directory.forget_idle_slots();
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<ChannelsMsg>,
        event: SupervisionEvent,
        hub: &mut Arc<Hub>,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                self.failed(&myself, hub, cell.get_id(), &error.to_string()).await;
            }
            SupervisionEvent::ActorTerminated(cell, ..) => {
                if let Some((_, slot)) = hub.directory.stream_of(cell.get_id()) {
                    slot.set_actor(None);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::tests::size_of_handling;

    #[test]
    fn a_message_costs_a_channel_little() {
        let size = size_of_handling(&Channel);
        assert!(size <= 640, "{size} bytes: it is boxed for every message, so box what is rarely awaited");
    }
}
