//! What nobody asks for and has to happen: statuses end when their time is over, sign-ins with an open connection last,
//! and what no longer counts is deleted.
//!
//! One task a node, which ends with it. All of it goes through the writer, a thousand rows at a time, so that whatever
//! else is to be written waits for one small piece at most. Events stay: they are the log.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Hub, watched};
use crate::domain::error::Refusal;
use crate::domain::id::{StreamId, TokenId};
use crate::storage::accounts::{Account, Ended, PRUNED_MAX, Pruned, SYSTEM};
use crate::storage::writer::Work;
use crate::storage::{StoreError, users};

/// How often it looks whose status is over, which is also how late a status ends. It asks an index, and writes only if
/// there is one.
const EVERY: Duration = Duration::from_secs(1);
/// Idempotency keys are looked through once in so many turns: half a minute.
const OFTEN: u64 = 30;
/// Sign-ins and invitations are looked through once in so many turns: an hour.
const HOURLY: u64 = 3_600;
/// Sign-ins whose end one commit moves.
const PIECE: usize = 500;
/// Seconds that a sign-in or an invitation is kept after its end.
const KEPT_S: i64 = 24 * 60 * 60;

/// Starts the task. It lives until `stop` is cancelled or the node is gone.
pub(super) fn start(hub: &Arc<Hub>, stop: CancellationToken) {
    let hub = Arc::downgrade(hub);
    watched(&hub, &stop, "housekeeping", keep_house(hub.clone()));
}

async fn keep_house(hub: Weak<Hub>) {
    let mut turns = tokio::time::interval(EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in 0u64.. {
        turns.tick().await;
        let Some(hub) = hub.upgrade() else { return };
        if let Err(error) = hub.one_turn(turn).await {
            tracing::warn!(%error, "housekeeping failed: it is tried again");
        }
    }
}

impl Hub {
    async fn one_turn(&self, turn: u64) -> Result<(), StoreError> {
        if turn.is_multiple_of(HOURLY) {
            self.prolong_open().await?;
        }
        // The rest is everybody's: one of several nodes does it.
        if self.cluster.as_ref().is_some_and(|cluster| !cluster.owns(StreamId::WORKSPACE)) {
            return Ok(());
        }
        self.end_statuses().await?;
        if turn.is_multiple_of(OFTEN) {
            let hours = i64::from(self.config.limits.idempotency_hours);
            self.prune(Ended::Keys, hours * 3_600).await?;
        }
        if turn.is_multiple_of(HOURLY) {
            self.prune(Ended::Tokens, KEPT_S).await?;
            self.prune(Ended::Invites, KEPT_S).await?;
        }
        Ok(())
    }

    /// Ends the statuses whose time is over, piece by piece.
    async fn end_statuses(&self) -> Result<(), StoreError> {
        let ended =
            || self.store.in_time(async { users::ended_status(&mut self.store.read().await?, self.clock.now()).await });
        while !ended().await?.is_empty() {
            self.writer.write(SYSTEM, Work::Account(Account::EndStatuses), None).await?;
        }
        Ok(())
    }

    /// Moves the end of the sign-ins that have an open session.
    pub async fn prolong_open(&self) -> Result<(), Refusal> {
        let open: BTreeSet<TokenId> = self.directory.all_sessions().iter().map(|session| session.token_id).collect();
        let open: Vec<TokenId> = open.into_iter().collect();
        let until = self.config.auth.session_until(self.clock.now());
        for piece in open.chunks(PIECE) {
            let work = Account::Prolong { tokens: piece.to_vec(), until };
            self.writer.write(SYSTEM, Work::Account(work), None).await?;
        }
        Ok(())
    }

    /// Deletes, piece by piece, what ended more than `kept_s` seconds ago.
    async fn prune(&self, what: Ended, kept_s: i64) -> Result<(), Refusal> {
        let before = self.clock.now().plus_seconds(-kept_s);
        loop {
            let reply = self.writer.write(SYSTEM, Work::Account(Account::Prune { what, before }), None).await?;
            let Pruned { pruned } = serde_json::from_str(&reply.json).unwrap_or_default();
            metrics::counter!("colink_pruned_rows_total", "what" => what.as_str()).increment(pruned);
            if pruned < PRUNED_MAX {
                return Ok(());
            }
        }
    }
}
