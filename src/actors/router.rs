//! From a request to the actor of the stream that it changes.
//!
//! Every door comes through here: the gateway with an answer that goes into the session's queue, REST with one that it
//! waits for. Nothing waits in here: an actor that lives is told, one that does not is started by `Channels`, and a
//! channel without a credit left refuses at once.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Hub;
use super::channel::room::UNKNOWN;
use super::channel::{ChannelMsg, ChannelsMsg};
use super::cluster::envelope::Typing;
use super::directory::{Credit, Detour};
use super::session::too_many;
use crate::domain::command::{Command, Principal, key_fits};
use crate::domain::error::{Code, Refusal, not_found, unavailable};
use crate::domain::event::Event;
use crate::domain::id::{ChannelId, StreamId, UserId};
use crate::storage::StoreError;
use crate::storage::accounts::{Account, NO_ANSWER};
use crate::storage::channels::{self, Facts};
use crate::storage::idempotency::body_hash;
use crate::storage::writer::{Answer, Claim, Reply, Work, Write};

impl Hub {
    /// Sends a command on its way; the answer comes when it is committed or refused.
    pub fn dispatch(&self, caller: Principal, command: Command, key: Option<String>, answer: Answer) {
        let key = match &command {
            Command::SendMessage(send) => send.client_msg_id.clone().or(key),
            _ => key,
        };
        let checked =
            command.validate().and_then(|()| key.as_deref().map_or(Ok(()), |k| key_fits("idempotency key", k)));
        if let Err(refusal) = checked {
            return answer.give(Err(refusal));
        }
        let stream = command.stream(caller.user_id);
        let write = Write { caller, work: Work::Command(command), claim: Claim::Owner, key, answer };
        match &self.cluster {
            Some(cluster) if is_channels(stream, caller) => cluster.route(self, stream, write),
            // One's own things, and the workspace's, are written where they are asked for: each such write reads all that
            // decides about it anew.
            _ => self.enter(stream, write),
        }
    }

    /// Hands a write to this node's actor of its stream.
    pub(super) fn enter(&self, stream: StreamId, write: Write) {
        let Write { caller, work, claim, key, answer } = write;
        let slot = self.directory.slot_or_new(stream);
        if let Some(left) = slot.quarantine() {
            let why = unavailable("this channel failed repeatedly and is set aside for a moment");
            return answer.give(Err(why.retry_after(left.as_secs_f64())));
        }
        let Some(credit) = Credit::take(&slot, self.config.channels.mailbox) else {
            metrics::counter!("colink_channel_mailbox_full_total").increment(1);
            return answer.give(Err(unavailable("this channel has more to do than it can: slow down")));
        };
        let answer = answer.then(move || drop(credit));
        self.tell(stream, ChannelMsg::Run(Box::new(Write { caller, work, claim, key, answer })));
    }

    /// Sends a command on its way and waits for the answer; how long that may take is the caller's to say.
    pub async fn run(&self, caller: Principal, command: Command, key: Option<String>) -> Result<Reply, Refusal> {
        let (tx, rx) = oneshot::channel();
        let answer = Answer::new(move |result| {
            let _ = tx.send(result);
        });
        self.dispatch(caller, command, key, answer);
        let lost = || Refusal::new(Code::Timeout, "the answer was lost: repeat the request with the same key");
        rx.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Has a channel tell that somebody is typing there; one that has more to do than it can does without.
    pub(super) fn typing(&self, user: UserId, channel: ChannelId, thread_seq: Option<i64>) {
        let slot = self.directory.slot_or_new(channel.into());
        if let Some(credit) = Credit::take(&slot, self.config.channels.mailbox) {
            self.tell(channel.into(), ChannelMsg::Typing { user, thread_seq, credit });
        }
        if let Some(cluster) = &self.cluster {
            cluster.tell_typing(Typing { channel, user, thread_seq });
        }
    }

    /// Answers a write that is over its rate: with the first answer to its key if it has one, for a repeat does nothing
    /// anew, else with a refusal. The writer looks, behind all that was handed to it before: so a repeat waits for a
    /// first one that is being written.
    pub(super) fn repeat_or_refuse(&self, write: Write, wait: Duration) {
        let Write { caller, work, key, answer, .. } = write;
        let (Work::Command(command), Some(key)) = (work, key) else {
            return answer.give(Err(too_many(wait)));
        };
        let look = Account::FirstAnswer { user: caller.user_id, key, hash: body_hash(&command) };
        let answer = answer.map(move |found| match found {
            Ok(none) if none.json == NO_ANSWER => Err(too_many(wait)),
            Ok(first) => Ok(Reply { duplicate: true, ..first }),
            Err(refusal) => Err(refusal),
        });
        self.writer.submit(Write { caller, work: Work::Account(look), claim: Claim::Beside, key: None, answer });
    }

    /// Returns what decides about a user and a channel. Remembered until the channel changes.
    pub async fn facts(&self, user: UserId, channel: ChannelId) -> Result<Facts, StoreError> {
        if let Some(facts) = self.cache.facts(channel, user) {
            return Ok(facts);
        }
        let mark = self.cache.mark();
        let mut db = self.store.read().await?;
        let facts = channels::facts(&mut db, user, channel).await?.ok_or_else(|| not_found("channel"))?;
        self.cache.keep_facts(mark, channel, user, facts);
        Ok(facts)
    }

    /// Hands committed events to their stream's actor, if anybody could be waiting for them.
    pub(super) fn deliver(&self, stream: StreamId, events: Vec<Event>, at: Instant) {
        let slot = self.directory.slot(stream);
        let living = slot.as_ref().is_some_and(|slot| slot.actor().is_some());
        let own_stream_of_nobody =
            stream != StreamId::WORKSPACE && self.directory.session_count(stream.into()) == 0 && is_users(&events);
        if !living && (own_stream_of_nobody || self.directory.sessions_alive() == 0) {
            // Heard by all who could: whoever opens a session from now on reads its state later than this.
            if let (Some(slot), Some(last)) = (slot, events.last()) {
                slot.delivered.fetch_max(last.seq, Ordering::AcqRel);
            }
            return;
        }
        // Noted before the actor hears of them: should it die on the way, the next one knows where to go on.
        if let Some(first) = events.first() {
            let delivered = &self.directory.slot_or_new(stream).delivered;
            let _ = delivered.compare_exchange(UNKNOWN, first.seq - 1, Ordering::AcqRel, Ordering::Acquire);
        }
        self.tell(stream, ChannelMsg::Committed { events, at, credit: None });
    }

    /// Tells a stream's actor something, starting it first if it does not live. What one caller tells it arrives in order.
    pub(super) fn tell(&self, stream: StreamId, message: ChannelMsg) {
        let slot = self.directory.slot_or_new(stream);
        let message = match slot.actor().filter(|_| !slot.has_detours()) {
            Some(actor) => match actor.cast(message) {
                Ok(()) => return,
                Err(ractor::MessagingErr::SendErr(message)) => message,
                Err(_) => return,
            },
            None => message,
        };
        let detour = Detour::begin(slot);
        let _ = self.actors().channels.cast(ChannelsMsg::Tell(stream, Box::new(message), detour));
    }
}

/// Returns whether a stream that a caller writes to is a channel's.
fn is_channels(stream: StreamId, caller: Principal) -> bool {
    stream != StreamId::WORKSPACE && stream != caller.user_id.into()
}

fn is_users(events: &[Event]) -> bool {
    use crate::domain::event::Audience;
    events.iter().all(|event| event.kind.audience() == Audience::Owner)
}
