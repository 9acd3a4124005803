//! Taking a session up again: from this node's memory by `s`, or on any node from the log by cursors.
//!
//! Never partial: either everything that was missed follows, or the client is told where to start anew. What comes from
//! the log is read page by page as the connection takes it, so a long absence costs no more memory than a short one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queue::READ_AHEAD;
use super::{Attached, OpenError, SessionHandle};
use crate::actors::Hub;
use crate::domain::command::Principal;
use crate::domain::id::{ChannelId, StreamId};
use crate::domain::permission::{self, Action};
use crate::protocol::client::Resume;
use crate::protocol::close::CloseCode;
use crate::protocol::push::{self, Batch};
use crate::protocol::server::{self, Mode};
use crate::storage::{StoreError, channels, events};

/// The most events of the log that are read at once.
const PAGE: i64 = READ_AHEAD as i64;

/// How long a database that does not answer is asked again for the next page; then the client has to resume anew.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);

/// How a resume ended.
pub enum Resumed {
    /// The session goes on; `text` is the `resumed` frame.
    Yes {
        /// The session: the same one, or a new one that replays the log.
        session: Attached,
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
            if let Some((session, replayed)) = self.take_up(&session, connection, resume.s) {
                metrics::counter!("colink_resumes_total", "mode" => "buffer").increment(1);
                self.show_presence(&session);
                let text = server::resumed(session.id, resume.s, replayed, Mode::Buffer);
                return Ok(Resumed::Yes { session, text });
            }
            session.end();
        }
        Box::pin(self.resume_from_log(principal, resume, connection)).await
    }

    async fn resume_from_log(
        self: &Arc<Self>,
        principal: Principal,
        resume: &Resume,
        connection: u64,
    ) -> Result<Resumed, OpenError> {
        let session = self.new_session(principal, resume.intents.as_deref(), connection).await?;
        let missed = match self.missed(session.principal(), &resume.cursors).await {
            Ok(missed) => missed,
            Err(error) => {
                session.end();
                return Err(error.into());
            }
        };
        match missed {
            Missed::All(mut ranges) => {
                if !session.wants_durable() {
                    ranges.clear();
                }
                metrics::counter!("colink_resumes_total", "mode" => "log").increment(1);
                let replayed = ranges.iter().map(Range::events).sum();
                session.queue.expect_pages(replayed);
                let text = server::resumed(session.id, session.queue.last_s(), replayed, Mode::Log);
                let reading = self.clone().replay(session.clone(), ranges);
                if replayed <= READ_AHEAD {
                    // There is room for all of it, so this does not wait.
                    reading.await;
                } else {
                    // Ends with the session, at the latest.
                    tokio::spawn(reading);
                }
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
            StreamId::WORKSPACE => permission::sees_everybody(who.role),
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
        let days = self.config.gateway.replay_days;
        let oldest = self.clock.now().plus_seconds(-i64::from(days) * 86_400);
        let mut ranges = Vec::new();
        for (stream, head) in &readable {
            let after = cursors[stream];
            if after == *head {
                continue;
            }
            if days > 0 && events::after(&mut db, *stream, after, 1).await?.iter().any(|event| event.at < oldest) {
                return Ok(Missed::TooMuch(readable));
            }
            ranges.push(Range { stream: *stream, after, head: *head });
        }
        Ok(Missed::All(ranges))
    }

    /// Reads what was missed, page by page, as the client takes it.
    async fn replay(self: Arc<Self>, session: Arc<SessionHandle>, ranges: Vec<Range>) {
        for mut range in ranges {
            let mut since = Instant::now();
            while range.events() > 0 {
                if !std::future::poll_fn(|cx| session.queue.poll_room(cx)).await {
                    return;
                }
                match self.store.in_time(self.page(session.principal(), &range)).await {
                    Ok(Some(page)) => {
                        let read = page.frames.len();
                        range.after = page.frames.last().map_or(range.head, |event| event.seq);
                        session.queue.push_page(session.wanted(&page), read);
                        since = Instant::now();
                    }
                    Ok(None) => {
                        session.queue.push_page(None, range.events());
                        break;
                    }
                    Err(error) if since.elapsed() < PATIENCE => {
                        let (user, id) = (session.user_id, session.id);
                        tracing::warn!(user.id = %user, session.id = %id, %error, "cannot read on in the log: tried again");
                        tokio::time::sleep(AGAIN).await;
                    }
                    Err(_) => return session.queue.close(CloseCode::Unknown),
                }
            }
        }
    }

    /// Reads the next page of a stream; nothing if the user may no longer read it.
    async fn page(&self, who: Principal, range: &Range) -> Result<Option<Arc<Batch>>, StoreError> {
        let (user, stream) = (who.user_id, range.stream);
        let mut db = self.store.read().await?;
        if stream == StreamId::WORKSPACE {
            if !permission::sees_everybody(who.role) {
                return Ok(None);
            }
        } else if stream != user.into() {
            let facts = channels::facts(&mut db, user, stream.into()).await?;
            let may_read = facts.is_some_and(|facts| {
                facts.who.channel_role.is_some() && permission::allows(facts.who, Action::Read, facts.channel).is_ok()
            });
            if !may_read {
                return Ok(None);
            }
        }
        let read = events::after(&mut db, stream, range.after, PAGE.min(range.head - range.after)).await?;
        let frames: Vec<_> = read.iter().map(push::encode).collect();
        Ok((!frames.is_empty()).then(|| Batch::new(stream, frames, None)))
    }
}

/// What was missed of one stream.
struct Range {
    stream: StreamId,
    /// The last event that the client has.
    after: i64,
    /// The last event to be replayed.
    head: i64,
}

impl Range {
    fn events(&self) -> usize {
        usize::try_from(self.head - self.after).unwrap_or(0)
    }
}

enum Missed {
    All(Vec<Range>),
    TooMuch(HashMap<StreamId, i64>),
    Never,
}
