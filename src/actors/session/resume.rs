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
use crate::domain::event::Event;
use crate::domain::id::StreamId;
use crate::domain::permission::{self, Action};
use crate::protocol::client::Resume;
use crate::protocol::close::CloseCode;
use crate::protocol::push::{self, Batch};
use crate::protocol::server::{self, Mode};
use crate::storage::catch_up::Heard;
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
        if resume.cursors.values().any(|cursor| *cursor < 0) {
            return Ok(Resumed::BadCursor);
        }
        let (session, read) =
            self.new_session(principal, resume.intents.as_deref(), connection, &resume.cursors).await?;
        match self.missed(session.principal(), &read.streams, &resume.cursors) {
            Missed::All(mut ranges) => {
                if !session.wants_durable() {
                    ranges.clear();
                }
                metrics::counter!("colink_resumes_total", "mode" => "log").increment(1);
                let replayed = ranges.iter().map(Range::events).sum();
                session.queue.expect_pages(replayed);
                let text = server::resumed(session.id, session.queue.last_s(), replayed, Mode::Log);
                for page in read.events.chunk_by(|a, b| a.stream == b.stream) {
                    if let Some(range) = ranges.iter_mut().find(|range| range.stream == page[0].stream) {
                        range.replay(&session, page);
                    }
                }
                ranges.retain(|range| range.events() > 0);
                if !ranges.is_empty() {
                    // Ends with the session, at the latest.
                    tokio::spawn(self.clone().replay(session.clone(), ranges));
                }
                Ok(Resumed::Yes { session: session.known(), text })
            }
            Missed::TooMuch(heads) => {
                metrics::counter!("colink_resumes_total", "mode" => "invalid").increment(1);
                Ok(Resumed::No { text: server::invalid_session(&heads) })
            }
            Missed::Never => Ok(Resumed::BadCursor),
        }
    }

    /// Returns what was missed behind the cursors. Streams that the user may no longer read are left out: the client
    /// learns from its own stream that it is no longer in them.
    fn missed(&self, who: Principal, streams: &[Heard], cursors: &HashMap<StreamId, i64>) -> Missed {
        let may_read = |stream| stream != StreamId::WORKSPACE || permission::sees_everybody(who.role);
        let behind = |heard: &Heard| Some((*heard, *cursors.get(&heard.stream)?));
        let readable: Vec<_> = streams.iter().filter(|heard| may_read(heard.stream)).filter_map(behind).collect();
        if readable.iter().any(|(heard, after)| *after > heard.head) {
            return Missed::Never;
        }
        let gateway = &self.config.gateway;
        let total: i64 = readable.iter().map(|(heard, after)| heard.head - after).sum();
        let oldest = self.clock.now().plus_seconds(-i64::from(gateway.replay_days) * 86_400);
        let is_old = |(heard, after): &(Heard, i64)| {
            let since = heard.missed_since;
            heard.head > *after && since.is_none_or(|since| gateway.replay_days > 0 && since < oldest)
        };
        if (gateway.replay_events > 0 && total > gateway.replay_events as i64) || readable.iter().any(is_old) {
            return Missed::TooMuch(readable.into_iter().map(|(heard, _)| (heard.stream, heard.head)).collect());
        }
        let range = |(heard, after): (Heard, i64)| Range { stream: heard.stream, after, head: heard.head };
        Missed::All(readable.into_iter().map(range).filter(|range| range.events() > 0).collect())
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
                    Ok(page) => {
                        range.replay(&session, &page);
                        since = Instant::now();
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
    async fn page(&self, who: Principal, range: &Range) -> Result<Vec<Event>, StoreError> {
        let (user, stream) = (who.user_id, range.stream);
        if stream == StreamId::WORKSPACE && !permission::sees_everybody(who.role) {
            return Ok(Vec::new());
        }
        let mut db = self.store.read_for("sessions").await?;
        let read = events::after(&mut db, stream, range.after, PAGE.min(range.head - range.after)).await?;
        if stream == StreamId::WORKSPACE || stream == user.into() {
            return Ok(read);
        }
        // Behind the events: who was put out while they were read does not get what was said since.
        let facts = channels::facts(&mut db, user, stream.into()).await?;
        let may_read = facts.is_some_and(|facts| {
            facts.who.channel_role.is_some() && permission::allows(facts.who, Action::Read, facts.channel).is_ok()
        });
        Ok(if may_read { read } else { Vec::new() })
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

    /// Hands the next events to a session; none means that there are no more to be had.
    fn replay(&mut self, session: &SessionHandle, events: &[Event]) {
        let Some(last) = events.last() else {
            session.queue.push_page(None, self.events());
            self.after = self.head;
            return;
        };
        self.after = last.seq;
        let page = Batch::new(self.stream, events.iter().map(push::encode).collect(), None);
        session.queue.push_page(session.wanted(&page), events.len());
    }
}

enum Missed {
    All(Vec<Range>),
    TooMuch(HashMap<StreamId, i64>),
    Never,
}
