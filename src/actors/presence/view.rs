//! What is seen of whom: by this node's sessions and by what other nodes tell, and what those who watch were told. Pure:
//! takes `now`.

use std::collections::{HashMap, HashSet};

use super::peers::{Peers, Voice};
use super::table::Table;
use crate::domain::id::UserId;
use crate::domain::user::Presence;

/// All of it.
#[derive(Debug, Default)]
pub struct View {
    /// Who is here.
    pub here: Table,
    /// Who is elsewhere.
    pub peers: Peers,
    /// What others are told; nothing, if there are none.
    pub voice: Option<Voice>,
    /// Of those who are watched, what was told last.
    told: HashMap<UserId, Presence>,
    /// Of these, who may be seen in another way since.
    changed: HashSet<UserId>,
}

impl View {
    /// Makes the view of a node that tells others by this voice.
    #[must_use]
    pub fn new(voice: Option<Voice>) -> Self {
        View { voice, ..View::default() }
    }

    /// Returns what others see of a user: the best of what is known for sure, else of what is not.
    #[must_use]
    pub fn seen(&self, user: UserId) -> Presence {
        let (there, unsure) = self.peers.seen(user);
        match self.here.shown(user).max(there) {
            Presence::Offline => unsure,
            sure => sure,
        }
    }

    /// Watches a user.
    pub fn watch(&mut self, user: UserId) {
        let seen = self.seen(user);
        self.told.entry(user).or_insert(seen);
    }

    /// Notes that nobody watches a user any more.
    pub fn unwatch(&mut self, user: UserId) {
        self.told.remove(&user);
        self.changed.remove(&user);
    }

    /// Notes that a user is shown in another way here.
    pub fn changed_here(&mut self, user: UserId) {
        if let Some(voice) = &mut self.voice {
            voice.note(user);
        }
        self.changed([user]);
    }

    /// Notes that users may be seen in another way.
    pub fn changed(&mut self, users: impl IntoIterator<Item = UserId>) {
        self.changed.extend(users.into_iter().filter(|user| self.told.contains_key(user)));
    }

    /// Returns whether there is anything to tell.
    #[must_use]
    pub fn has_news(&self) -> bool {
        !self.changed.is_empty() || self.voice.as_ref().is_some_and(Voice::has_news)
    }

    /// Takes what those who watch have to be told.
    pub fn take_news(&mut self) -> Vec<(UserId, Presence)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter_map(|user| Some((user, self.take_news_of(user)?))).collect()
    }

    /// Takes what those who watch a user have to be told of them.
    pub fn take_news_of(&mut self, user: UserId) -> Option<Presence> {
        self.changed.remove(&user);
        let seen = self.seen(user);
        let told = self.told.get_mut(&user)?;
        (std::mem::replace(told, seen) != seen).then_some(seen)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::actors::cluster::members::Lease;
    use crate::clock::Timestamp;
    use crate::domain::id::NodeId;
    use crate::domain::user::PresenceMode;

    const LINGER: Duration = Duration::from_secs(30);

    fn three() -> (Vec<NodeId>, Vec<View>) {
        let ids = (1..=3).map(|n| NodeId::new(Timestamp(n))).collect();
        let view = |_| View::new(Some(Voice::new(0)));
        (ids, (0..3).map(view).collect())
    }

    fn comes(view: &mut View, user: UserId) {
        if view.here.set(user, Some(PresenceMode::Auto), Timestamp(1)).is_some() {
            view.changed_here(user);
        }
    }

    /// Lets a node tell the others; returns in how many messages.
    fn tells(ids: &[NodeId], views: &mut [View], at: usize, now: Instant) -> usize {
        let View { voice, here, .. } = &mut views[at];
        let voice = voice.as_mut().unwrap();
        let known = voice.version() > 1;
        let changes = voice.changes(here);
        let all = voice.all(here);
        for other in (0..views.len()).filter(|other| *other != at) {
            let view = &mut views[other];
            let mut touched = Vec::new();
            if known {
                for changes in changes.clone() {
                    touched.extend(view.peers.changes(ids[at], changes, now));
                }
            } else {
                for part in all.clone() {
                    touched.extend(view.peers.all(ids[at], part, now));
                }
            }
            view.changed(touched);
        }
        changes.len()
    }

    fn dies(ids: &[NodeId], views: &mut [View], at: usize, now: Instant) {
        let lease = |id| if id == ids[at] { Lease::Over } else { Lease::Holds };
        for view in views {
            let touched = view.peers.look(lease, LINGER, now);
            view.changed(touched);
        }
    }

    /// Five thousand users on the second node, whom somebody watches on the first and the third.
    fn crowd(ids: &[NodeId], views: &mut [View], now: Instant) -> Vec<UserId> {
        let users: Vec<UserId> = (0..5_000).map(|n| UserId::new(Timestamp(n))).collect();
        for user in &users {
            views[0].watch(*user);
            views[2].watch(*user);
            comes(&mut views[1], *user);
        }
        assert_eq!(tells(ids, views, 1, now), 3);
        for at in [0, 2] {
            assert_eq!(views[at].take_news().len(), users.len(), "they came");
        }
        users
    }

    #[test]
    fn when_a_node_dies_and_its_users_come_back_elsewhere_nobody_is_told_anything() {
        let ((ids, mut views), now) = (three(), Instant::now());
        let users = crowd(&ids, &mut views, now);
        dies(&ids, &mut views, 1, now);
        for some in users.chunks(500) {
            some.iter().for_each(|user| comes(&mut views[2], *user));
            assert_eq!(tells(&ids, &mut views, 2, now), 1);
            assert!(views.iter_mut().all(|view| view.take_news().is_empty()));
        }
        dies(&ids, &mut views, 1, now + LINGER);
        assert!(views.iter_mut().all(|view| view.take_news().is_empty()));
        assert!(users.iter().all(|user| views[0].seen(*user) == Presence::Online));
    }

    #[test]
    fn of_users_who_come_back_late_there_is_one_word_that_they_went_and_one_that_they_came() {
        let ((ids, mut views), now) = (three(), Instant::now());
        let users = crowd(&ids, &mut views, now);
        dies(&ids, &mut views, 1, now);
        assert!(views[0].take_news().is_empty());
        dies(&ids, &mut views, 1, now + LINGER);
        let news = views[0].take_news();
        assert!(news.len() == users.len() && news.iter().all(|(_, presence)| *presence == Presence::Offline));
        let mut told = 0;
        for some in users.chunks(500) {
            some.iter().for_each(|user| comes(&mut views[2], *user));
            tells(&ids, &mut views, 2, now);
            told += views[0].take_news().len();
        }
        assert_eq!(told, users.len());
        dies(&ids, &mut views, 1, now + 2 * LINGER);
        assert!(views[0].take_news().is_empty());
    }

    #[test]
    fn the_best_counts_and_what_is_sure_before_what_is_not() {
        let ((ids, mut views), now, ana) = (three(), Instant::now(), UserId::new(Timestamp(1)));
        for at in [0, 1, 2] {
            comes(&mut views[at], ana);
            tells(&ids, &mut views, at, now);
        }
        let seen = |views: &[View]| views[0].seen(ana);
        let mode = |views: &mut [View], at: usize, mode| {
            views[at].here.set(ana, Some(mode), Timestamp(2));
            views[at].changed_here(ana);
            tells(&ids, views, at, now);
        };
        mode(&mut views, 0, PresenceMode::Away);
        assert_eq!(seen(&views), Presence::Online);
        mode(&mut views, 1, PresenceMode::Dnd);
        assert_eq!(seen(&views), Presence::Dnd);
        dies(&ids, &mut views, 1, now);
        assert_eq!(seen(&views), Presence::Online, "what a dead node said is worth less");
        views[0].here.set(ana, None, Timestamp(2));
        let lease = |id| if id == ids[2] { Lease::Doubtful } else { Lease::Over };
        views[0].peers.look(lease, 2 * LINGER, now);
        assert_eq!(seen(&views), Presence::Dnd, "but more than nothing");
        views[0].peers.look(lease, LINGER, now + LINGER);
        assert_eq!(seen(&views), Presence::Unknown);
    }
}
