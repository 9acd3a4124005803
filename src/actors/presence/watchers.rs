//! Who wants to know of whom. Whoever goes leaves at once, however many others watch the same users.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};

use crate::domain::id::UserId;

/// A watcher, told from the others by where it is: as long as this is kept, nobody else is there.
#[derive(Debug)]
struct Watcher<T>(Weak<T>);

impl<T> PartialEq for Watcher<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl<T> Eq for Watcher<T> {}

impl<T> Hash for Watcher<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_ptr().hash(state);
    }
}

/// The watchers of each user who has any.
#[derive(Debug)]
pub struct Watchers<T> {
    of: HashMap<UserId, HashSet<Watcher<T>>>,
}

impl<T> Default for Watchers<T> {
    fn default() -> Self {
        Watchers { of: HashMap::new() }
    }
}

impl<T> Watchers<T> {
    /// Adds a watcher of a user.
    pub fn add(&mut self, user: UserId, watcher: &Weak<T>) {
        self.of.entry(user).or_default().insert(Watcher(watcher.clone()));
    }

    /// Takes a watcher of a user away; returns whether nobody else watches that user.
    pub fn remove(&mut self, user: UserId, watcher: &Weak<T>) -> bool {
        let Some(watchers) = self.of.get_mut(&user) else { return true };
        watchers.remove(&Watcher(watcher.clone()));
        let nobody = watchers.is_empty();
        if nobody {
            self.of.remove(&user);
        }
        nobody
    }

    /// Returns who watches a user.
    pub fn of(&self, user: UserId) -> impl Iterator<Item = Arc<T>> {
        self.of.get(&user).into_iter().flatten().filter_map(|watcher| watcher.0.upgrade())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn users(count: i64) -> Vec<UserId> {
        (0..count).map(|n| UserId::new(Timestamp(n))).collect()
    }

    #[test]
    fn who_watches_is_told_until_they_go() {
        let (mut watchers, users) = (Watchers::default(), users(2));
        let people: Vec<Arc<&str>> = ["ana", "bob", "eve"].map(Arc::new).into();
        for who in &people {
            for user in [0, 1, 1] {
                watchers.add(users[user], &Arc::downgrade(who));
            }
        }
        let names = |watchers: &Watchers<&'static str>, user: usize| {
            let mut names: Vec<&str> = watchers.of(users[user]).map(|who| *who).collect();
            names.sort_unstable();
            names
        };
        assert!(!watchers.remove(users[1], &Arc::downgrade(&people[0])));
        assert_eq!((names(&watchers, 0), names(&watchers, 1)), (vec!["ana", "bob", "eve"], vec!["bob", "eve"]));
        assert!(!watchers.remove(users[1], &Arc::downgrade(&people[0])), "they watch no more");
        assert!(!watchers.remove(users[1], &Arc::downgrade(&people[1])));
        assert!(watchers.remove(users[1], &Arc::downgrade(&people[2])));
        assert_eq!((names(&watchers, 0).len(), names(&watchers, 1).len()), (3, 0));
        drop(people);
        assert_eq!(names(&watchers, 0), [""; 0]);
    }

    #[test]
    fn thousands_may_watch_the_same_users_and_go_one_by_one() {
        let (mut watchers, users) = (Watchers::default(), users(200));
        let people: Vec<Arc<()>> = (0..5_000).map(|_| Arc::new(())).collect();
        for user in &users {
            people.iter().for_each(|who| watchers.add(*user, &Arc::downgrade(who)));
        }
        for who in &people {
            let last = users.iter().filter(|user| watchers.remove(**user, &Arc::downgrade(who))).count();
            assert_eq!(last > 0, Arc::ptr_eq(who, &people[people.len() - 1]));
        }
    }
}
