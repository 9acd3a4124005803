//! Who heard what they should not have, and who wrote where they could not: decided by the order of the commits. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use colink::domain::id::{ChannelId, UserId};

use crate::checker::{Entry, Stored};
use crate::services::Change;

/// An open socket may hear what is committed for so long after its user was deactivated, signed out, or made a guest.
pub(crate) const GRACE_MICROS: i64 = 5_000_000;
/// A channel is taken over at most once in so long.
const TAKEN_MICROS: i64 = 5_000_000;

/// An event that came to a victim, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) user: UserId,
    pub(crate) channel: ChannelId,
    pub(crate) seq: i64,
    pub(crate) at: i64,
}

/// When it was confirmed that somebody was deactivated, signed out, or made a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) user: UserId,
    pub(crate) ended: i64,
}

/// When each event was committed, or a little before: by the changes of its stream.
pub(crate) struct Committed(HashMap<ChannelId, Vec<(i64, i64)>>);

impl Committed {
    pub(crate) fn of(changes: &[Change]) -> Committed {
        let mut heads: HashMap<ChannelId, Vec<(i64, i64)>> = HashMap::new();
        for change in changes {
            heads.entry(ChannelId(change.stream)).or_default().push((change.seq, change.at));
        }
        Committed(heads)
    }

    fn at(&self, channel: ChannelId, seq: i64) -> Option<i64> {
        let heads = self.0.get(&channel)?;
        heads.get(heads.partition_point(|(head, _)| *head < seq)).map(|(_, at)| *at)
    }
}

/// When somebody was in a channel: from the event that brought them in to the one that tells of their going.
type Stays = HashMap<UserId, Vec<(i64, i64)>>;

fn stays(log: &[Entry]) -> Stays {
    let mut stays = Stays::new();
    for entry in log {
        let data: serde_json::Value = serde_json::from_str(&entry.data).unwrap_or_default();
        let user = |value: &serde_json::Value| serde_json::from_value::<UserId>(value.clone()).ok();
        match entry.kind.as_str() {
            "channel.created" => {
                for member in data["members"].as_array().into_iter().flatten().filter_map(user) {
                    stays.entry(member).or_default().push((entry.seq, i64::MAX));
                }
            }
            "member.joined" => {
                if let Some(user) = user(&data["user_id"]) {
                    stays.entry(user).or_default().push((entry.seq, i64::MAX));
                }
            }
            "member.left" => {
                let stay = user(&data["user_id"]).and_then(|user| stays.get_mut(&user)?.last_mut());
                if let Some((_, end)) = stay {
                    *end = entry.seq;
                }
            }
            _ => {}
        }
    }
    stays
}

/// What the check found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Every promise that was broken.
    pub(crate) broken: Vec<String>,
    /// How many events victims heard.
    pub(crate) heard: usize,
    /// How often a victim came or went.
    pub(crate) moves: usize,
    /// How long after the end the last event was committed that somebody heard whose end had come, in microseconds.
    pub(crate) latest: i64,
}

/// Looks whether anybody heard what was committed while they were no member, or wrote while they were none.
pub(crate) fn check(
    stored: &BTreeMap<ChannelId, Stored>,
    committed: &Committed,
    received: &[Received],
    lives: &[Life],
    too_late: &[String],
) -> Found {
    let mut found = Found { heard: received.len(), ..Found::default() };
    let stays: HashMap<ChannelId, Stays> = stored.iter().map(|(id, channel)| (*id, stays(&channel.log))).collect();
    for one in received {
        let Received { user, channel, seq, at } = *one;
        let Some(in_channel) = stays.get(&channel) else { continue };
        let mine = in_channel.get(&user).map(Vec::as_slice).unwrap_or_default();
        if !mine.iter().any(|(from, to)| (*from..=*to).contains(&seq)) {
            // Who is in again may read what was said meanwhile, but not before.
            let back = mine.iter().map(|(from, _)| *from).find(|from| *from > seq);
            let back = back.and_then(|from| committed.at(channel, from));
            if back.is_none_or(|back| at < back) {
                found.broken.push(format!("{user} heard {seq} of {channel}, and was there at {mine:?}"));
            }
        }
        let life = lives.iter().find(|life| life.user == user);
        if let (Some(life), Some(said)) = (life, committed.at(channel, seq)) {
            found.latest = found.latest.max(said - life.ended);
            if said > life.ended + GRACE_MICROS {
                let late = (said - life.ended) / 1_000;
                found.broken.push(format!("{user} heard {seq} of {channel}, said {late} ms after their end"));
            }
        }
    }
    let too_late: HashSet<&str> = too_late.iter().map(String::as_str).collect();
    for (id, channel) in stored {
        for entry in &channel.log {
            found.moves += usize::from(entry.kind == "member.left" || entry.kind == "member.joined");
            if entry.kind != "message.created" && entry.kind != "reaction.added" {
                continue;
            }
            let mine = entry.actor.and_then(|actor| stays[id].get(&actor));
            if !mine.into_iter().flatten().any(|(from, to)| (*from..*to).contains(&entry.seq)) {
                found.broken.push(format!("{:?} wrote {} of {id} without being in it", entry.actor, entry.seq));
            }
            let data: serde_json::Value = serde_json::from_str(&entry.data).unwrap_or_default();
            let key = data["text"].as_str().and_then(|text| text.split(' ').next()).unwrap_or_default();
            if too_late.contains(key) {
                found.broken.push(format!("{key} was sent after its author's end and is stored at {}", entry.seq));
            }
        }
    }
    found
}

/// Returns how long after they were made a guest somebody heard the last of what was said in the workspace, in microseconds,
/// and what they heard later than they may.
pub(crate) fn check_guests(overheard: &[(UserId, i64)], guests: &[Life]) -> (i64, Vec<String>) {
    let after = |(user, said): &(UserId, i64)| {
        guests.iter().find(|life| life.user == *user).map(|life| (*user, said - life.ended))
    };
    let late: Vec<(UserId, i64)> = overheard.iter().filter_map(after).collect();
    let tell = |(user, late): &(UserId, i64)| {
        format!("{user} heard of the workspace what was said {} ms after they were made a guest", late / 1_000)
    };
    let leaks = late.iter().filter(|(_, late)| *late > GRACE_MICROS).map(tell).collect();
    (late.iter().map(|(_, late)| *late).max().unwrap_or(0), leaks)
}

/// Looks whether each stream was written by one after the other: no number twice, no epoch back, no owner without a new
/// epoch, and none taken over twice within five seconds.
pub(crate) fn check_owners(changes: &[Change]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut last: HashMap<uuid::Uuid, &Change> = HashMap::new();
    let mut taken: HashMap<uuid::Uuid, i64> = HashMap::new();
    for change in changes {
        let mut say = |what: &str| broken.push(format!("stream {}: {what}: {change:?}", change.stream));
        if let Some(before) = last.insert(change.stream, change)
            && (before.seq, before.epoch, before.owner) != (change.old_seq, change.old_epoch, change.old_owner)
        {
            say("a change that does not follow the one before");
        }
        if change.seq < change.old_seq || change.epoch < change.old_epoch {
            say("a number that goes back");
        }
        if change.epoch == change.old_epoch && change.owner != change.old_owner {
            say("another owner under the same epoch");
        }
        if change.epoch > change.old_epoch {
            let before = taken.insert(change.stream, change.at);
            // The two clocks that are compared are read a moment apart.
            if before.is_some_and(|before| change.at - before < TAKEN_MICROS - 10_000) {
                say("taken over twice within five seconds");
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use colink::clock::Timestamp;
    use colink::domain::id::EventId;
    use serde_json::json;

    use super::*;

    struct Case {
        ana: UserId,
        eve: UserId,
        channel: ChannelId,
        stored: BTreeMap<ChannelId, Stored>,
        changes: Vec<Change>,
    }

    /// Eve is put out at 3, comes back at 5; Ana writes 2, 4 and 6. Each is committed at its number in seconds.
    fn case() -> Case {
        let at = Timestamp(1);
        let (ana, eve, channel) = (UserId::new(at), UserId::new(at), ChannelId::new(at));
        let said = |n: i64| ("message.created", json!({"text": format!("k{n} - -")}));
        let events = [
            ("channel.created", json!({"members": [ana, eve]})),
            said(2),
            ("member.left", json!({"user_id": eve})),
            said(4),
            ("member.joined", json!({"user_id": eve})),
            said(6),
        ];
        let entry = |(seq, (kind, data)): (i64, (&str, serde_json::Value))| Entry {
            seq,
            event_id: EventId::new(at),
            kind: kind.to_owned(),
            actor: Some(ana),
            data: data.to_string(),
        };
        let log = (1..).zip(events).map(entry).collect();
        let changes = (1..=6).map(|seq| change(channel, seq, 1, 1)).collect();
        let stored = BTreeMap::from([(channel, Stored { log, ..Stored::default() })]);
        Case { ana, eve, channel, stored, changes }
    }

    fn change(channel: ChannelId, seq: i64, old_epoch: i64, epoch: i64) -> Change {
        let (stream, at, old_seq) = (channel.0, seq * 1_000_000, seq - 1);
        let owner = |epoch: i64| Some(uuid::Uuid::from_u128(epoch.unsigned_abs().into()));
        let (old_owner, owner) = (owner(old_epoch), owner(epoch));
        Change { stream, who: "hub_0".into(), old_owner, owner, old_epoch, epoch, old_seq, seq, at }
    }

    fn heard(case: &Case, seq: i64, second: i64) -> Vec<String> {
        let received = Received { user: case.eve, channel: case.channel, seq, at: second * 1_000_000 };
        check(&case.stored, &Committed::of(&case.changes), &[received], &[], &[]).broken
    }

    #[test]
    fn who_is_out_hears_nothing_until_they_are_back() {
        let case = case();
        assert!(heard(&case, 2, 2).is_empty());
        assert!(heard(&case, 3, 3).is_empty(), "the one who left hears that");
        assert_eq!(heard(&case, 4, 4).len(), 1);
        assert!(heard(&case, 4, 5).is_empty(), "who is in again may read what was said");
        assert!(heard(&case, 6, 6).is_empty());
    }

    #[test]
    fn who_is_out_or_deactivated_writes_nothing() {
        let mut case = case();
        let all = |case: &Case, late: &[String]| {
            check(&case.stored, &Committed::of(&case.changes), &[], &[], late).broken.join("\n")
        };
        assert_eq!(all(&case, &[]), "");
        assert!(all(&case, &["k6".to_owned()]).contains("after its author's end"));
        case.stored.get_mut(&case.channel).unwrap().log[3].actor = Some(case.eve);
        assert!(all(&case, &[]).contains("without being in it"));
    }

    #[test]
    fn who_was_deactivated_hears_for_a_moment_at_most() {
        let case = case();
        let life = |ended| [Life { user: case.ana, ended }];
        let one = Received { user: case.ana, channel: case.channel, seq: 6, at: 6_000_000 };
        for (ended, fine) in [(1_000_000, true), (999_999, false)] {
            let found = check(&case.stored, &Committed::of(&case.changes), &[one], &life(ended), &[]);
            assert_eq!(found.broken.is_empty(), fine, "{found:?}");
        }
    }

    #[test]
    fn who_is_made_a_guest_hears_of_the_workspace_for_a_moment_at_most() {
        let (eve, ana) = (UserId::new(Timestamp(1)), UserId::new(Timestamp(2)));
        let guests = [Life { user: eve, ended: 1_000_000 }];
        assert_eq!(check_guests(&[(eve, 500_000), (ana, 9_000_000)], &guests), (-500_000, Vec::new()));
        assert_eq!(check_guests(&[(eve, 6_000_000)], &guests), (5_000_000, Vec::new()));
        let (latest, leaks) = check_guests(&[(eve, 6_000_001)], &guests);
        assert_eq!((latest, leaks.len()), (5_000_001, 1));
    }

    #[test]
    fn owners_follow_each_other_under_growing_epochs_and_not_too_often() {
        let channel = ChannelId::new(Timestamp(1));
        let fine = [change(channel, 1, 0, 1), change(channel, 2, 1, 1), change(channel, 6, 1, 2)];
        let follows = |changes: &[Change]| {
            let mut changes = changes.to_vec();
            for n in 1..changes.len() {
                changes[n].old_seq = changes[n - 1].seq;
            }
            check_owners(&changes)
        };
        assert!(follows(&fine).is_empty());
        let soon = [change(channel, 1, 0, 1), change(channel, 2, 1, 2)];
        assert!(follows(&soon)[0].contains("twice within"));
        let back = [change(channel, 1, 0, 2), change(channel, 2, 2, 1)];
        assert!(follows(&back)[0].contains("goes back"));
        assert!(check_owners(&[fine[0].clone(), change(channel, 3, 1, 1)])[0].contains("does not follow"));
        let mut stolen = change(channel, 2, 1, 1);
        stolen.owner = None;
        assert!(check_owners(&[stolen])[0].contains("same epoch"));
    }
}
