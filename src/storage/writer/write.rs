//! A write: what is to be done and for whom, where its answer goes, and what is told of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::accounts::Account;
use super::super::tokens::Revoked;
use crate::domain::command::{Command, Principal};
use crate::domain::error::{Code, Refusal, unavailable};
use crate::domain::event::Event;

/// The answer to a committed write.
#[derive(Clone, PartialEq, Debug)]
pub struct Reply {
    /// The answer as JSON.
    pub json: String,
    /// Whether it repeats the answer to an earlier request with the same key.
    pub duplicate: bool,
}

impl Reply {
    /// Makes the answer to a repeat out of the first one.
    pub(in crate::storage) fn repeated(json: String) -> Self {
        let json = match json.strip_suffix("\"duplicate\":false}") {
            Some(head) => format!("{head}\"duplicate\":true}}"),
            None => json,
        };
        Reply { json, duplicate: true }
    }
}

/// What is to be written.
#[derive(Clone)]
pub enum Work {
    /// A command of a user's.
    Command(Command),
    /// Account work.
    Account(Account),
    /// Account work that is done once.
    Once {
        /// The work.
        account: Box<Account>,
        /// The caller's idempotency key.
        key: String,
        /// What it is bound to.
        hash: [u8; 32],
    },
}

/// Receives the answer, exactly once, after the commit. It must not block.
///
/// If it is dropped on the way, because an actor that held it died, the caller is told that the outcome is not known.
pub struct Answer {
    receive: Mutex<Option<Receive>>,
    times: Times,
}

type Receive = Box<dyn FnOnce(Result<Reply, Refusal>) + Send>;

#[derive(Clone, Copy)]
struct Times {
    /// When it was asked for.
    since: Instant,
    /// From when on nobody waits for it any more.
    until: Option<Instant>,
    /// From when on another node, which sent the write here, takes it back.
    taken_back: Option<Instant>,
}

impl Answer {
    /// Makes an answer that goes to `receive`, which waits for it from now on.
    pub fn new(receive: impl FnOnce(Result<Reply, Refusal>) + Send + 'static) -> Self {
        let times = Times { since: Instant::now(), until: None, taken_back: None };
        Answer { receive: Mutex::new(Some(Box::new(receive))), times }
    }

    fn at(self, change: impl FnOnce(&mut Times)) -> Self {
        let mut times = self.times;
        change(&mut times);
        Answer { receive: Mutex::new(self.take()), times }
    }

    /// Says after which time another node takes the write back that it sent here: what is not done by then is not done here.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        self.at(|times| (times.until, times.taken_back) = (Some(times.since + patience), Some(times.since + patience)))
    }

    /// Gives up on it when it has waited for so long since it was asked for; but it is given a quarter of that from now on, even
    /// if it has waited before, at another node.
    pub(super) fn expire(&mut self, patience: Duration) {
        let at = (self.times.since + patience).max(Instant::now() + patience / 4);
        self.times.until = Some(self.times.until.map_or(at, |until| until.min(at)));
    }

    /// Returns when nobody waits for it any more; nothing, if there is no such time.
    pub(super) fn over_at(&self) -> Option<Instant> {
        self.times.until
    }

    /// Has it waited for some time.
    #[cfg(test)]
    pub(crate) fn since(self, ago: Duration) -> Self {
        self.at(|times| times.since -= ago)
    }

    /// Has it changed on its way.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Result<Reply, Refusal>) -> Result<Reply, Refusal> + Send + 'static) -> Self {
        let receive = self.take().map(|receive| -> Receive { Box::new(move |result| receive(change(result))) });
        Answer { receive: Mutex::new(receive), times: self.times }
    }

    /// Has whoever refuses it for the moment say that the outcome is not known: it was asked for elsewhere before, where it
    /// may have been done.
    #[must_use]
    pub fn in_doubt(self) -> Self {
        self.map(|result| match result {
            Err(refusal) if refusal.code.temporary() => Err(interrupted()),
            result => result,
        })
    }

    /// Has something done just before it is given.
    #[must_use]
    pub fn then(self, first: impl FnOnce() + Send + 'static) -> Self {
        self.map(move |result| {
            first();
            result
        })
    }

    fn take(&self) -> Option<Receive> {
        self.receive.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives the answer; a second one is nobody's.
    pub fn give(&self, result: Result<Reply, Refusal>) {
        if let Some(receive) = self.take() {
            receive(result);
        }
    }

    /// Returns whether nobody waits for it any more, who is told so: nothing was done for it.
    pub(super) fn is_over(&self) -> bool {
        if self.times.until.is_some_and(|until| until <= Instant::now()) {
            self.give(Err(unavailable("this waited too long for its turn: slow down")));
        }
        self.receive.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Returns whether another node that sent the write here took it back: it may have refused it since.
    pub(super) fn is_taken_back(&self) -> bool {
        self.times.taken_back.is_some_and(|at| at <= Instant::now())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(receive) = self.take() {
            receive(Err(interrupted()));
        }
    }
}

pub(super) fn interrupted() -> Refusal {
    let why = "the request was interrupted and may have taken effect: repeat it with the same key";
    Refusal::new(Code::Timeout, why).retry_after(1.0)
}

/// In whose name a node writes to a channel. Every write is right either way: the claim decides who may remember what it
/// knows of the channel from one write to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// As its owner: if it is not yet, it takes the channel over, unless another node did so a moment ago.
    Owner,
    /// Beside its owner, who cannot be reached.
    Beside,
}

/// One write, and where its answer goes.
pub struct Write {
    /// Who asks.
    pub caller: Principal,
    /// What for.
    pub work: Work,
    /// In whose name.
    pub claim: Claim,
    /// The idempotency key, if the caller gave one.
    pub key: Option<String>,
    /// Receives the answer.
    pub answer: Answer,
}

/// What one commit did that others hear of, and when it was done.
pub struct Committed {
    /// The events, in order within each stream.
    pub events: Vec<Event>,
    /// The sign-ins that ended.
    pub revoked: Vec<Revoked>,
    /// When the commit came back.
    pub at: Instant,
    /// Something may have been committed that this does not tell: it is to be looked for in the database.
    pub in_doubt: bool,
}

/// Receives what every commit did, in the order of the commits. It must not block.
pub type Sink = Arc<dyn Fn(Committed) + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_for_the_moment_while_in_doubt_is_told_so() {
        for code in Code::ALL {
            let (tell, told) = std::sync::mpsc::channel();
            let answer = Answer::new(move |result| tell.send(result).unwrap()).in_doubt();
            answer.give(Err(Refusal::new(*code, "no")));
            let for_the_moment = [Code::Unavailable, Code::RateLimited, Code::Internal, Code::Timeout].contains(code);
            let expected = if for_the_moment { Code::Timeout } else { *code };
            assert_eq!(told.recv().unwrap().unwrap_err().code, expected, "{code:?}");
        }
        let (tell, told) = std::sync::mpsc::channel();
        let done = Ok(Reply { json: "{}".to_owned(), duplicate: false });
        Answer::new(move |result| tell.send(result).unwrap()).in_doubt().give(done.clone());
        assert_eq!(told.recv().unwrap(), done);
    }

    #[test]
    fn whatever_is_done_to_an_answer_its_time_stays() {
        let (ago, patience) = (Duration::from_secs(2), Duration::from_secs(3));
        let answer = Answer::new(drop).since(ago).within(patience);
        let until = answer.over_at().unwrap();
        let mut answer = answer.then(|| {}).map(|result| result).in_doubt();
        answer.expire(patience * 2);
        assert_eq!(answer.over_at(), Some(until));
    }
}
