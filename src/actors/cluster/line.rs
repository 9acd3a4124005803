//! Lines: what one user asks of one stream, which is carried out in the order in which it was asked.
//!
//! A line goes one way at a time: to one other node, or to this node's own actor. Before any of it goes another way, what is
//! still out is taken back; and as long as any of it is carried out here, the rest is, too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::domain::id::{StreamId, UserId};

/// Who asks, and of which stream.
pub type Line = (UserId, StreamId);

/// How many commands of each line are carried out here. It has a lock of its own: an answer may come while others are held.
#[derive(Clone, Default, Debug)]
pub struct Here(Arc<Mutex<HashMap<Line, usize>>>);

impl Here {
    fn lock(&self) -> MutexGuard<'_, HashMap<Line, usize>> {
        self.0.lock().expect("no panic under this lock")
    }

    /// Returns whether any command of a line is carried out here.
    #[must_use]
    pub fn has(&self, line: Line) -> bool {
        self.lock().contains_key(&line)
    }

    /// Notes that one is, until what this returns is dropped.
    #[must_use]
    pub fn begin(&self, line: Line) -> Turn {
        *self.lock().entry(line).or_default() += 1;
        Turn { here: self.clone(), line }
    }
}

/// A command that is carried out here, until this is dropped.
#[derive(Debug)]
pub struct Turn {
    here: Here,
    line: Line,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut lines = self.here.lock();
        if let Some(count) = lines.get_mut(&self.line) {
            *count -= 1;
            if *count == 0 {
                lines.remove(&self.line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_line_is_here_until_all_of_it_is_done() {
        let here = Here::default();
        let (line, other) = ((UserId(Uuid::nil()), StreamId::WORKSPACE), (UserId(Uuid::max()), StreamId::WORKSPACE));
        let (first, second) = (here.begin(line), here.begin(line));
        drop(first);
        assert!(here.has(line) && !here.has(other));
        drop(second);
        assert!(!here.has(line) && here.lock().is_empty());
    }
}
