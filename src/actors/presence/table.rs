//! Who is online: a table that takes what happens and says what changed. Pure: takes `now`.

use std::collections::HashMap;

use crate::clock::Timestamp;
use crate::domain::id::UserId;
use crate::domain::user::{Presence, PresenceMode};

#[derive(Clone, Copy, Debug)]
struct Entry {
    active: Timestamp,
    /// Did nothing for long, at the last look; until they do something.
    idle: bool,
    mode: PresenceMode,
    shown: Presence,
}

/// The presence of the users who are there: connected, or a moment ago.
#[derive(Debug, Default)]
pub struct Table {
    users: HashMap<UserId, Entry>,
}

impl Table {
    /// Returns what others see of a user.
    #[must_use]
    pub fn shown(&self, user: UserId) -> Presence {
        self.users.get(&user).map_or(Presence::Offline, |entry| entry.shown)
    }

    /// Returns how many users are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Returns whether nobody is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Returns whether a user is there.
    #[must_use]
    pub fn has(&self, user: UserId) -> bool {
        self.users.contains_key(&user)
    }

    /// Returns who is there, and what others see of them.
    pub fn all(&self) -> impl Iterator<Item = (UserId, Presence)> {
        self.users.iter().map(|(user, entry)| (*user, entry.shown))
    }

    /// Notes how a user who is there wants to be shown; nothing, if they are not there. It is a sign of them only if they were
    /// not: a time that ends, or an administrator, changes it too. Returns what others see now, if that changed.
    pub fn set(&mut self, user: UserId, mode: Option<PresenceMode>, now: Timestamp) -> Option<Presence> {
        let Some(mode) = mode else {
            return self.users.remove(&user).map(|_| Presence::Offline);
        };
        let fresh = Entry { active: now, idle: false, mode, shown: Presence::Offline };
        let entry = self.users.entry(user).or_insert(fresh);
        entry.mode = mode;
        settle(entry)
    }

    /// Notes that a user did something.
    pub fn set_active(&mut self, user: UserId, now: Timestamp) -> Option<Presence> {
        let entry = self.users.get_mut(&user)?;
        (entry.active, entry.idle) = (now, false);
        settle(entry)
    }

    /// Turns those away who did nothing for `idle_after_s`; returns who changed.
    pub fn turn_idle(&mut self, now: Timestamp, idle_after_s: i64) -> Vec<(UserId, Presence)> {
        let mut changed = Vec::new();
        for (user, entry) in &mut self.users {
            let silent = now.since(entry.active).as_secs();
            entry.idle = i64::try_from(silent).unwrap_or(i64::MAX) >= idle_after_s;
            if let Some(shown) = settle(entry) {
                changed.push((*user, shown));
            }
        }
        changed
    }
}

fn settle(entry: &mut Entry) -> Option<Presence> {
    let shown = match entry.mode {
        PresenceMode::Dnd => Presence::Dnd,
        PresenceMode::Away => Presence::Away,
        PresenceMode::Auto if entry.idle => Presence::Away,
        PresenceMode::Auto => Presence::Online,
    };
    (std::mem::replace(&mut entry.shown, shown) != shown).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_comes_idles_returns_and_goes() {
        let (mut table, ana) = (Table::default(), UserId::new(Timestamp(1)));
        let at = |s: i64| Timestamp(s * 1_000_000);
        assert_eq!(table.shown(ana), Presence::Offline);
        let (auto, dnd) = (Some(PresenceMode::Auto), Some(PresenceMode::Dnd));
        assert_eq!(table.set(ana, auto, at(0)), Some(Presence::Online));
        assert_eq!(table.set(ana, auto, at(1)), None);
        assert!(table.turn_idle(at(100), 300).is_empty());
        assert_eq!(table.turn_idle(at(400), 300), [(ana, Presence::Away)]);
        assert_eq!(table.set_active(ana, at(401)), Some(Presence::Online));
        assert_eq!(table.set(ana, dnd, at(402)), Some(Presence::Dnd));
        assert!(table.turn_idle(at(9_000), 300).is_empty(), "not to be disturbed stays");
        assert_eq!(table.set(ana, dnd, at(9_001)), None);
        assert_eq!(table.set(ana, None, at(9_002)), Some(Presence::Offline));
        assert!(table.is_empty());
    }

    #[test]
    fn an_idle_user_comes_back_by_what_they_do_alone() {
        let (mut table, ana) = (Table::default(), UserId::new(Timestamp(1)));
        let at = |s: i64| Timestamp(s * 1_000_000);
        let auto = Some(PresenceMode::Auto);
        table.set(ana, auto, at(0));
        assert_eq!(table.turn_idle(at(300), 300), [(ana, Presence::Away)]);
        assert_eq!(
            table.set(ana, auto, at(301)),
            None,
            "the profile changed, or one device is gone, or is connected again"
        );
        assert_eq!(table.set_active(ana, at(303)), Some(Presence::Online));
    }
}
