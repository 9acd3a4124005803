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

    /// Notes whether a user is there, which is a sign of them only if they were not; returns what others see now, if that
    /// changed.
    pub fn set_present(&mut self, user: UserId, present: bool, mode: PresenceMode, now: Timestamp) -> Option<Presence> {
        if !present {
            return self.users.remove(&user).map(|_| Presence::Offline);
        }
        let fresh = Entry { active: now, idle: false, mode, shown: Presence::Offline };
        settle(self.users.entry(user).or_insert(fresh))
    }

    /// Notes that a user did something.
    pub fn set_active(&mut self, user: UserId, now: Timestamp) -> Option<Presence> {
        let entry = self.users.get_mut(&user)?;
        (entry.active, entry.idle) = (now, false);
        settle(entry)
    }

    /// Notes how a user wants to be shown. It is no sign of the user: a time that ends, or an administrator, brings it too.
    pub fn set_mode(&mut self, user: UserId, mode: PresenceMode) -> Option<Presence> {
        let entry = self.users.get_mut(&user)?;
        entry.mode = mode;
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
        assert_eq!(table.set_present(ana, true, PresenceMode::Auto, at(0)), Some(Presence::Online));
        assert_eq!(table.set_present(ana, true, PresenceMode::Auto, at(1)), None);
        assert!(table.turn_idle(at(100), 300).is_empty());
        assert_eq!(table.turn_idle(at(400), 300), [(ana, Presence::Away)]);
        assert_eq!(table.set_active(ana, at(401)), Some(Presence::Online));
        assert_eq!(table.set_mode(ana, PresenceMode::Dnd), Some(Presence::Dnd));
        assert!(table.turn_idle(at(9_000), 300).is_empty(), "not to be disturbed stays");
        assert_eq!(table.set_present(ana, true, PresenceMode::Auto, at(9_001)), None);
        assert_eq!(table.set_present(ana, false, PresenceMode::Auto, at(9_002)), Some(Presence::Offline));
        assert!(table.is_empty());
    }

    #[test]
    fn an_idle_user_comes_back_by_what_they_do_alone() {
        let (mut table, ana) = (Table::default(), UserId::new(Timestamp(1)));
        let at = |s: i64| Timestamp(s * 1_000_000);
        table.set_present(ana, true, PresenceMode::Auto, at(0));
        assert_eq!(table.turn_idle(at(300), 300), [(ana, Presence::Away)]);
        assert_eq!(table.set_mode(ana, PresenceMode::Auto), None, "the profile changed");
        assert_eq!(table.set_present(ana, true, PresenceMode::Auto, at(301)), None, "one device is gone");
        assert_eq!(table.set_present(ana, true, PresenceMode::Auto, at(302)), None, "it is connected again");
        assert_eq!(table.set_active(ana, at(303)), Some(Presence::Online));
    }
}
