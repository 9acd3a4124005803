//! The port between nodes.
pub mod memory;
use crate::domain::id::NodeId;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};
/// To whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// All other nodes.
    Everyone,
    /// One node.
    Node(NodeId),
}
/// What comes in.
pub type Incoming = mpsc::Receiver<Bytes>;
/// The bus.
#[derive(Clone)]
pub struct Bus(memory::Joined);
impl Bus {
    /// Hands a message over.
    pub fn publish(&self, to: To, message: Bytes) -> bool {
        self.0.publish(to, message)
    }
    /// Whether messages get through.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.0.up()
    }
    /// Stops.
    pub async fn close(&self) {}
}
