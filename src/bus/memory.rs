//! Nodes of one process.
use super::{Bus, Incoming, To};
use crate::domain::id::NodeId;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
/// The network.
#[derive(Clone, Default)]
pub struct Network(Arc<Mutex<HashMap<NodeId, (mpsc::Sender<Bytes>, watch::Sender<bool>)>>>);
impl Network {
    /// Joins.
    pub fn join(&self, node: NodeId) -> (Bus, Incoming) {
        let (tx, rx) = mpsc::channel(8192);
        let (up, upr) = watch::channel(true);
        self.0.lock().expect("x").insert(node, (tx, up));
        (Bus(Joined { node, network: self.clone(), up: upr }), rx)
    }
    /// Cuts.
    pub fn cut(&self, node: NodeId, cut: bool) {
        if let Some((_, up)) = self.0.lock().expect("x").get(&node) {
            up.send_replace(!cut);
        }
    }
}
#[derive(Clone)]
pub(super) struct Joined {
    node: NodeId,
    network: Network,
    up: watch::Receiver<bool>,
}
impl Joined {
    pub(super) fn publish(&self, to: To, message: Bytes) -> bool {
        if !*self.up.borrow() {
            return false;
        }
        for (id, (tx, up)) in self.network.0.lock().expect("x").iter() {
            let addressed = match to {
                To::Everyone => *id != self.node,
                To::Node(node) => *id == node,
            };
            if addressed && *up.borrow() {
                let _ = tx.try_send(message.clone());
            }
        }
        true
    }
    pub(super) fn up(&self) -> watch::Receiver<bool> {
        self.up.clone()
    }
}
