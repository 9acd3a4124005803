//! Taking a session up again: from this node's memory by `s`, or on any node from the log by cursors.
//!
//! Never partial: either everything that was missed follows, or the client is told where to start anew.

use std::collections::HashMap;
use std::sync::Arc;

use super::{OpenError, SessionHandle};
use crate::actors::Hub;
use crate::domain::command::Principal;
use crate::domain::id::{ChannelId, StreamId, UserId};
use crate::domain::permission::{self, Action};
use crate::domain::user::Role;
use crate::protocol::client::Resume;
use crate::protocol::push::{self, Batch};
use crate::protocol::server::{self, Mode};
use crate::storage::{Db, StoreError, channels, events};

/// How a resume ended.
pub enum Resumed {
    /// The session goes on; `text` is the `resumed` frame.
    Yes {
        /// The session: the same one, or a new one that replays the log.
        session: Arc<SessionHandle>,
        /// What the client is told first.
        text: String,
    },
    /// It cannot go on; `text` is the `invalid_session` frame.
    No {
        /// What the client is told.
        text: String,
    },
    /// The client shows numbers that nobody gave it.
    BadCursor,
}

impl Hub {
    /// Takes a session up again.
    pub async fn resume_session(
        self: &Arc<Self>,
        principal: Principal,
        resume: &Resume,
        connection: u64,
    ) -> Result<Resumed, OpenError> {
        let known = self.directory.session(resume.session_id);
        let theirs =
            |s: &Arc<SessionHandle>| s.user_id == principal.user_id && s.token_id == principal.token_id && !s.ended();
        if let Some(session) = known.filter(theirs) {
            if let Some(replayed) = session.queue.resume(connection, resume.s) {
                metrics::counter!("colink_resumes_total", "mode" => "buffer").increment(1);
                let text = server::resumed(session.id, resume.s, replayed, Mode::Buffer);
                return Ok(Resumed::Yes { session, text });
            }
            session.end();
        }
        self.resume_from_log(principal, resume, connection).await
    }

    async fn resume_from_log(
        self: &Arc<Self>,
        principal: Principal,
        resume: &Resume,
        connection: u64,
    ) -> Result<Resumed, OpenError> {
        let session = self.new_session(principal, resume.intents.as_deref(), connection).await?;
        let missed = match self.missed(principal, &resume.cursors).await {
            Ok(missed) => missed,
            Err(error) => {
                session.end();
                return Err(error.into());
            }
        };
        match missed {
            Missed::All(batches) => {
                metrics::counter!("colink_resumes_total", "mode" => "log").increment(1);
                let replayed = batches.iter().map(|batch| batch.frames.len()).sum();
                session.queue.push_replayed(batches);
                let text = server::resumed(session.id, session.queue.last_s(), replayed, Mode::Log);
                Ok(Resumed::Yes { session, text })
            }
            Missed::TooMuch(heads) => {
                metrics::counter!("colink_resumes_total", "mode" => "invalid").increment(1);
                session.end();
                Ok(Resumed::No { text: server::invalid_session(&heads) })
            }
            Missed::Never => {
                session.end();
                Ok(Resumed::BadCursor)
            }
        }
    }

    /// Reads what was missed behind the cursors. Streams that the user may no longer read are left out: the client
    /// learns from its own stream that it is no longer in them.
    async fn missed(&self, who: Principal, cursors: &HashMap<StreamId, i64>) -> Result<Missed, StoreError> {
        let user = who.user_id;
        let mut db = self.store.read().await?;
        let streams: Vec<StreamId> = cursors.keys().copied().collect();
        let heads: HashMap<StreamId, i64> = events::heads(&mut db, &streams).await?.into_iter().collect();
        let mine: std::collections::HashSet<ChannelId> =
            channels::ids_of_user(&mut db, user).await?.into_iter().collect();
        let may_read = |stream: StreamId| match stream {
            StreamId::WORKSPACE => who.role > Role::Guest,
            stream => stream == user.into() || mine.contains(&stream.into()),
        };
        let readable: HashMap<StreamId, i64> =
            heads.iter().filter(|(stream, _)| may_read(**stream)).map(|(s, head)| (*s, *head)).collect();
        let mut total = 0;
        for (stream, head) in &readable {
            if !(0..=*head).contains(&cursors[stream]) {
                return Ok(Missed::Never);
            }
            total += head - cursors[stream];
        }
        let most = self.config.gateway.replay_events as i64;
        if most > 0 && total > most {
            return Ok(Missed::TooMuch(readable));
        }
        let mut batches = Vec::new();
        for (stream, head) in &readable {
            if *head == cursors[stream] {
                continue;
            }
            let read = self.replay(&mut db, user, *stream, cursors[stream], head - cursors[stream]).await?;
            match read {
                Some(batch) => batches.extend(batch),
                None => return Ok(Missed::TooMuch(readable)),
            }
        }
        Ok(Missed::All(batches))
    }

    /// Reads one stream's missed events; nothing if they are older than may be replayed.
    async fn replay(
        &self,
        db: &mut Db,
        user: UserId,
        stream: StreamId,
        after: i64,
        count: i64,
    ) -> Result<Option<Vec<Arc<Batch>>>, StoreError> {
        if stream != StreamId::WORKSPACE && stream != user.into() {
            let facts = channels::facts(db, user, stream.into()).await?;
            let may_read = facts.is_some_and(|facts| {
                facts.who.channel_role.is_some() && permission::allows(facts.who, Action::Read, facts.channel).is_ok()
            });
            if !may_read {
                return Ok(Some(Vec::new()));
            }
        }
        let read = events::after(db, stream, after, count).await?;
        let days = self.config.gateway.replay_days;
        let oldest = self.clock.now().plus_seconds(-i64::from(days) * 86_400);
        if days > 0 && read.first().is_some_and(|event| event.at < oldest) {
            return Ok(None);
        }
        let frames = read.iter().map(push::encode).collect();
        Ok(Some(vec![Batch::new(stream, frames, None)]))
    }
}

enum Missed {
    All(Vec<Arc<Batch>>),
    TooMuch(HashMap<StreamId, i64>),
    Never,
}
