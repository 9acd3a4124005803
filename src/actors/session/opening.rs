//! Opening a session: its place among the user's others, its ears in every channel, and the first state.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::Actor;

use super::queue::{Bounds, Queue, READ_AHEAD};
use super::{Attached, Session, SessionHandle};
use crate::actors::Hub;
use crate::actors::channel::ChannelMsg;
use crate::actors::directory::TooMany;
use crate::actors::presence::PresenceMsg;
use crate::domain::command::Principal;
use crate::domain::error::{Code, Refusal, invalid, not_found, unavailable};
use crate::domain::id::StreamId;
use crate::domain::permission;
use crate::protocol::client::Intent;
use crate::protocol::server;
use crate::storage::catch_up::{self, CatchUp, Heard};
use crate::storage::{StoreError, channels, users};

/// The most channels that `ready` lists; the rest is read by `GET /v1/channels`.
pub const READY_CHANNELS_MAX: i64 = 1_000;

/// How often a sign-in is looked up while others change.
const LOOKS: usize = 20;

/// Why a session could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The user has too many.
    TooMany,
    /// The store failed.
    Store(StoreError),
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        OpenError::Store(error)
    }
}

impl Hub {
    /// Opens a session and returns it with the text of `ready`.
    ///
    /// The session hears its streams from their heads on before the state is read, so nothing falls in between: what it
    /// hears twice, the client drops by `seq`. Whoever gives up on it before it is there leaves nothing behind.
    pub async fn open_session(
        self: &Arc<Self>,
        principal: Principal,
        intents: Option<&[Intent]>,
        connection: u64,
    ) -> Result<(Attached, String), OpenError> {
        let (session, read) = self.new_session(principal, intents, connection, &HashMap::new()).await?;
        let text = self.ready(&session, &read.streams).await?;
        Ok((session.known(), text))
    }

    /// Makes a session that hears its channels. Returns it with what there was behind the cursors by then.
    pub(super) async fn new_session(
        self: &Arc<Self>,
        principal: Principal,
        intents: Option<&[Intent]>,
        connection: u64,
        cursors: &HashMap<StreamId, i64>,
    ) -> Result<(Attached, CatchUp), OpenError> {
        let gateway = &self.config.gateway;
        let bounds = Bounds {
            events: gateway.queue_events,
            bytes: gateway.queue_bytes,
            ring: gateway.ring_events,
            window: Duration::from_secs(gateway.resume_window_s),
        };
        let queue = Queue::new(bounds, connection, principal.user_id.into());
        let session = SessionHandle::new(principal, intents, queue, self.clock.now());
        let arguments = (self.clone(), session.clone());
        let spawned = Actor::spawn_linked(None, Session, arguments, self.actors().sessions.get_cell()).await;
        match spawned {
            Ok((actor, _)) => {
                let _ = session.actor.set(actor);
            }
            Err(error) => return Err(StoreError::from(invalid(format!("cannot start a session: {error}"))).into()),
        }
        match self.directory.add_session(&session, gateway.sessions_per_user) {
            Ok(made_way) => made_way.iter().for_each(|oldest| oldest.end()),
            Err(TooMany) => {
                session.end();
                return Err(OpenError::TooMany);
            }
        }
        let session = Attached::new(session, connection);
        if self.draining.is_cancelled() {
            self.ask_to_reconnect(&session);
        }
        let read = self.hear_channels(&session, cursors).await?;
        self.directory.tell_presence(PresenceMsg::Opened { user: principal.user_id });
        Ok((session, read))
    }

    /// Lets a session hear every channel that lives; one that is started later finds the session in the directory. What was
    /// delivered between the look at the store and that, the channel delivers to it again.
    ///
    /// What its caller was believed to be may be old by now. A sign-in that ends, or a role that changes, from here on is
    /// told to the session, which is in the directory; what happened before, the store knows. What was told while the store
    /// was asked may be newer than its answer, so it is asked again.
    async fn hear_channels(
        &self,
        session: &Arc<SessionHandle>,
        cursors: &HashMap<StreamId, i64>,
    ) -> Result<CatchUp, StoreError> {
        let mut db = self.store.read_for("sessions").await?;
        let mut looks = 0;
        let read = loop {
            let mark = self.cache.mark_identity();
            let limit = READ_AHEAD as i64;
            let read = catch_up::read(&mut db, session.principal(), cursors, limit, self.clock.now()).await?;
            let sign_in = read.sign_in.ok_or_else(|| Refusal::new(Code::Unauthenticated, "this sign-in is over"))?;
            let workspace = read.streams.iter().find(|heard| heard.stream == StreamId::WORKSPACE);
            session.set_user(workspace.map_or(0, |heard| heard.head), sign_in.principal.role, read.mode);
            session.note_version(sign_in.version);
            session.set_sign_in_ends(sign_in.expires_at);
            if self.cache.mark_identity() == mark {
                break read;
            }
            looks += 1;
            if looks == LOOKS {
                return Err(unavailable("too many roles and sign-ins change at the moment: try again").into());
            }
        };
        drop(db);
        for Heard { stream, head, .. } in &read.streams {
            let slot = self.directory.slot_or_new(*stream);
            session.hears(slot.clone(), *head);
            let may_hear = *stream != StreamId::WORKSPACE || permission::sees_everybody(session.principal().role);
            if let Some(actor) = slot.actor().filter(|_| may_hear) {
                let _ = actor.cast(ChannelMsg::Subscribe(session.clone(), *head));
            }
        }
        Ok(read)
    }

    async fn ready(&self, session: &SessionHandle, heard: &[Heard]) -> Result<String, StoreError> {
        let mut db = self.store.read_for("sessions").await?;
        let user = users::by_id(&mut db, session.user_id).await?;
        let user = user.ok_or_else(|| not_found("user"))?;
        let mut list = channels::of_user(&mut db, session.user_id, None, READY_CHANNELS_MAX + 1).await?;
        let more = list.len() as i64 > READY_CHANNELS_MAX;
        list.truncate(usize::try_from(READY_CHANNELS_MAX).unwrap_or(0));
        let head = |stream: StreamId| heard.iter().find(|heard| heard.stream == stream).map_or(0, |heard| heard.head);
        Ok(server::ready(&server::Ready {
            session_id: session.id,
            resume_window_s: self.config.gateway.resume_window_s,
            user: &user,
            user_seq: head(session.user_id.into()),
            workspace_seq: head(StreamId::WORKSPACE),
            channels: &list,
            channels_next_cursor: if more { list.last().map(|m| m.channel.id.to_string()) } else { None },
        }))
    }
}
