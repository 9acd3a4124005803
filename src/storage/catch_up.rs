//! What a session hears and what its client missed of that, in one statement: a client that comes back costs the database one
//! read, however many channels it is in.

use std::collections::HashMap;

use super::{Db, StoreError, by_dialect, from_row, on, page, tokens};
use crate::clock::Timestamp;
use crate::domain::command::Principal;
use crate::domain::event::Event;
use crate::domain::id::StreamId;
use crate::domain::user::{PresenceMode, Role};
use tokens::Identity;

/// What there is for a session, all as of one moment.
#[derive(Debug)]
pub struct CatchUp {
    /// What its sign-in stands for; nothing if that is over.
    pub sign_in: Option<Identity>,
    /// What its user chose to be shown as.
    pub mode: PresenceMode,
    /// The user's channels, the user's own stream and the workspace's.
    pub streams: Vec<Heard>,
    /// The first events behind the cursors, by stream and number, without a hole.
    pub events: Vec<Event>,
}

/// A stream that the user hears.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// The stream.
    pub stream: StreamId,
    /// The number of its newest event.
    pub head: i64,
    /// When the first event behind the cursor was committed; nothing if there is no such event.
    pub missed_since: Option<Timestamp>,
}

/// Either a stream, one of them with the sign-in, or an event.
enum Row {
    Stream(Heard, Option<SignIn>),
    Event(Event),
}

struct SignIn {
    role: Role,
    version: i64,
    expires_at: Option<Timestamp>,
    slides: bool,
    mode: PresenceMode,
}

from_row!(Row, row => match row.try_get::<Option<i64>, _>("seq")? {
    Some(_) => Row::Event(Event::from_row(row)?),
    None => {
        let stream = row.try_get("stream_id")?;
        let (head, missed_since) = (row.try_get("last_seq")?, row.try_get("since")?);
        let sign_in = match row.try_get::<Option<Role>, _>("role")? {
            Some(role) => {
                let (version, expires_at) = (row.try_get("version")?, row.try_get("expires_at")?);
                let (slides, mode) = (row.try_get("slides")?, row.try_get("presence_mode")?);
                Some(SignIn { role, version, expires_at, slides, mode })
            }
            None => None,
        };
        Row::Stream(Heard { stream, head, missed_since }, sign_in)
    }
});

/// Streams first, then events. `before` is how many were missed in the streams before, so that all streams together give no
/// more events than are wanted.
macro_rules! sql {
    (greatest: $greatest:literal, cursors: $cursors:literal, events: $events:literal) => {
        concat!(
            "WITH mine AS (SELECT s.id, s.last_seq, c.after, CAST(COALESCE(SUM(",
            $greatest,
            "(s.last_seq - c.after, 0)) OVER (ORDER BY s.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS BIGINT) AS before \
             FROM (SELECT channel_id AS id FROM members WHERE user_id = $1 \
             UNION ALL SELECT id FROM streams WHERE id = $1 OR id = $2) m \
             JOIN streams s ON s.id = m.id LEFT JOIN (",
            $cursors,
            ") c ON c.id = s.id) \
             SELECT m.id AS stream_id, m.last_seq, CASE WHEN m.last_seq > m.after THEN \
             (SELECT f.created_at FROM events f WHERE f.stream_id = m.id AND f.seq = m.after + 1) END AS since, \
             t.role, t.version, t.expires_at, t.slides, t.presence_mode, NULL AS seq, NULL AS event_id, NULL AS kind, NULL AS actor_id, \
             NULL AS payload, NULL AS created_at \
             FROM mine m LEFT JOIN (",
            tokens::valid!("id", "$5", "$6"),
            ") t ON t.user_id = m.id \
             UNION ALL SELECT e.stream_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, e.seq, e.event_id, e.kind, e.actor_id, e.payload, \
             e.created_at FROM mine m JOIN ",
            $events,
            " WHERE m.last_seq > m.after AND m.before < $4 ORDER BY seq NULLS FIRST"
        )
    };
}

/// Reads what there is for a session of `who`: of each stream in `cursors` what is behind the number there, of all together at
/// most `limit` events, and no more than fit on a [page](super::PAGE_BYTES). No cursor is negative.
pub async fn read(
    db: &mut Db,
    who: Principal,
    cursors: &HashMap<StreamId, i64>,
    limit: i64,
    now: Timestamp,
) -> Result<CatchUp, StoreError> {
    // The order of its keys is what makes a nested loop of it: the planner cannot know how few events are behind a cursor.
    let sql = by_dialect!(db,
        postgres: sql!(
            greatest: "GREATEST",
            cursors: "SELECT key::uuid AS id, value::bigint AS after FROM json_each_text($3::json)",
            events: "LATERAL (SELECT * FROM events WHERE stream_id = m.id AND seq > m.after ORDER BY seq \
                     LIMIT GREATEST($4 - m.before, 0)) e ON TRUE"
        ),
        sqlite: sql!(
            greatest: "MAX",
            cursors: "SELECT unhex(key, '-') AS id, value AS after FROM json_each($3)",
            events: "events e ON e.stream_id = m.id AND e.seq > m.after AND e.seq <= m.after + $4 - m.before"
        ),
    );
    let cursors = serde_json::to_string(cursors).expect("identifiers are strings");
    let bytes = |row: &Row| match row {
        Row::Stream(..) => 0,
        Row::Event(event) => event.payload.len(),
    };
    let (rows, _) = on!(db, c => {
        let query = sqlx::query_as(sql).bind(who.user_id).bind(StreamId::WORKSPACE).bind(cursors).bind(limit);
        page(query.bind(who.token_id).bind(now).fetch(c), i64::MAX, bytes).await?
    });
    let mut read = CatchUp { sign_in: None, mode: PresenceMode::Auto, streams: Vec::new(), events: Vec::new() };
    for row in rows {
        match row {
            Row::Stream(heard, sign_in) => {
                read.streams.push(heard);
                if let Some(SignIn { role, version, expires_at, slides, mode }) = sign_in {
                    let principal = Principal { role, ..who };
                    read.sign_in = Some(Identity { principal, expires_at, slides, version });
                    read.mode = mode;
                }
            }
            Row::Event(event) => read.events.push(event),
        }
    }
    read.events.sort_by_key(|event| (event.stream, event.seq));
    Ok(read)
}
