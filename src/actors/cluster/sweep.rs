//! The sweep: what the bus lost is found by asking the database which streams and accounts moved on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Cluster, count};
use crate::actors::Hub;
use crate::actors::channel::ChannelMsg;
use crate::domain::id::UserId;
use crate::storage::{StoreError, nodes, tokens};

/// How long live events may be behind what the database says.
const GRACE: Duration = Duration::from_millis(50);

/// Looks again and again; more often while live events of some node may not get here.
pub(super) async fn sweep(hub: Weak<Hub>) {
    let mut failing = false;
    loop {
        let Some(hub) = hub.upgrade() else { return };
        let Some(cluster) = hub.cluster.clone() else { return };
        let every =
            if cluster.is_degraded() { hub.config.cluster.sweep_degraded_ms } else { hub.config.cluster.sweep_ms };
        let done = hub.sweep_once(&cluster).await;
        if let Err(error) = &done
            && !failing
        {
            tracing::warn!(%error, "cannot ask the database what is new: it is tried again");
        }
        failing = done.is_err();
        drop(hub);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(every)) => {}
            () = cluster.wake.notified() => {}
        }
    }
}

impl Hub {
    async fn sweep_once(self: &Arc<Self>, cluster: &Cluster) -> Result<(), StoreError> {
        let (streams, users) = (self.directory.watched(), self.directory.versions());
        if users.is_empty() {
            return Ok(());
        }
        let mut db = self.store.read().await?;
        let moved = nodes::moved(&mut db, &streams, &users).await?;
        drop(db);
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
                count(&cluster.counts.repaired, "colink_sweep_repairs_total", 1);
                self.tell(stream, ChannelMsg::Recover);
            }
        }
        Ok(())
    }

    /// Looks whether a user's open sessions may go on, and as what.
    async fn look_at_sign_ins(&self, user: UserId, version: i64) -> Result<(), StoreError> {
        self.cache.forget_user(user);
        for session in self.directory.sessions_of(user) {
            let mut db = self.store.read().await?;
            let standing = tokens::standing(&mut db, session.token_id, self.clock.now()).await?;
            drop(db);
            match standing {
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
