//! The bus: short messages between the nodes of a cluster, quick and without any promise.
//!
//! One contract (see [`Bus`]) and two bodies: [`memory`] for nodes of one process, [`redis`] for nodes anywhere. A node
//! joins, gets a [`Bus`] to publish by and an [`Incoming`] to hear from, and builds on neither of them being there: what
//! must not be lost is in the database, and whoever misses a message reads it there.

pub mod memory;
pub mod redis;

#[cfg(test)]
mod contract;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::domain::id::NodeId;

/// The longest message, in bytes.
pub const MESSAGE_MAX: usize = 1_024 * 1_024;

/// Whom a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// All other nodes of the cluster; never the sender itself.
    Everyone,
    /// One other node.
    Node(NodeId),
}

/// A node's place on the bus, as the one who speaks. Clones are the same place; when the last one goes, the node leaves.
///
/// What every body keeps to:
///
/// * **At most once.** A message is heard once or never, and whoever published it is not told which. Everything may be
///   lost at any time.
/// * **In order.** What one node hears of another comes in the order in which it was published, whether it was for
///   everyone or for that node, as long as the bus stays up. Nothing is said of the order between senders.
/// * **Whole.** A message is up to [`MESSAGE_MAX`] bytes long and arrives as it was, or not at all.
/// * **Nothing waits.** Publishing never blocks. A queue that is full drops: the outgoing one when the bus is slow, the
///   incoming one when its reader is. Drops are counted in `colink_bus_dropped_total`.
/// * **[`up`](Bus::up) is about now.** While it is true, messages got through within the last 1.5 seconds or so: a node
///   finds out within that time that it is cut off. It speaks of this node's way to the bus and back; whether
///   another node is there, its own messages tell.
#[derive(Clone, Debug)]
pub struct Bus(Body);

/// What comes in: whole messages of other nodes. When it is full, further messages are dropped and counted. It ends when
/// the node has left the bus.
pub type Incoming = mpsc::Receiver<Bytes>;

#[derive(Clone, Debug)]
enum Body {
    Memory(memory::Member),
    Redis(redis::Link),
}

impl Bus {
    /// Hands a message over; never waits. Returns false if it was dropped at once: the bus is down, a queue is full, or
    /// the message is too long. True promises nothing.
    pub fn publish(&self, to: To, message: Bytes) -> bool {
        if message.len() > MESSAGE_MAX {
            count_dropped("size", 1);
            return false;
        }
        match &self.0 {
            Body::Memory(member) => member.publish(to, &message),
            Body::Redis(link) => link.publish(to, message),
        }
    }

    /// Returns whether messages get through at present, to look at or to wait for.
    #[must_use]
    pub fn up(&self) -> watch::Receiver<bool> {
        match &self.0 {
            Body::Memory(member) => member.up(),
            Body::Redis(link) => link.up(),
        }
    }

    /// Leaves the bus, for all clones; returns when its tasks have ended.
    pub async fn close(&self) {
        match &self.0 {
            Body::Memory(member) => member.leave(),
            Body::Redis(link) => link.close().await,
        }
    }
}

/// Puts a message that came in before its reader; returns whether there was room.
fn hand_over(incoming: &mpsc::Sender<Bytes>, message: Bytes) -> bool {
    let has_room = incoming.try_send(message).is_ok();
    if has_room {
        metrics::counter!("colink_bus_received_total").increment(1);
    } else {
        count_dropped("slow", 1);
    }
    has_room
}

fn count_published(messages: u64) {
    metrics::counter!("colink_bus_published_total").increment(messages);
}

/// Counts messages that were lost on this node; how is `why`: see docs/OPERATIONS.md.
fn count_dropped(why: &'static str, messages: u64) {
    metrics::counter!("colink_bus_dropped_total", "why" => why).increment(messages);
}

/// Tells whoever watches whether the bus is up.
fn set_up(watched: &watch::Sender<bool>, up: bool) {
    watched.send_replace(up);
    metrics::gauge!("colink_bus_up").set(f64::from(u8::from(up)));
}
