//! The bus inside one process: a single node, or several in a test. A message goes straight into its reader's queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{Body, Bus, Incoming, To, count_dropped, count_published, hand_over, set_up};
use crate::domain::id::NodeId;

/// How many messages wait before a node's reader.
const QUEUE: usize = 4_096;

/// What the nodes of a process share. Clones are the same network.
#[derive(Clone, Default, Debug)]
pub struct Network(Arc<Mutex<BTreeMap<NodeId, Seat>>>);

/// A node on the network.
#[derive(Debug)]
struct Seat {
    incoming: mpsc::Sender<Bytes>,
    up: watch::Sender<bool>,
}

impl Network {
    /// Joins as `node`. Whoever joined under that name before is out.
    #[must_use]
    pub fn join(&self, node: NodeId) -> (Bus, Incoming) {
        let (incoming, reader) = mpsc::channel(QUEUE);
        let (watched, up) = watch::channel(false);
        set_up(&watched, true);
        if let Some(former) = self.lock().insert(node, Seat { incoming, up: watched }) {
            former.up.send_replace(false);
        }
        let member = Member(Arc::new(Inner { network: self.clone(), node, up }));
        (Bus(Body::Memory(member)), reader)
    }

    /// Cuts a node off, or no longer. While it is, it neither speaks nor hears, and its `up` is false.
    pub fn cut(&self, node: NodeId, cut: bool) {
        if let Some(seat) = self.lock().get(&node) {
            set_up(&seat.up, !cut);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Seat>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A node's place on a network.
#[derive(Clone, Debug)]
pub(super) struct Member(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    network: Network,
    node: NodeId,
    up: watch::Receiver<bool>,
}

impl Member {
    pub(super) fn publish(&self, to: To, message: &Bytes) -> bool {
        // Held for all readers, so that all of them hear in the same order.
        let seats = self.0.network.lock();
        if !*self.0.up.borrow() {
            count_dropped("down", 1);
            return false;
        }
        count_published(1);
        let is_meant = |node: NodeId| node != self.0.node && (to == To::Everyone || to == To::Node(node));
        let readers = seats.iter().filter(|(node, seat)| is_meant(**node) && *seat.up.borrow());
        let heard: Vec<bool> = readers.map(|(_, seat)| hand_over(&seat.incoming, message.clone())).collect();
        heard.is_empty() || heard.contains(&true)
    }

    pub(super) fn up(&self) -> watch::Receiver<bool> {
        self.0.up.clone()
    }

    pub(super) fn leave(&self) {
        self.0.leave();
    }
}

impl Inner {
    fn leave(&self) {
        let mut seats = self.network.lock();
        // Another may have joined under this name since.
        if seats.get(&self.node).is_some_and(|seat| seat.up.subscribe().same_channel(&self.up))
            && let Some(seat) = seats.remove(&self.node)
        {
            set_up(&seat.up, false);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.leave();
    }
}
