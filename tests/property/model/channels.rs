//! Channels: how they come about and change, and who is in them.

use std::collections::BTreeMap;

use colink::domain::channel::{ChannelRole, Posting};
use colink::domain::command as c;
use colink::domain::id::{ChannelId, StreamId, UserId};
use colink::domain::user::Role;
use serde_json::json;

use super::{Answer, Member, Model, Room, done, nothing_to_do, refuse};

impl Model {
    pub(super) fn create(&mut self, who: UserId, c: &c::CreateChannel, made: ChannelId) -> Answer {
        if self.is_guest(who) {
            return refuse("forbidden");
        }
        if self.rooms.iter().any(|room| room.name == c.name) {
            return refuse("conflict");
        }
        let mut people = vec![who];
        people.extend(c.members.iter().filter(|user| **user != who));
        let mut seen = Vec::new();
        people.retain(|user| {
            !seen.contains(user) && {
                seen.push(*user);
                true
            }
        });
        let role = |user: UserId| if user == who { ChannelRole::Owner } else { ChannelRole::Member };
        let members = people.iter().map(|user| (*user, Member { role: role(*user), read_seq: 0, muted: false }));
        self.rooms.push(Room {
            id: made,
            name: c.name.clone(),
            private: c.private,
            archived: false,
            posting: Posting::Everyone,
            created_by: who,
            members: members.collect(),
            messages: Vec::new(),
            pins: Vec::new(),
            follows: BTreeMap::new(),
            moves: people.iter().map(|user| (1, *user, true)).collect(),
        });
        let kind = if c.private { "private" } else { "public" };
        let data = json!({"id": made, "kind": kind, "name": c.name, "topic": "", "purpose": "", "posting": "everyone",
            "created_by": who, "members": people});
        let seq = self.tell(made, "channel.created", who, data);
        for user in people {
            self.tell(user, "user.channel_added", who, json!({"channel_id": made, "last_seq": seq}));
        }
        self.list(who, made);
        Ok(json!({"id": made, "kind": kind, "name": c.name, "last_seq": 1, "last_message_no": 0}))
    }

    /// The workspace hears of public channels.
    fn list(&mut self, who: UserId, channel: ChannelId) {
        let room = self.channel(channel).unwrap();
        if room.private {
            return;
        }
        let data = json!({"id": channel, "name": room.name, "topic": "", "purpose": "", "archived": room.archived});
        self.tell(StreamId::WORKSPACE, "channel.listed", who, data);
    }

    pub(super) fn join(&mut self, who: UserId, channel: ChannelId) -> Answer {
        let room = self.known(who, channel)?;
        if room.archived {
            return refuse("channel_archived");
        }
        if room.private || self.is_guest(who) {
            return refuse("forbidden");
        }
        self.come_in(channel, who, None, who)
    }

    pub(super) fn invite(&mut self, who: UserId, c: &c::InviteMember) -> Answer {
        self.active(who, c.channel_id)?;
        if self.is_guest(who) {
            return refuse("forbidden");
        }
        self.come_in(c.channel_id, c.user_id, Some(who), who)
    }

    fn come_in(&mut self, channel: ChannelId, user: UserId, invited_by: Option<UserId>, actor: UserId) -> Answer {
        if self.channel(channel).unwrap().members.contains_key(&user) {
            return nothing_to_do();
        }
        let mut data = json!({"user_id": user, "role": "member"});
        if let Some(by) = invited_by {
            data["invited_by"] = json!(by);
        }
        let seq = self.tell(channel, "member.joined", actor, data);
        let room = self.room_mut(channel);
        room.members.insert(user, Member { role: ChannelRole::Member, read_seq: seq - 1, muted: false });
        room.moves.push((seq, user, true));
        self.tell(user, "user.channel_added", actor, json!({"channel_id": channel, "last_seq": seq}));
        done(seq)
    }

    pub(super) fn leave(&mut self, who: UserId, channel: ChannelId) -> Answer {
        if self.inside(who, channel)?.needs(who) {
            return refuse("conflict");
        }
        self.go_out(channel, who, None, who)
    }

    pub(super) fn remove(&mut self, who: UserId, c: &c::RemoveMember) -> Answer {
        let room = self.moderated(who, c.channel_id)?;
        let theirs = room.members.get(&c.user_id).map(|member| member.role);
        let by_role = [Role::Moderator, Role::Admin].contains(&self.role(who));
        let above = theirs == Some(ChannelRole::Owner) && !room.has_rank(who, ChannelRole::Owner);
        if above && !by_role {
            return refuse("forbidden");
        }
        if room.needs(c.user_id) {
            return refuse("conflict");
        }
        if theirs.is_none() {
            return nothing_to_do();
        }
        self.go_out(c.channel_id, c.user_id, Some(who), who)
    }

    fn go_out(&mut self, channel: ChannelId, user: UserId, removed_by: Option<UserId>, actor: UserId) -> Answer {
        let mut data = json!({"user_id": user});
        if let Some(by) = removed_by {
            data["removed_by"] = json!(by);
        }
        let seq = self.tell(channel, "member.left", actor, data);
        let room = self.room_mut(channel);
        room.members.remove(&user);
        room.follows.retain(|(_, follower), _| *follower != user);
        room.moves.push((seq, user, false));
        self.tell(user, "user.channel_removed", actor, json!({"channel_id": channel}));
        done(seq)
    }

    pub(super) fn set_role(&mut self, who: UserId, c: &c::SetChannelRole) -> Answer {
        let room = self.owned(who, c.channel_id, false)?;
        let Some(member) = room.members.get(&c.user_id) else { return refuse("not_found") };
        if member.role == c.role {
            return nothing_to_do();
        }
        if room.is_only_owner(c.user_id) {
            return refuse("conflict");
        }
        self.room_mut(c.channel_id).members.get_mut(&c.user_id).unwrap().role = c.role;
        let data = json!({"user_id": c.user_id, "role": c.role, "changed_by": who});
        done(self.tell(c.channel_id, "member.role_changed", who, data))
    }

    pub(super) fn set_posting(&mut self, who: UserId, channel: ChannelId, posting: Posting) -> Answer {
        if self.owned(who, channel, false)?.posting == posting {
            return nothing_to_do();
        }
        self.room_mut(channel).posting = posting;
        let seq = self.tell(channel, "channel.updated", who, json!({"user_id": who, "posting": posting}));
        self.list(who, channel);
        done(seq)
    }

    pub(super) fn set_archived(&mut self, who: UserId, channel: ChannelId, archive: bool) -> Answer {
        if self.owned(who, channel, true)?.archived == archive {
            return nothing_to_do();
        }
        self.room_mut(channel).archived = archive;
        let seq = if archive {
            self.tell(channel, "channel.archived", who, json!({"user_id": who, "archived_at": true}))
        } else {
            self.tell(channel, "channel.unarchived", who, json!({"user_id": who}))
        };
        self.list(who, channel);
        done(seq)
    }
}
