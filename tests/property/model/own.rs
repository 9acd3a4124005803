//! What is one's own: read marks, followed threads, preferences.

use colink::domain::command as c;
use colink::domain::id::{ChannelId, UserId};
use serde_json::json;

use super::{Answer, Follow, Model, done, nothing_to_do, refuse};

impl Model {
    pub(super) fn mark_read(&mut self, who: UserId, c: &c::MarkRead) -> Answer {
        let room = self.inside(who, c.channel_id)?;
        let seq = c.seq.min(self.head_of(room));
        if seq > room.members[&who].read_seq {
            self.move_mark(who, c.channel_id, seq);
        }
        Ok(self.membership(who, self.channel(c.channel_id).unwrap()))
    }

    pub(super) fn mark_unread(&mut self, who: UserId, c: &c::MarkUnread) -> Answer {
        let message = self.inside(who, c.channel_id)?.standing(c.seq)?;
        if message.message_no.is_none() {
            return refuse("invalid_request");
        }
        self.move_mark(who, c.channel_id, c.seq - 1);
        Ok(self.membership(who, self.channel(c.channel_id).unwrap()))
    }

    fn move_mark(&mut self, who: UserId, channel: ChannelId, seq: i64) {
        let room = self.room_mut(channel);
        room.members.get_mut(&who).unwrap().read_seq = seq;
        let data = json!({"channel_id": channel, "read_seq": seq, "unread_count": room.unread(who),
            "mention_count": room.unread_mentions(who)});
        self.tell(who, "user.read", who, data);
    }

    pub(super) fn follow(&mut self, who: UserId, channel: ChannelId, thread: i64, following: bool) -> Answer {
        let room = self.inside(who, channel)?;
        if room.root(thread)?.deleted && following && room.replies(thread).next().is_none() {
            return refuse("not_found");
        }
        let read_seq = room.replies(thread).last().map_or(thread, |reply| reply.seq);
        let follows = &mut self.room_mut(channel).follows;
        follows.entry((thread, who)).or_insert(Follow { following, read_seq }).following = following;
        let data = json!({"channel_id": channel, "thread_seq": thread, "following": following});
        done(self.tell(who, "user.thread_followed", who, data))
    }

    pub(super) fn mark_thread_read(&mut self, who: UserId, c: &c::MarkThreadRead) -> Answer {
        let room = self.inside(who, c.channel_id)?;
        room.root(c.thread_seq)?;
        let unread = |read: i64| room.replies(c.thread_seq).filter(|reply| reply.seq > read).count();
        let last = room.replies(c.thread_seq).last().map_or(c.thread_seq, |reply| reply.seq);
        let (read_seq, left) = (c.seq.min(last), unread(c.seq));
        let before = room.follows.get(&(c.thread_seq, who)).map(|follow| unread(follow.read_seq));
        if before.is_none_or(|before| before <= left) {
            return nothing_to_do();
        }
        self.move_thread_mark(who, c.channel_id, c.thread_seq, read_seq)
    }

    pub(super) fn mark_thread_unread(&mut self, who: UserId, c: &c::MarkThreadUnread) -> Answer {
        let room = self.inside(who, c.channel_id)?;
        room.root(c.thread_seq)?;
        let whole = c.seq == c.thread_seq;
        if !whole && room.standing(c.seq)?.thread != Some(c.thread_seq) {
            return refuse("invalid_request");
        }
        if !room.follows.get(&(c.thread_seq, who)).is_some_and(|follow| follow.following) {
            return refuse("conflict");
        }
        self.move_thread_mark(who, c.channel_id, c.thread_seq, if whole { c.seq } else { c.seq - 1 })
    }

    fn move_thread_mark(&mut self, who: UserId, channel: ChannelId, thread: i64, read_seq: i64) -> Answer {
        let room = self.room_mut(channel);
        room.follows.get_mut(&(thread, who)).unwrap().read_seq = read_seq;
        let (unread, mentions) = room.unread_in_thread(who, thread, read_seq);
        let data = json!({"channel_id": channel, "thread_seq": thread, "read_seq": read_seq, "unread_count": unread,
            "mention_count": mentions});
        done(self.tell(who, "user.thread_read", who, data))
    }

    pub(super) fn mute(&mut self, who: UserId, channel: ChannelId, muted: bool) -> Answer {
        self.inside(who, channel)?;
        self.room_mut(channel).members.get_mut(&who).unwrap().muted = muted;
        let data = json!({"channel_id": channel, "muted": muted, "notify": "all"});
        done(self.tell(who, "user.channel_preferences", who, data))
    }
}
