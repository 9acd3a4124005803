//! The sweep: what was committed and nobody told is found by asking the database which streams and accounts moved on.
//!
//! Another node may have committed it and the bus lost it; or a connection broke in the middle of a commit that took effect.
//! On Postgres it is asked every `cluster.sweep_ms`, more often while the bus or a node cannot be reached; on SQLite, which
//! has one writer, only when that one is in doubt. One query a node, however many streams it listens to.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::channel::ChannelMsg;
use super::{Hub, watched};
use crate::domain::id::UserId;
use crate::storage::tokens::Revoked;
use crate::storage::{Dialect, StoreError, nodes, tokens};

/// How long live events may be behind what the database says.
const GRACE: Duration = Duration::from_millis(50);

/// Starts the task. It lives until `stop` is cancelled or the node is gone.
pub(super) fn start(hub: &Arc<Hub>, stop: CancellationToken) {
    let hub = Arc::downgrade(hub);
    watched(&hub, &stop, "sweep", Box::pin(sweep(hub.clone())));
}

/// Looks again and again.
async fn sweep(hub: Weak<Hub>) {
    let mut failing = false;
    loop {
        let Some(hub) = hub.upgrade() else { return };
        let again = hub.sweep_every(failing);
        let wait = async {
            match again {
                Some(again) => tokio::time::sleep(again).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = hub.look_for_moves.notified() => {}
        }
        let told = std::mem::take(&mut *hub.told_revoked.lock().expect("no panic under this lock"));
        let done = hub.sweep_once().await;
        if let Err(error) = &done
            && !failing
        {
            tracing::warn!(%error, "cannot ask the database what is new: it is tried again");
        }
        failing = done.is_err();
        if failing {
            // Who cannot ask whether they are over takes them for it.
            told.into_iter().for_each(|revoked| hub.revoke(revoked));
        }
    }
}

impl Hub {
    fn sweep_every(&self, failing: bool) -> Option<Duration> {
        let config = &self.config.cluster;
        let (healthy, degraded) =
            (Duration::from_millis(config.sweep_ms), Duration::from_millis(config.sweep_degraded_ms));
        match &self.cluster {
            Some(cluster) if cluster.is_degraded() => Some(degraded),
            None if self.store.dialect() == Dialect::Sqlite => failing.then_some(healthy),
            _ => Some(healthy),
        }
    }

    /// Takes what another node says of sign-ins that ended. It may be something old that is said again, so it ends no session:
    /// the database is asked, at once.
    pub(super) fn heard_revoked(&self, revoked: Vec<Revoked>) {
        for revoked in revoked {
            self.cache.forget_user(revoked.user);
            if self.sessions_under(revoked).next().is_some() {
                self.told_revoked.lock().expect("no panic under this lock").insert(revoked);
                self.look_for_moves.notify_one();
            }
        }
    }

    async fn sweep_once(self: &Arc<Self>) -> Result<(), StoreError> {
        let (streams, users) = (self.directory.watched(), self.directory.versions());
        if users.is_empty() {
            return Ok(());
        }
        let moved = self.store.in_time(async {
            let mut db = self.store.read().await?;
            nodes::moved(&mut db, &streams, &users).await
        });
        let moved = moved.await?;
        for (user, version) in moved.users {
            self.look_at_sign_ins(user, version).await?;
        }
        if moved.streams.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(GRACE).await;
        for (stream, head) in moved.streams {
            let Some(slot) = self.directory.slot(stream) else { continue };
            if slot.delivered.load(Ordering::Acquire) < head {
                metrics::counter!("colink_sweep_repairs_total").increment(1);
                self.tell(stream, ChannelMsg::Recover);
            }
        }
        Ok(())
    }

    /// Looks whether a user's open sessions may go on, and as what.
    async fn look_at_sign_ins(&self, user: UserId, version: i64) -> Result<(), StoreError> {
        self.cache.forget_user(user);
        for session in self.directory.sessions_of(user) {
            let standing = self.store.in_time(async {
                let mut db = self.store.read().await?;
                tokens::standing(&mut db, session.token_id, self.clock.now()).await
            });
            match standing.await? {
                None => session.revoke(),
                Some(sign_in) => {
                    if session.set_role(sign_in.principal.role) {
                        session.look_again();
                    }
                }
            }
            session.note_version(version);
        }
        Ok(())
    }
}
