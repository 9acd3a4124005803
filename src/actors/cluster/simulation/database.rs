//! The database, as far as the fence of a send's statement goes ([`crate::storage::send`]).

use super::*;

pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) epoch: i64,
    pub(super) owner: Option<NodeId>,
    pub(super) owned_at: u64,
    pub(super) log: Vec<Event>,
}

impl Stream {
    pub(super) fn head(&self) -> i64 {
        self.log.len() as i64
    }
}

pub(super) struct Database {
    pub(super) streams: Vec<Stream>,
    /// Where the message of each key is.
    pub(super) keys: HashMap<String, (usize, i64)>,
    /// The beats of the nodes, by run.
    pub(super) nodes: BTreeMap<NodeId, (String, i64)>,
}

/// What a send's statement asks of one stream.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) stream: usize,
    pub(super) was: i64,
    pub(super) epoch: i64,
    pub(super) take: bool,
    /// The writer took itself for the owner.
    pub(super) mine: bool,
    pub(super) keys: Vec<String>,
}

impl Database {
    /// One statement: all or nothing of it for each stream, and nothing at all if a key is there already.
    pub(super) fn insert(&mut self, node: NodeId, heads: &[Head], now: u64) -> Result<BTreeSet<usize>, ()> {
        let guarded = |db: &Database, head: &Head| {
            let stream = &db.streams[head.stream];
            stream.head() == head.was && stream.epoch == head.epoch
        };
        let going: Vec<&Head> = heads.iter().filter(|head| guarded(self, head)).collect();
        if going.iter().any(|head| head.keys.iter().any(|key| self.keys.contains_key(key))) {
            return Err(());
        }
        let mut stored = BTreeSet::new();
        for head in going {
            let stream = &mut self.streams[head.stream];
            assert!(!head.mine || stream.owner == Some(node), "a stale owner wrote");
            if head.take {
                (stream.epoch, stream.owner, stream.owned_at) = (stream.epoch + 1, Some(node), now);
            }
            for key in &head.keys {
                let seq = stream.head() + 1;
                let (kind, at) = (EventKind::MessageCreated, Timestamp(1));
                let payload = format!("{{\"key\":\"{key}\"}}").into();
                stream.log.push(Event { stream: stream.id, seq, id: EventId::new(at), kind, actor: None, payload, at });
                self.keys.insert(key.clone(), (head.stream, seq));
            }
            stored.insert(head.stream);
        }
        Ok(stored)
    }
}
