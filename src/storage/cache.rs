//! What of the store is remembered for a moment, and forgotten as soon as it changes.
//!
//! Who a token speaks for is believed for `auth.cache_s` at most. A rendered page of a channel's history, and who may do what
//! there, are good for as long as the channel's head does not move: every change of a channel moves it. Everything is
//! bounded; pages in bytes, for a page may be a thousand times as long as another.
//!
//! If other nodes write to the same database, not all changes are heard of here at once. Then nothing is remembered of
//! who may do what, and pages are kept by the channel's head, which is read with every question. So it is if pages come from a
//! replica, which has to have got as far as that head.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::channels::Facts;
use super::messages::Page;
use super::tokens::Identity;
use crate::clock::Timestamp;
use crate::domain::event::{Audience, Event};
use crate::domain::id::{ChannelId, StreamId, UserId};

const TOKENS_MAX: usize = 100_000;
const PAGES_MAX: usize = 1_024;
const PAGES_BYTES: usize = 16 * 1_024 * 1_024;
const FACTS_MAX: usize = 100_000;

/// Which rendered page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageKey {
    /// The channel.
    pub channel: ChannelId,
    /// Which part of its history.
    pub page: Page,
    /// How many messages.
    pub limit: i64,
    /// Where the channel's head is, if it is read with every question; else 0. See [`Cache::head`].
    pub head: i64,
}

/// The memory. All of it is derived; losing it costs time only.
#[derive(Debug)]
pub struct Cache {
    believe: Duration,
    shared: bool,
    sign_ins: Mutex<SignIns>,
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct SignIns {
    /// How often any were forgotten: what was looked up before that is not kept after it.
    changes: u64,
    known: HashMap<[u8; 32], (Identity, Instant)>,
}

#[derive(Debug, Default)]
struct Pages {
    /// How often anything here was forgotten: what was read from the store before a change is not kept after it.
    changes: u64,
    rendered: HashMap<PageKey, Bytes>,
    /// The length of all that is rendered.
    bytes: usize,
    facts: HashMap<(ChannelId, UserId), Facts>,
}

impl Pages {
    fn keep(&mut self, key: PageKey, page: Bytes) {
        if page.len() > PAGES_BYTES / 4 {
            return;
        }
        if self.rendered.len() >= PAGES_MAX || self.bytes + page.len() > PAGES_BYTES {
            self.rendered.clear();
            self.bytes = 0;
        }
        self.bytes += page.len();
        if let Some(before) = self.rendered.insert(key, page) {
            self.bytes -= before.len();
        }
        self.tell_size();
    }

    fn forget(&mut self, channel: ChannelId) {
        if self.rendered.is_empty() {
            return;
        }
        self.rendered.retain(|key, _| key.channel != channel);
        self.bytes = self.rendered.values().map(Bytes::len).sum();
        self.tell_size();
    }

    fn tell_size(&self) {
        metrics::gauge!("colink_page_cache_bytes").set(self.bytes as f64);
    }
}

impl Cache {
    /// Makes an empty memory that believes a token for `believe`; never, if zero. `shared` says that the head is
    /// read with every question.
    #[must_use]
    pub fn new(believe: Duration, shared: bool) -> Self {
        Cache { believe, shared, sign_ins: Mutex::default(), pages: Mutex::default() }
    }

    /// Returns what of a channel's head a page is kept by.
    #[must_use]
    pub fn head(&self, head: i64) -> i64 {
        if self.shared { head } else { 0 }
    }

    /// Returns who a token was found to speak for, not long ago.
    pub fn identity(&self, hash: &[u8; 32]) -> Option<Identity> {
        let sign_ins = self.sign_ins.lock().expect("no panic under this lock");
        sign_ins.known.get(hash).filter(|(_, at)| at.elapsed() < self.believe).map(|(identity, _)| *identity)
    }

    /// Returns a mark to hand to [`Cache::keep_identity`]: take it before reading the store.
    pub fn mark_identity(&self) -> u64 {
        self.sign_ins.lock().expect("no panic under this lock").changes
    }

    /// Remembers who a token speaks for, unless sign-ins were forgotten since `mark`.
    pub fn keep_identity(&self, mark: u64, hash: [u8; 32], identity: Identity) {
        if self.believe.is_zero() {
            return;
        }
        let mut sign_ins = self.sign_ins.lock().expect("no panic under this lock");
        if sign_ins.changes != mark {
            return;
        }
        let known = &mut sign_ins.known;
        if known.len() >= TOKENS_MAX {
            let believe = self.believe;
            known.retain(|_, (_, at)| at.elapsed() < believe);
        }
        if known.len() < TOKENS_MAX {
            known.insert(hash, (identity, Instant::now()));
        }
    }

    /// Notes that a sign-in ends later, if it is remembered.
    pub fn prolong_identity(&self, hash: &[u8; 32], until: Timestamp) {
        let mut sign_ins = self.sign_ins.lock().expect("no panic under this lock");
        if let Some((identity, _)) = sign_ins.known.get_mut(hash) {
            identity.expires_at = Some(until);
        }
    }

    /// Forgets all sign-ins of a user, and what they may do where.
    pub fn forget_user(&self, user: UserId) {
        let mut sign_ins = self.sign_ins.lock().expect("no panic under this lock");
        sign_ins.changes += 1;
        sign_ins.known.retain(|_, (identity, _)| identity.principal.user_id != user);
        drop(sign_ins);
        let mut pages = self.pages.lock().expect("no panic under this lock");
        pages.changes += 1;
        pages.facts.retain(|(_, of), _| *of != user);
    }

    /// Returns a mark to hand to [`Cache::keep_page`] and [`Cache::keep_facts`]: take it before reading the store.
    pub fn mark(&self) -> u64 {
        self.pages.lock().expect("no panic under this lock").changes
    }

    /// Returns a rendered page.
    pub fn page(&self, key: &PageKey) -> Option<Bytes> {
        self.pages.lock().expect("no panic under this lock").rendered.get(key).cloned()
    }

    /// Remembers a rendered page, unless something changed since `mark`.
    pub fn keep_page(&self, mark: u64, key: PageKey, page: Bytes) {
        let mut pages = self.pages.lock().expect("no panic under this lock");
        if pages.changes != mark {
            return;
        }
        pages.keep(key, page);
    }

    /// Returns what decides about a user and a channel.
    pub fn facts(&self, channel: ChannelId, user: UserId) -> Option<Facts> {
        self.pages.lock().expect("no panic under this lock").facts.get(&(channel, user)).copied()
    }

    /// Remembers what decides about a user and a channel, unless something changed since `mark`.
    pub fn keep_facts(&self, mark: u64, channel: ChannelId, user: UserId, facts: Facts) {
        let mut pages = self.pages.lock().expect("no panic under this lock");
        if pages.changes != mark || self.shared {
            return;
        }
        if pages.facts.len() >= FACTS_MAX {
            pages.facts.clear();
        }
        pages.facts.insert((channel, user), facts);
    }

    /// Forgets everything.
    pub fn forget_all(&self) {
        let mut sign_ins = self.sign_ins.lock().expect("no panic under this lock");
        sign_ins.changes += 1;
        sign_ins.known.clear();
        drop(sign_ins);
        let mut pages = self.pages.lock().expect("no panic under this lock");
        pages.changes += 1;
        pages.rendered.clear();
        pages.facts.clear();
        pages.bytes = 0;
        pages.tell_size();
    }

    /// Forgets what an event changes.
    pub fn committed(&self, event: &Event) {
        if event.kind.audience() != Audience::Members {
            return;
        }
        let channel = ChannelId::from(event.stream);
        let mut pages = self.pages.lock().expect("no panic under this lock");
        pages.changes += 1;
        pages.forget(channel);
        if changes_facts(event) {
            pages.facts.retain(|(of, _), _| *of != channel);
        }
    }
}

fn changes_facts(event: &Event) -> bool {
    !event.kind.as_str().starts_with("message.")
        && !event.kind.as_str().starts_with("reaction.")
        && !event.kind.as_str().starts_with("pin.")
        && event.stream != StreamId::WORKSPACE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command::Principal;
    use crate::domain::id::TokenId;
    use crate::domain::user::Role;

    #[test]
    fn a_sign_in_that_was_looked_up_before_it_ended_is_not_believed_after() {
        let cache = Cache::new(Duration::from_secs(60), false);
        let user_id = UserId(uuid::Uuid::from_u128(1));
        let principal = Principal { user_id, role: Role::Member, token_id: TokenId(uuid::Uuid::from_u128(2)) };
        let found = Identity { principal, expires_at: None, slides: false, version: 1 };
        let mark = cache.mark_identity();
        cache.forget_user(user_id);
        cache.keep_identity(mark, [1; 32], found);
        assert!(cache.identity(&[1; 32]).is_none());
        cache.keep_identity(cache.mark_identity(), [1; 32], found);
        assert!(cache.identity(&[1; 32]).is_some());
        cache.forget_user(user_id);
        assert!(cache.identity(&[1; 32]).is_none());
    }

    #[test]
    fn pages_are_kept_up_to_a_number_of_bytes() {
        let channel = ChannelId::new(Timestamp(1));
        let key = |n| PageKey { channel, page: Page::Before(n), limit: 200, head: 0 };
        let page = |len: usize| Bytes::from(vec![b'x'; len]);
        let cache = Cache::new(Duration::ZERO, false);
        let bytes = || cache.pages.lock().unwrap().bytes;
        for n in 0..100 {
            cache.keep_page(0, key(n), page(PAGES_BYTES / 8));
            assert!(bytes() <= PAGES_BYTES && cache.page(&key(n)).is_some());
        }
        let kept = bytes();
        cache.keep_page(0, key(99), page(PAGES_BYTES / 8 - 10));
        assert_eq!(bytes(), kept - 10, "in place of the one before");
        cache.pages.lock().unwrap().forget(channel);
        assert_eq!(bytes(), 0);
    }
}
